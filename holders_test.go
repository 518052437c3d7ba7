package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// The client of a lock that is held together. The rules are in shared_test.go, what goes by time alone in
// internal/virtualtest/together_test.go.
var _ = OnEachTopology("WithHolders and WithShared", func() {
	var (
		locker, other *redislock.Locker
		name          string
		three, reader = redislock.WithHolders(3), redislock.WithShared()
	)
	BeforeEach(func() {
		locker, other = NewLocker(Server.Addr()), NewLocker(Server.Addr())
		name = NewName()
	})

	It("let n hold the lock, with one fence, and the next one when one leaves", func(ctx SpecContext) {
		locks := []*redislock.Lock{take(ctx, locker, name, three), take(ctx, other, name, three), take(ctx, other, name, three)}
		next := Acquiring(ctx, locker, name, 1, three)
		Expect(Second(other.TryAcquire(ctx, name, three))).To(MatchError(redislock.ErrNotAcquired))
		state := StateOf(other, name)
		Expect(state.Held).To(Equal(3))
		Expect(state.Waiters[0].Holders).To(Equal(3))
		tokens := []string{}
		for _, h := range state.Holders {
			tokens = append(tokens, h.Token)
			Expect(h.TTL).To(BeNumerically("~", 10*time.Second, 9*time.Second))
		}
		for _, lock := range locks {
			Expect(tokens).To(ContainElement(lock.Token()))
			Expect(lock.Fence()).To(Equal(state.Fence))
		}
		Expect(locks[1].Release(ctx)).To(Succeed())
		Expect(soon(next).Release(ctx)).To(Succeed())
		Expect(locks[0].Release(ctx)).To(Succeed())
		Expect(locks[2].Release(ctx)).To(Succeed())
		Expect(StateOf(other, name)).To(And(HaveField("Held", 0), HaveField("Holders", BeEmpty())))
	})

	It("show one holder alone among the holders, too", func(ctx SpecContext) {
		lock := take(ctx, locker, name)
		state := StateOf(other, name)
		Expect(state.Held).To(Equal(1))
		Expect(state.Holders).To(Equal([]redislock.Holder{{Token: lock.Token(), TTL: state.TTL}}))
		next := Acquiring(ctx, other, name, 1)
		Expect(StateOf(other, name).Waiters[0].Holders).To(Equal(1))
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(next).Should(Receive())
	})

	It("do not let a reader overtake a writer that waits", func(ctx SpecContext) {
		first := take(ctx, locker, name, reader)
		writer := Acquiring(ctx, other, name, 1)
		second := Acquiring(ctx, locker, name, 2, reader)
		Expect(Second(locker.TryAcquire(ctx, name, reader))).To(MatchError(redislock.ErrNotAcquired))
		Expect(first.Release(ctx)).To(Succeed())
		var w *redislock.Lock
		Eventually(writer).Should(Receive(&w))
		Consistently(second, "20ms").ShouldNot(Receive())
		Expect(w.Release(ctx)).To(Succeed())
		r := soon(second)
		Expect(r.Fence()).To(BeNumerically(">", w.Fence()))
		Expect(r.Release(ctx)).To(Succeed())
	})

	It("renew, extend and lose each share by itself", func(ctx SpecContext) {
		short := take(ctx, locker, name, three, redislock.WithLease(time.Second), redislock.WithoutRenewal())
		long := take(ctx, other, name, three, redislock.WithLease(time.Minute))
		forever := take(ctx, other, name, three, redislock.WithoutExpiry())
		fourth := Acquiring(ctx, locker, name, 1, three)
		Eventually(short.Context().Done()).Should(BeClosed())
		Expect(context.Cause(short.Context())).To(MatchError(redislock.ErrLost))
		Eventually(fourth).Should(Receive())
		Expect(long.Extend(ctx, 2*time.Minute)).To(Succeed())
		Expect(StateOf(other, name).TTL).To(Equal(time.Duration(-1)))
		Expect(forever.Release(ctx)).To(Succeed())
		Expect(StateOf(other, name).TTL).To(BeNumerically("~", 2*time.Minute, 30*time.Second))
		Expect(long.Release(ctx)).To(Succeed())
	})

	It("are taken from all by Reset and ResetAll", func(ctx SpecContext) {
		l := NewLocker(Server.Addr(), redislock.Options{Prefix: name})
		for _, reset := range []func(){
			func() { Expect(l.Reset(ctx, name)).To(BeTrue()) },
			func() { Expect(l.ResetAll(ctx)).To(Equal(1)) },
		} {
			locks := []*redislock.Lock{take(ctx, l, name, reader), take(ctx, l, name, reader)}
			reset()
			for _, lock := range locks {
				Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
			}
			Expect(StateOf(l, name).Held).To(BeZero())
		}
	})

	It("go on with a token in another process, and make no second share", func(ctx SpecContext) {
		mine := redislock.WithToken(name)
		lock := take(ctx, locker, name, three, mine)
		lock.Detach()
		joined := take(ctx, other, name, three, mine)
		Expect(StateOf(other, name).Held).To(Equal(1))
		Expect(joined.Fence()).To(Equal(lock.Fence()))
		Expect(joined.Release(ctx)).To(Succeed())
	})

	It("start n per period with a minimum hold, whatever becomes of them", func(ctx SpecContext) {
		minHold := redislock.WithMinHold(time.Minute)
		for range 3 {
			Expect(take(ctx, locker, name, three, minHold).Release(ctx)).To(Succeed())
		}
		Expect(Second(other.TryAcquire(ctx, name, three, minHold))).To(MatchError(redislock.ErrNotAcquired))
		Expect(StateOf(other, name).Held).To(Equal(3))
	})

	It("let in all of the readers that wait behind a writer, in one process", func(ctx SpecContext) {
		const readers = 3000
		writer := take(ctx, other, name)
		crowd := NewLocker(Server.Addr())
		var got, failed atomic.Int64
		var all sync.WaitGroup
		waiting, stop := context.WithCancel(ctx)
		defer all.Wait()
		defer stop()
		for range readers {
			all.Go(func() {
				if _, err := crowd.Acquire(waiting, name, reader, redislock.WithLease(time.Minute)); err == nil {
					got.Add(1)
				} else {
					failed.Add(1)
				}
			})
		}
		Eventually(WaitingFor(other, name)).Should(Equal(readers))
		start := time.Now()
		Expect(writer.Release(ctx)).To(Succeed())
		Eventually(got.Load).Should(BeEquivalentTo(readers))
		AddReportEntry("all in after", time.Since(start))
		Expect(StateOf(other, name).Waiting).To(BeZero())
		Expect(failed.Load()).To(BeZero())
	})

	It("never let in more than may hold it, while holders die, and have room for all again", func(ctx SpecContext) {
		var permits, writers atomic.Int64
		var all sync.WaitGroup
		errs := make(chan error, 1000)
		for i := range 8 {
			all.Go(func() {
				for round := range 12 {
					count, opt := &permits, three
					if (i+round)%5 == 0 {
						count, opt = &writers, redislock.WithHolders(1)
					}
					dies := round%4 == 0
					lease := redislock.WithLease(time.Second)
					err := locker.Do(ctx, name, func(_ context.Context, lock *redislock.Lock) error {
						defer count.Add(-1)
						count.Add(1)
						if p, w := permits.Load(), writers.Load(); p > 3 || w > 1 || w == 1 && p > 0 {
							return fmt.Errorf("%d with a permit, %d writers", p, w)
						}
						if dies {
							lock.Detach() // nobody renews it or gives it back
							return errDied
						}
						return nil
					}, opt, lease)
					if err != nil && !errors.Is(err, errDied) {
						errs <- err
					}
				}
			})
		}
		all.Wait()
		Expect(errs).NotTo(Receive())
		for range 3 {
			take(ctx, other, name, three)
		}
	})
})

var errDied = errors.New("it died")

// soon is the lock that comes.
func soon(got <-chan *redislock.Lock) (lock *redislock.Lock) {
	GinkgoHelper()
	Eventually(got).Should(Receive(&lock))
	return lock
}

// take is MustAcquire with a bound.
func take(ctx context.Context, l *redislock.Locker, name string, opts ...redislock.Option) *redislock.Lock {
	GinkgoHelper()
	return MustAcquire(ctx, l, name, append(opts, redislock.WithWait(Soon))...)
}
