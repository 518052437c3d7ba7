package redislock_test

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("WithQueueLimit", func() {
	It("returns ErrQueueFull if so many wait already, and leaves the queue", func(ctx SpecContext) {
		locker, other, name := NewLocker(Server.Addr()), NewLocker(Server.Addr()), NewName()
		held := MustAcquire(ctx, other, name, redislock.WithQueueLimit(0))
		Expect(Second(locker.Acquire(ctx, name, redislock.WithQueueLimit(0)))).To(And(MatchError(redislock.ErrQueueFull), MatchError(redislock.ErrNotAcquired)))
		first := Acquiring(ctx, other, name, 1)
		second := Acquiring(ctx, locker, name, 2, redislock.WithQueueLimit(2))
		Expect(Second(locker.Acquire(ctx, name, redislock.WithQueueLimit(2)))).To(MatchError(redislock.ErrQueueFull))
		Eventually(WaitingFor(other, name)).Should(Equal(2))
		Expect(held.Release(ctx)).To(Succeed())
		Expect(soon(first).Release(ctx)).To(Succeed())
		Expect(soon(second).Release(ctx)).To(Succeed())
	})

	It("goes by the first answer: a waiter whose place was lost waits on", func(ctx SpecContext) {
		locker := NewLocker(Server.Addr())
		l := libraryAt(ctx, Server.Addr())
		name := strings.TrimPrefix(l.Lock, "lock:")
		l.Contended()
		got := make(chan error, 1)
		go func() {
			lock, err := locker.Acquire(ctx, name, redislock.WithQueueLimit(1))
			if err == nil {
				err = lock.Release(ctx)
			}
			got <- err
		}()
		Eventually(WaitingFor(locker, name)).Should(Equal(1))
		l.Pipeline([]string{"DEL", l.Queue}, l.Command("lock_acquire", "a", Long, Long), l.Command("lock_acquire", "b", Long, Long))
		Eventually(WaitingFor(locker, name)).Should(Equal(3))
		for _, token := range []string{"h", "a", "b"} {
			Expect(l.Release(token)).To(Equal(int64(1)))
		}
		Eventually(got).Should(Receive(BeNil()))
	})
})
