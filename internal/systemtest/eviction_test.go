package systemtest

import (
	"log/slog"
	"strings"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
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

var _ = OnEachTopology("an eviction policy", func() {
	It("that can evict locks is reported once, whatever a Locker does; noeviction is not", func(ctx SpecContext) {
		own := OwnRedis()
		client := Connect(own.Addr())
		for _, policy := range []string{"allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu",
			"volatile-random", "volatile-ttl", "noeviction"} {
			Expect(Redis(client, "CONFIG", "SET", "maxmemory-policy", policy).Error()).NotTo(HaveOccurred())
			logger, lines := logged()
			l := NewLocker(own.Addr(), redislock.Options{Logger: logger})
			use := func() {
				var all sync.WaitGroup
				for _, name := range []string{"x", "y"} {
					for range 5 {
						all.Go(func() {
							defer GinkgoRecover()
							Expect(MustAcquire(ctx, l, name).Release(ctx)).To(Succeed())
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
			Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			use()
			calls := CommandCalls(client)
			Expect(calls["info"] + calls["fcall_ro"]).To(BeZero())

			Expect(Redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
			use()
			Expect(lines()).To(reported, "loaded again")
		}
	})

	It("is reported when the library is there, also if it was not at first, and again after a loss", func(ctx SpecContext) {
		own := OwnRedis("--maxmemory-policy", "allkeys-lru")
		client := Connect(own.Addr())
		logger, lines := logged()
		l := NewLocker(own.Addr(), redislock.Options{Logger: logger, LoadMode: redislock.LoadVerify})
		for range 2 {
			Expect(Second(l.Acquire(ctx, "x"))).To(MatchError(ContainSubstring("missing")))
		}
		Expect(lines()).To(BeEmpty())
		Put(client, redislock.Source())
		Expect(MustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
		Expect(Redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		Expect(Second(l.Acquire(ctx, "x"))).To(MatchError(ContainSubstring("missing")))
		Put(client, redislock.Source())
		Expect(MustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
		Expect(lines()).To(aboutEviction("allkeys-lru", own.Addr()))
	})

	It("goes to the default logger if there is no other", func(ctx SpecContext) {
		own := OwnRedis("--maxmemory-policy", "volatile-ttl")
		logger, lines := logged()
		before := slog.Default()
		slog.SetDefault(logger)
		DeferCleanup(slog.SetDefault, before)
		Expect(MustAcquire(ctx, NewLocker(own.Addr()), "x").Release(ctx)).To(Succeed())
		Expect(lines()).To(aboutEviction("volatile-ttl", own.Addr()))
	})

	It("is not asked for with LoadNever", func(ctx SpecContext) {
		own := OwnRedis("--maxmemory-policy", "allkeys-lru")
		client := Connect(own.Addr())
		Put(client, redislock.Source())
		logger, lines := logged()
		l := NewLocker(own.Addr(), redislock.Options{Logger: logger, LoadMode: redislock.LoadNever})
		Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
		Expect(MustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
		calls := CommandCalls(client)
		Expect(calls["info"] + calls["fcall_ro"]).To(BeZero())
		Expect(lines()).To(BeEmpty())
	})
})

var _ = Describe("an eviction policy of several nodes", func() {
	It("is reported once for all of them", func(ctx SpecContext) {
		cluster, err := redistest.StartCluster(3, 0, Calm, "--maxmemory-policy", "volatile-lru")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(cluster.Stop)
		logger, lines := logged()
		l := NewLocker(cluster.Addrs()[0], redislock.Options{Logger: logger})
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			Expect(MustAcquire(ctx, l, name).Release(ctx)).To(Succeed())
		}
		Expect(lines()).To(aboutEviction("volatile-lru", cluster.Addrs()...))
	})
})
