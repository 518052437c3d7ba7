package systemtest

import (
	"context"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// namesOn are names of locks that this node of a cluster has.
func namesOn(c *redistest.Cluster, s *redistest.Server, n int) (names []string) {
	GinkgoHelper()
	for len(names) < n {
		if name := NewName(); c.Owner(KeysOf(name)[0]) == s {
			names = append(names, name)
		}
	}
	return names
}

// wellBelow is when a call whose ctx ends after a second has returned with it. rueidis' own limit is 10 s.
const wellBelow = 5 * time.Second

var _ = Describe("a server that hangs", func() {
	// obeyCtx makes each call with a ctx of a second. The lock was taken before.
	obeyCtx := func(locker *redislock.Locker, lock *redislock.Lock, name string) {
		GinkgoHelper()
		calls := map[string]func(ctx context.Context) error{
			"Acquire":    func(ctx context.Context) error { return Second(locker.Acquire(ctx, name)) },
			"TryAcquire": func(ctx context.Context) error { return Second(locker.TryAcquire(ctx, name)) },
			"Inspect":    func(ctx context.Context) error { return Second(locker.Inspect(ctx, name)) },
			"Reset":      func(ctx context.Context) error { return Second(locker.Reset(ctx, name)) },
			"ResetAll":   func(ctx context.Context) error { return Second(locker.ResetAll(ctx)) },
		}
		if lock != nil {
			calls["Extend"] = func(ctx context.Context) error { return lock.Extend(ctx, time.Minute) }
		}
		var all sync.WaitGroup
		for what, call := range calls {
			all.Go(func() {
				defer GinkgoRecover()
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				failed := make(chan error, 1)
				go func() { failed <- call(ctx) }()
				var err error
				Eventually(failed).WithTimeout(wellBelow).Should(Receive(&err), what)
				// A dial that ends with ctx may be a little faster: it says i/o timeout.
				Expect(err).To(Or(MatchError(context.DeadlineExceeded), MatchError(redislock.ErrUnavailable)), what)
				Expect(err).NotTo(MatchError(redislock.ErrNotAcquired), what)
			})
		}
		all.Wait()
	}

	It("alone: each call returns when its ctx ends", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		client := Connect(s.Addr())
		used, fresh := NewLocker(s.Addr()), NewLocker(s.Addr())
		lock := MustAcquire(ctx, used, "x", redislock.WithLease(time.Minute))
		Expect(Redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		Expect(s.Pause()).To(Succeed())
		DeferCleanup(s.Resume)
		var both sync.WaitGroup
		both.Go(func() { defer GinkgoRecover(); obeyCtx(used, lock, "x") })
		both.Go(func() { defer GinkgoRecover(); obeyCtx(fresh, nil, "x") })
		both.Wait()
		Expect(s.Resume()).To(Succeed())
		Eventually(func() error { return lock.Extend(ctx, time.Minute) }).Should(Succeed())
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("in a cluster: calls for its locks return when their ctx ends", NodeTimeout(time.Minute), func(ctx SpecContext) {
		c := ownCluster(3)
		hung := c.Servers[1]
		names := namesOn(c, hung, 2) // a Reset that was given up arrives later
		used, fresh := NewLocker(c.Servers[0].Addr()), NewLocker(c.Servers[0].Addr())
		lock := MustAcquire(ctx, used, names[0], redislock.WithLease(time.Minute))
		Expect(hung.Pause()).To(Succeed())
		DeferCleanup(hung.Resume)
		var both sync.WaitGroup
		both.Go(func() { defer GinkgoRecover(); obeyCtx(used, lock, names[1]) })
		both.Go(func() { defer GinkgoRecover(); obeyCtx(fresh, nil, names[1]) })
		both.Wait()
		Expect(hung.Resume()).To(Succeed())
		Eventually(func() error { return lock.Extend(ctx, time.Minute) }).Should(Succeed())
		Expect(lock.Release(ctx)).To(Succeed())
	})

	// soon takes a lock, well before rueidis would give up a node that hangs.
	soon := func(ctx context.Context, l *redislock.Locker, name string) (lock *redislock.Lock) {
		GinkgoHelper()
		got := make(chan *redislock.Lock, 1)
		go func() {
			defer GinkgoRecover()
			got <- MustAcquire(ctx, l, name, redislock.WithLease(brief))
		}()
		Eventually(ctx, got).WithTimeout(wellBelow).Should(Receive(&lock), name)
		return lock
	}

	It("in a cluster: locks on the others are granted and kept, though one of them lost the library", NodeTimeout(2*time.Minute), func(ctx SpecContext) {
		c := ownCluster(3)
		flushed, hung := c.Servers[0], c.Servers[1]
		names := append(namesOn(c, flushed, 20), namesOn(c, c.Servers[2], 5)...)
		first := namesOn(c, flushed, 1)[0]
		used, fresh := NewLocker(flushed.Addr()), NewLocker(flushed.Addr())
		var kept []*redislock.Lock
		for _, name := range namesOn(c, flushed, 5) {
			kept = append(kept, MustAcquire(ctx, used, name, redislock.WithLease(brief)))
		}
		Expect(hung.Pause()).To(Succeed())
		DeferCleanup(hung.Resume)

		By("the first use of a Locker")
		Expect(soon(ctx, fresh, first).Release(ctx)).To(Succeed())

		By("the library flushed")
		Expect(flushed.Do("FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		var all sync.WaitGroup
		for _, name := range names {
			all.Go(func() {
				defer GinkgoRecover()
				lock := soon(ctx, used, name)
				before, _ := lock.Deadline()
				Eventually(ctx, func() time.Time { d, _ := lock.Deadline(); return d }).Should(BeTemporally(">", before))
				Expect(lock.Context().Err()).NotTo(HaveOccurred())
				Expect(lock.Release(ctx)).To(Succeed())
			})
		}
		all.Wait()
		for _, lock := range kept {
			Expect(lock.Context().Err()).NotTo(HaveOccurred())
			Expect(lock.Release(ctx)).To(Succeed())
		}
		Expect(hung.Resume()).To(Succeed())
	})
})
