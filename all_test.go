package redislock_test

import (
	"context"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// What goes by time alone is in internal/virtualtest/several_test.go.
var _ = OnEachTopology("AcquireAll", func() {
	var (
		locker, other *redislock.Locker
		a, b, c       string
	)
	BeforeEach(func() {
		locker, other = NewLocker(Server.Addr()), NewLocker(Server.Addr())
		a, b, c = NewName(), NewName()+"\uffee", NewName()+"\U0001f512"
	})

	It("takes locks of several slots, each once, and gives them back", func(ctx SpecContext) {
		locks, err := locker.AcquireAll(ctx, []string{c, a, "{" + a + "}", b}, redislock.WithWait(Soon))
		Expect(err).NotTo(HaveOccurred())
		Expect(locks[1]).To(BeIdenticalTo(locks[2]))
		for i, name := range []string{c, a, a, b} {
			Expect(locks[i].Name()).To(Equal(name))
			Expect(StateOf(other, name).Fence).To(Equal(locks[i].Fence()))
		}
		Expect(Second(other.AcquireAll(ctx, []string{b, a}, redislock.WithWait(0)))).To(MatchError(redislock.ErrNotAcquired))
		for _, i := range []int{0, 1, 3} {
			Expect(locks[i].Release(ctx)).To(Succeed())
		}
		Expect(locker.DoAll(ctx, []string{a, b, c}, func(context.Context, []*redislock.Lock) error { return nil }, redislock.WithWait(Soon))).To(Succeed())
	})

	It("holds none when one cannot be had", func(ctx SpecContext) {
		held := MustAcquire(ctx, other, c)
		got := make(chan error, 1)
		waiting, cancel := context.WithCancel(ctx)
		go func() { got <- Second(locker.AcquireAll(waiting, []string{c, b, a})) }()
		Eventually(WaitingFor(other, c)).Should(Equal(1))
		cancel()
		Eventually(got).Should(Receive(And(MatchError(redislock.ErrNotAcquired), MatchError(context.Canceled))))
		for _, name := range []string{a, b} {
			Expect(StateOf(other, name).Held).To(BeZero())
		}
		Expect(StateOf(other, c).Waiting).To(BeZero())
		Expect(held.Release(ctx)).To(Succeed())
	})

	It("makes no circle of waits, in whatever order the names come", func(ctx SpecContext) {
		var inside, rounds atomic.Int64
		done := make(chan error, 4)
		for i, names := range [][]string{{a, b, c}, {c, b, "{" + a + "}"}, {b, a}, {"{" + c + "}", a}} {
			l := []*redislock.Locker{locker, other}[i%2]
			go func() {
				var err error
				for range 50 {
					if err == nil {
						err = l.DoAll(ctx, names, func(context.Context, []*redislock.Lock) error {
							defer inside.Add(-1)
							if n := inside.Add(1); n != 1 {
								rounds.Add(-1000)
							}
							rounds.Add(1)
							return nil
						}, redislock.WithWait(Soon))
					}
				}
				done <- err
			}()
		}
		for range 4 {
			Eventually(done).Should(Receive(BeNil()))
		}
		Expect(rounds.Load()).To(BeEquivalentTo(200), "all of them name a")
	})
})
