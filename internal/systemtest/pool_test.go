package systemtest

import (
	"context"
	"math"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = Describe("the end of a call", func() {
	It("Acquire WithReplicas heeds ctx although the blocking pool is full", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		client := Connect(s.Addr(), func(o *rueidis.ClientOption) { o.BlockingPoolSize = 1 })
		locker, err := redislock.New(client, redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(locker.Close)
		Expect(MustAcquire(ctx, locker, "x").Release(ctx)).To(Succeed())
		_, giveBack := client.Dedicate()
		DeferCleanup(giveBack)

		ending, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		failed := make(chan error, 1)
		go func() {
			_, err := locker.Acquire(ending, "x", redislock.WithReplicas(1, Soon))
			failed <- err
		}()
		Eventually(failed).WithTimeout(wellBelow).Should(Receive(MatchError(context.DeadlineExceeded)))
		Expect(StateOf(locker, "x").Holder).To(BeEmpty(), "it was given back before")
	})

	It("a second Close waits for the first one; Release beside them returns nil", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		network := NewProxy(s.Addr())
		observer := NewLocker(s.Addr())
		locker, err := redislock.New(Connect(network.Addr()), redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		lock := MustAcquire(ctx, locker, "x")
		network.SetDelay(200 * time.Millisecond) // so long does the release take to arrive
		first := make(chan struct{})
		go func() {
			locker.Close()
			close(first)
		}()
		<-lock.Context().Done()
		Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrClosed))
		released := make(chan error, 1)
		go func() { released <- lock.Release(ctx) }()
		locker.Close()
		Expect(StateOf(observer, "x").Holder).To(BeEmpty())
		Eventually(first).Should(BeClosed())
		Eventually(released).Should(Receive(BeNil()))
		network.SetDelay(0)
	})

	It("a lease of the largest Duration is refused before anything is sent", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		const forever = time.Duration(math.MaxInt64)
		locker := NewLocker(s.Addr())
		lock := MustAcquire(ctx, locker, "x")
		before := StateOf(locker, "x")
		client := Connect(s.Addr())
		Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
		for _, err := range []error{
			Second(locker.Acquire(ctx, "y", redislock.WithLease(forever))),
			Second(locker.TryAcquire(ctx, "y", redislock.WithLease(forever))),
			lock.Extend(ctx, forever),
			Second(redislock.New(client, redislock.Options{Lease: forever})),
		} {
			Expect(err).To(MatchError(And(ContainSubstring("a lease of "), ContainSubstring("at most"), ContainSubstring("WithoutExpiry"))))
		}
		Expect(CommandCalls(client)).NotTo(HaveKey("fcall"))
		Expect(lock.Context().Err()).NotTo(HaveOccurred())
		Expect(StateOf(locker, "x").Holder).To(Equal(before.Holder))
		Expect(lock.Release(ctx)).To(Succeed())
	})
})

var _ = Describe("a client that is told that it talks to a single server", func() {
	It("in front of a cluster of one node: acquire, wait and hand-over work", NodeTimeout(time.Minute), func(ctx SpecContext) {
		c := ownCluster(1)
		var lockers []*redislock.Locker
		for range 2 {
			locker, err := redislock.New(Directly(c.Servers[0].Addr()), redislock.Options{})
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(locker.Close)
			lockers = append(lockers, locker)
		}
		names := []string{NewName(), NewName(), NewName()}
		held := map[string]*redislock.Lock{}
		waiting := map[string][]<-chan *redislock.Lock{}
		for _, name := range names {
			held[name] = MustAcquire(ctx, lockers[0], name)
			for i := range 4 {
				waiting[name] = append(waiting[name], Acquiring(ctx, lockers[i%2], name, i+1))
			}
		}
		for _, name := range names {
			lock := held[name]
			for _, next := range waiting[name] {
				Expect(lock.Release(ctx)).To(Succeed())
				Eventually(next).Should(Receive(&lock))
			}
			Expect(lock.Release(ctx)).To(Succeed())
		}
	})
})
