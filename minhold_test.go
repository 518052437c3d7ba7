package redislock_test

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// What goes by time alone is in internal/virtualtest/minhold_test.go.
var _ = OnEachTopology("WithMinHold", func() {
	var (
		locker, other *redislock.Locker
		name          string
	)
	BeforeEach(func() {
		locker, other = NewLocker(Server.Addr()), NewLocker(Server.Addr())
		name = NewName()
	})

	DescribeTable("keeps the lock from everybody else", func(ctx SpecContext, end func(context.Context, *redislock.Locker, *redislock.Lock)) {
		lock := MustAcquire(ctx, locker, name, redislock.WithMinHold(time.Minute), redislock.WithLease(time.Second))
		end(ctx, locker, lock)
		Expect(lock.Context().Err()).To(HaveOccurred())
		Expect(Second(other.TryAcquire(ctx, name))).To(MatchError(redislock.ErrNotAcquired))
		state := StateOf(other, name)
		Expect(state.Holder).To(Equal(lock.Token()))
		Expect(state.TTL).To(BeNumerically("~", time.Minute, 20*time.Second))
	},
		Entry("after Release", func(ctx context.Context, _ *redislock.Locker, lock *redislock.Lock) {
			Expect(lock.Release(ctx)).To(Succeed())
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		}),
		Entry("after a Release whose ctx has ended", func(ctx context.Context, _ *redislock.Locker, lock *redislock.Lock) {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			Expect(lock.Release(ended)).To(Succeed())
		}),
		Entry("after Close", func(_ context.Context, l *redislock.Locker, _ *redislock.Lock) { l.Close() }),
	)

	It("is known to the server before a handed-over lock is used", func(ctx SpecContext) {
		held := MustAcquire(ctx, other, name)
		got := Acquiring(ctx, locker, name, 1, redislock.WithMinHold(time.Minute))
		Expect(held.Release(ctx)).To(Succeed())
		Eventually(got).Should(Receive())
		Expect(StateOf(other, name).TTL).To(BeNumerically("~", time.Minute, 20*time.Second))
	})

	It("is not cut short by a signal that comes late", func(ctx SpecContext) {
		client := Connect(Server.Addr())
		held := MustAcquire(ctx, other, name)
		got := Acquiring(ctx, locker, name, 1, redislock.WithMinHold(time.Minute))
		next := Acquiring(ctx, locker, name, 2)
		Expect(held.Release(ctx)).To(Succeed())
		var lock *redislock.Lock
		Eventually(got).Should(Receive(&lock))
		Expect(lock.Release(ctx)).To(Succeed())

		list := StateOf(other, name).Waiters[0].Signal
		Redis(client, "RPUSH", list, fmt.Sprint(lock.Fence(), " ", time.Now().Add(time.Second).UnixMilli(), " ", lock.Token()))
		Eventually(func() (int64, error) { return Redis(client, "LLEN", list).ToInt64() }).Should(BeZero())
		Consistently(next, "100ms").ShouldNot(Receive())
		Expect(StateOf(other, name).Holder).To(Equal(lock.Token()))
		Expect(other.Reset(ctx, name)).To(BeTrue())
		Eventually(next).Should(Receive())
	})
})
