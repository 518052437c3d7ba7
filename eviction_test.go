package redislock_test

import (
	"log/slog"
	"strings"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// logged is a Logger, and a function that tells the lines it has got so far.
func logged() (*slog.Logger, func() []string) {
	buffer := gbytes.NewBuffer()
	return slog.New(slog.NewTextHandler(buffer, nil)), func() []string {
		return strings.FieldsFunc(string(buffer.Contents()), func(r rune) bool { return r == '\n' })
	}
}

// aboutEviction is one line that says what is wrong, where, and what to do.
func aboutEviction(policy string, nodes ...string) OmegaMatcher {
	matchers := []OmegaMatcher{ContainSubstring("level=WARN"), ContainSubstring("may evict locks"),
		ContainSubstring("CONFIG SET maxmemory-policy noeviction")}
	for _, node := range nodes {
		matchers = append(matchers, ContainSubstring(node+" "+policy))
	}
	return ConsistOf(And(matchers...))
}

var _ = describe("an eviction policy", func() {
	It("that can evict locks is reported once, whatever a Locker does; noeviction is not", func(ctx SpecContext) {
		own := ownRedis()
		client := connect(own.Addr())
		for _, policy := range []string{"allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu",
			"volatile-random", "volatile-ttl", "noeviction"} {
			Expect(redis(client, "CONFIG", "SET", "maxmemory-policy", policy).Error()).NotTo(HaveOccurred())
			logger, lines := logged()
			l := newLocker(own.Addr(), redislock.Options{Logger: logger})
			use := func() {
				var all sync.WaitGroup
				for _, name := range []string{"x", "y"} {
					for range 5 {
						all.Go(func() {
							defer GinkgoRecover()
							Expect(mustAcquire(ctx, l, name).Release(ctx)).To(Succeed())
						})
					}
				}
				all.Wait()
			}
			reported := aboutEviction(policy, own.Addr())
			if policy == "noeviction" {
				reported = BeEmpty()
			}
			use()
			Expect(lines()).To(reported, policy)
			Expect(redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			use()
			calls := commandCalls(client)
			Expect(calls["info"] + calls["fcall_ro"]).To(BeZero())

			Expect(redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
			use()
			Expect(lines()).To(reported, "loaded again")
		}
	})

	It("is reported when the library is there, also if it was not at first, and again after a loss", func(ctx SpecContext) {
		own := ownRedis("--maxmemory-policy", "allkeys-lru")
		client := connect(own.Addr())
		logger, lines := logged()
		l := newLocker(own.Addr(), redislock.Options{Logger: logger, LoadMode: redislock.LoadVerify})
		for range 2 {
			Expect(second(l.Acquire(ctx, "x"))).To(MatchError(ContainSubstring("missing")))
		}
		Expect(lines()).To(BeEmpty())
		put(client, redislock.Source())
		Expect(mustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
		Expect(redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		Expect(second(l.Acquire(ctx, "x"))).To(MatchError(ContainSubstring("missing")))
		put(client, redislock.Source())
		Expect(mustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
		Expect(lines()).To(aboutEviction("allkeys-lru", own.Addr()))
	})

	It("goes to the default logger if there is no other", func(ctx SpecContext) {
		own := ownRedis("--maxmemory-policy", "volatile-ttl")
		logger, lines := logged()
		before := slog.Default()
		slog.SetDefault(logger)
		DeferCleanup(slog.SetDefault, before)
		Expect(mustAcquire(ctx, newLocker(own.Addr()), "x").Release(ctx)).To(Succeed())
		Expect(lines()).To(aboutEviction("volatile-ttl", own.Addr()))
	})

	It("is not asked for with LoadNever", func(ctx SpecContext) {
		own := ownRedis("--maxmemory-policy", "allkeys-lru")
		client := connect(own.Addr())
		put(client, redislock.Source())
		logger, lines := logged()
		l := newLocker(own.Addr(), redislock.Options{Logger: logger, LoadMode: redislock.LoadNever})
		Expect(redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
		Expect(mustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
		calls := commandCalls(client)
		Expect(calls["info"] + calls["fcall_ro"]).To(BeZero())
		Expect(lines()).To(BeEmpty())
	})
})

var _ = Describe("an eviction policy of several nodes", func() {
	It("is reported once for all of them", func(ctx SpecContext) {
		cluster, err := redistest.StartCluster(3, 0, calm, "--maxmemory-policy", "volatile-lru")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(cluster.Stop)
		logger, lines := logged()
		l := newLocker(cluster.Addrs()[0], redislock.Options{Logger: logger})
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			Expect(mustAcquire(ctx, l, name).Release(ctx)).To(Succeed())
		}
		Expect(lines()).To(aboutEviction("volatile-lru", cluster.Addrs()...))
	})
})
