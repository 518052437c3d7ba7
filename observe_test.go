package redislock_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/proxy"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// observer remembers what Options.Observe was told.
type observer struct {
	mu     sync.Mutex
	events []redislock.Event
	ctxs   []context.Context
}

func (o *observer) observe(ctx context.Context, e redislock.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events, o.ctxs = append(o.events, e), append(o.ctxs, ctx)
}

func (o *observer) seen() []redislock.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]redislock.Event(nil), o.events...)
}

func (o *observer) kinds() (kinds []redislock.EventKind) {
	for _, e := range o.seen() {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

var _ = OnEachTopology("Options.Observe", func() {
	const (
		acquired    = redislock.EventAcquired
		notAcquired = redislock.EventNotAcquired
		released    = redislock.EventReleased
		lost        = redislock.EventLost
	)
	var (
		client   rueidis.Client
		observed *observer
		locker   *redislock.Locker
		other    *redislock.Locker // nobody observes it
		name     string
	)
	BeforeEach(func() {
		client = Connect(Server.Addr())
		observed = &observer{}
		locker = NewLocker(Server.Addr(), redislock.Options{Observe: observed.observe})
		other = NewLocker(Server.Addr())
		name = NewName()
	})
	takeAway := func() { Expect(Second(other.Reset(context.Background(), name))).To(Succeed()) }

	It("is told of a lock that was free, with the values of Acquire's ctx and not its end", func(ctx SpecContext) {
		waiting, cancel := context.WithCancel(context.WithValue(ctx, ctxKey("k"), "v"))
		before := time.Now()
		lock := MustAcquire(waiting, locker, name)
		called := time.Since(before)
		cancel()
		Expect(observed.kinds()).To(HaveExactElements(acquired), "before Acquire returns")
		Consistently(lock.Context().Done(), "20ms").ShouldNot(BeClosed())
		Expect(lock.Release(ctx)).To(Succeed())
		e := observed.seen()
		Expect(e).To(HaveLen(2))
		Expect(e[0].Waited).To(And(BeNumerically(">", 0), BeNumerically("<=", called)))
		Expect(e[1].Held).To(BeNumerically(">=", 20*time.Millisecond))
		Expect(e[0]).To(Equal(redislock.Event{Kind: acquired, Name: name, Token: lock.Token(), Fence: lock.Fence(), Waited: e[0].Waited}))
		Expect(e[1]).To(Equal(redislock.Event{Kind: released, Name: name, Token: lock.Token(), Fence: lock.Fence(), Held: e[1].Held}))
		for _, ctx := range observed.ctxs {
			Expect(ctx.Value(ctxKey("k"))).To(Equal("v"))
			Expect(ctx.Err()).NotTo(HaveOccurred())
		}
	})

	It("is told by the receiver that a lock was handed over, and how long it waited", func(ctx SpecContext) {
		first := MustAcquire(ctx, other, name)
		next := Acquiring(ctx, locker, name, 1)
		Consistently(next, "20ms").ShouldNot(Receive())
		began := time.Now()
		Expect(first.Release(ctx)).To(Succeed())
		lock := <-next
		e := observed.seen()
		Expect(e).To(HaveLen(1))
		Expect(e[0].HandedOver).To(BeTrue())
		Expect(e[0].Waited).To(BeNumerically(">=", 20*time.Millisecond))
		Expect(e[0].Fence).To(And(Equal(lock.Fence()), BeNumerically(">", first.Fence())))
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(observed.kinds()).To(HaveExactElements(acquired, released))
		Expect(observed.seen()[1].Held).To(BeNumerically("<=", time.Since(began)), "not while it waited")
	})

	It("is told why a wait or a try ended without the lock: what the call returned", func(ctx SpecContext) {
		lock := MustAcquire(ctx, other, name)
		_, busy := locker.TryAcquire(ctx, name)
		_, late := locker.Acquire(ctx, name, redislock.WithWait(20*time.Millisecond))
		waiting, cancel := context.WithCancel(ctx)
		cancel()
		_, ended := locker.Acquire(waiting, name)
		doing := locker.Do(waiting, name, nil)
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(Redis(client, "LPUSH", KeysOf(name)[0], "x").Error()).NotTo(HaveOccurred())
		_, wrong := locker.Acquire(ctx, name)
		Expect(Redis(client, "DEL", KeysOf(name)[0]).Error()).NotTo(HaveOccurred())

		Expect(busy).To(MatchError(redislock.ErrNotAcquired))
		Expect(late).To(MatchError(context.DeadlineExceeded))
		Expect(wrong).To(MatchError(ContainSubstring("WRONGTYPE")))
		e := observed.seen()
		Expect(e).To(HaveLen(5))
		for i, err := range []error{busy, late, ended, doing, wrong} {
			Expect(err).To(HaveOccurred())
			Expect(e[i].Token).NotTo(BeEmpty())
			Expect(e[i]).To(Equal(redislock.Event{Kind: notAcquired, Name: name, Token: e[i].Token, Waited: e[i].Waited, Err: err}))
		}
		Expect(e[1].Waited).To(BeNumerically(">=", 20*time.Millisecond))
	})

	It("is not told of calls that are refused at once", func(ctx SpecContext) {
		Expect(Second(locker.Acquire(ctx, ""))).NotTo(Succeed())
		Expect(Second(locker.TryAcquire(ctx, name, redislock.WithLease(0)))).NotTo(Succeed())
		locker.Close()
		Expect(Second(locker.Acquire(ctx, name))).To(MatchError(redislock.ErrClosed))
		Expect(observed.seen()).To(BeEmpty())
	})

	// Each lock that was acquired ends once, and Context says the same of it.
	DescribeTable("is told of one end of a lock",
		func(ctx SpecContext, opts []redislock.Option, end func(context.Context, *redislock.Lock), kind redislock.EventKind, reason, cause error) {
			lock := MustAcquire(ctx, locker, name, opts...)
			end(ctx, lock)
			Eventually(observed.kinds).Should(HaveExactElements(acquired, kind))
			Expect(context.Cause(lock.Context())).To(MatchError(cause))
			last := observed.seen()[1]
			Expect(last.Held).To(BeNumerically(">", 0))
			Expect(last.Fence).To(Equal(lock.Fence()))
			Expect(last.Waited).To(BeZero())
			if reason == nil {
				Expect(last.Err).NotTo(HaveOccurred())
			} else {
				Expect(last.Err).To(MatchError(reason))
			}
			_ = lock.Release(ctx)
			_ = lock.Extend(ctx, time.Second)
			locker.Close()
			Expect(observed.seen()).To(HaveLen(2))
		},
		Entry("Release", nil, func(ctx context.Context, lock *redislock.Lock) {
			Expect(lock.Release(ctx)).To(Succeed())
		}, released, nil, context.Canceled),
		Entry("Close", nil, func(context.Context, *redislock.Lock) {
			locker.Close()
			Expect(observed.seen()).To(HaveLen(2), "before it returns")
		}, released, nil, redislock.ErrClosed),
		Entry("renewal finds it lost", []redislock.Option{redislock.WithLease(600 * time.Millisecond)}, func(context.Context, *redislock.Lock) {
			takeAway()
		}, lost, redislock.ErrLost, redislock.ErrLost),
		Entry("Extend finds it lost", nil, func(ctx context.Context, lock *redislock.Lock) {
			takeAway()
			Expect(lock.Extend(ctx, time.Second)).To(MatchError(redislock.ErrNotHeld))
			Expect(observed.seen()).To(HaveLen(2), "before it returns")
		}, lost, redislock.ErrLost, redislock.ErrLost),
		Entry("Release finds it lost", nil, func(ctx context.Context, lock *redislock.Lock) {
			takeAway()
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		}, lost, redislock.ErrNotHeld, context.Canceled),
		Entry("Release finds it lost, without expiry", []redislock.Option{redislock.WithoutExpiry()}, func(ctx context.Context, lock *redislock.Lock) {
			takeAway()
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		}, lost, redislock.ErrNotHeld, context.Canceled),
		Entry("Close finds it lost", nil, func(context.Context, *redislock.Lock) {
			takeAway()
			locker.Close()
		}, lost, redislock.ErrNotHeld, redislock.ErrClosed),
		Entry("the lease is over", []redislock.Option{redislock.WithLease(300 * time.Millisecond), redislock.WithoutRenewal()},
			func(context.Context, *redislock.Lock) {}, lost, redislock.ErrLost, redislock.ErrLost),
		Entry("the maximum hold is over", []redislock.Option{redislock.WithMaxHold(300 * time.Millisecond)},
			func(context.Context, *redislock.Lock) {}, lost, redislock.ErrLost, redislock.ErrLost),
	)

	It("is told what Release returned, if an Extend beside it finds the lock gone", func(ctx SpecContext) {
		var want []redislock.EventKind
		for range 200 {
			lock := MustAcquire(ctx, locker, name)
			extended := make(chan error)
			go func() { extended <- lock.Extend(ctx, time.Minute) }()
			Expect(lock.Release(ctx)).To(Succeed())
			<-extended
			want = append(want, acquired, released)
		}
		Expect(observed.kinds()).To(Equal(want))
	})

	It("is told of the lock of Do, whatever fn does", func(ctx SpecContext) {
		Expect(locker.Do(ctx, name, func(ctx context.Context, lock *redislock.Lock) error { return lock.Release(ctx) })).To(Succeed())
		Expect(func() {
			_ = locker.Do(ctx, name, func(context.Context, *redislock.Lock) error { panic("!") })
		}).To(PanicWith("!"))
		outer, cancel := context.WithCancel(ctx)
		Expect(locker.Do(outer, name, func(ctx context.Context, _ *redislock.Lock) error {
			cancel()
			<-ctx.Done()
			return nil
		})).To(Succeed())
		Expect(locker.Do(ctx, name, func(context.Context, *redislock.Lock) error {
			takeAway()
			return nil
		})).To(MatchError(redislock.ErrLost))
		Expect(observed.kinds()).To(HaveExactElements(acquired, released, acquired, released, acquired, released, acquired, lost))
	})

	It("is told of each Lock with the caller's own token", func(ctx SpecContext) {
		lock, same := MustAcquire(ctx, locker, name, redislock.WithToken(name)), MustAcquire(ctx, locker, name, redislock.WithToken(name))
		Expect(same.Release(ctx)).To(Succeed())
		Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		Expect(observed.kinds()).To(HaveExactElements(acquired, acquired, released, lost))
		Expect(observed.seen()[1].HandedOver).To(BeFalse())
	})

	It("is told of those who wait when the Locker is closed", func(ctx SpecContext) {
		lock := MustAcquire(ctx, other, name)
		next := Acquiring(ctx, locker, name, 1)
		locker.Close()
		Expect(observed.kinds()).To(HaveExactElements(notAcquired), "before it returns")
		Expect(observed.seen()[0].Err).To(MatchError(redislock.ErrClosed))
		Eventually(next).Should(BeClosed())
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("is not told that a lock was acquired that no replica confirmed", func(ctx SpecContext) {
		_, few := locker.Acquire(ctx, name, redislock.WithReplicas(9, 20*time.Millisecond))
		Expect(few).To(MatchError(redislock.ErrNotReplicated))
		_, over := locker.Acquire(ctx, name, redislock.WithReplicas(9, 600*time.Millisecond), redislock.WithMaxHold(300*time.Millisecond))
		Expect(over).To(MatchError(redislock.ErrLost))
		e := observed.seen()
		Expect(observed.kinds()).To(HaveExactElements(notAcquired, notAcquired))
		Expect(e[0].Err).To(BeIdenticalTo(few))
		Expect(e[0].Waited).To(BeNumerically(">=", 20*time.Millisecond))
		Expect(e[0].Fence).To(BeZero())
		Expect(e[1].Err).To(BeIdenticalTo(over))
	})

	It("is told of one event after the other", func(ctx SpecContext) {
		var kinds []redislock.EventKind // without a mutex: the race detector looks
		l := NewLocker(Server.Addr(), redislock.Options{Observe: func(_ context.Context, e redislock.Event) {
			if e.Kind == acquired { // until it is lost
				Eventually(func() bool {
					return Redis(client, "EXISTS", KeysOf(name)[0]).Error() == nil && StateOf(other, name).Holder == ""
				}).
					Should(BeTrue())
				Consistently(func() int { return len(kinds) }, "20ms").Should(BeZero())
			}
			kinds = append(kinds, e.Kind)
		}})
		lock := MustAcquire(ctx, l, name, redislock.WithLease(300*time.Millisecond), redislock.WithoutRenewal())
		<-lock.Context().Done()
		l.Close() // which waits for what is told
		Expect(kinds).To(HaveExactElements(acquired, lost))
	})

	It("may hang: the Contexts of other locks end all the same, and its own has ended before", func(ctx SpecContext) {
		var first *redislock.Lock
		told, goOn := make(chan error, 1), make(chan struct{})
		l := NewLocker(Server.Addr(), redislock.Options{Observe: func(_ context.Context, e redislock.Event) {
			if e.Kind == lost && e.Name == name {
				told <- first.Context().Err()
				<-goOn
			}
		}})
		defer close(goOn)
		first = MustAcquire(ctx, l, name, redislock.WithLease(500*time.Millisecond), redislock.WithoutRenewal())
		second := MustAcquire(ctx, l, NewName(), redislock.WithLease(time.Second), redislock.WithoutRenewal())
		Eventually(told).Should(Receive(HaveOccurred()))
		Eventually(second.Context().Done()).Should(BeClosed())
		Expect(context.Cause(second.Context())).To(MatchError(redislock.ErrLost))
	})

	It("may panic: nobody has the lock then", func(ctx SpecContext) {
		panics := acquired
		l := NewLocker(Server.Addr(), redislock.Options{Observe: func(ctx context.Context, e redislock.Event) {
			observed.observe(ctx, e)
			if e.Kind == panics {
				panic(e.Kind)
			}
		}})
		Expect(func() { _, _ = l.Acquire(ctx, name) }).To(PanicWith(acquired))
		Expect(observed.kinds()).To(HaveExactElements(acquired, released))
		panics = released
		lock := MustAcquire(ctx, l, name)
		Expect(func() { _ = lock.Release(ctx) }).To(PanicWith(released))
		Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		panics = notAcquired
		lock = MustAcquire(ctx, other, name)
		Expect(func() { _, _ = l.TryAcquire(ctx, name) }).To(PanicWith(notAcquired))
		Expect(lock.Release(ctx)).To(Succeed())
		l.Close()
		Expect(observed.kinds()).To(HaveExactElements(acquired, released, acquired, released, notAcquired))
	})

	Describe("through a network", func() {
		var network *proxy.Proxy
		BeforeEach(func() {
			network = NewProxy(OwnRedis().Addr())
			locker = NewLocker(network.Addr(), redislock.Options{Observe: observed.observe})
		})
		It("that is silent, is told that the release was not answered, once", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name)
			network.BlackHole(true)
			err := lock.Release(ctx)
			Expect(err).To(HaveOccurred())
			network.BlackHole(false)
			network.CutAll()
			Expect(observed.kinds()).To(HaveExactElements(acquired, released))
			Expect(observed.seen()[1].Err).To(BeIdenticalTo(err))
			_ = lock.Release(ctx)
			Expect(observed.seen()).To(HaveLen(2))
		})
		It("that lost the reply of a release, is told that it was released", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name)
			dropped := network.DropReply(Containing("lock_release"))
			Expect(lock.Release(ctx)).To(Succeed())
			Expect(dropped).To(BeClosed())
			Expect(observed.kinds()).To(HaveExactElements(acquired, released))
			Expect(observed.seen()[1].Err).NotTo(HaveOccurred())
		})
	})
})

var _ = Describe("Event", func() {
	It("is shown by slog without the token", func(ctx SpecContext) {
		var log bytes.Buffer
		tell := redislock.LogEvents(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		})))
		e := redislock.Event{Name: "orders", Token: "secret", Fence: 7}
		for _, change := range []func(){
			func() { e.Kind, e.Waited, e.HandedOver = redislock.EventAcquired, time.Second, true },
			func() { e.Kind, e.Waited, e.Held = redislock.EventReleased, 0, time.Minute },
			func() { e.Err = errors.New("no answer") },
			func() { e.Kind, e.Err = redislock.EventLost, redislock.ErrLost },
			func() {
				e = redislock.Event{Kind: redislock.EventNotAcquired, Name: "orders", Token: "secret", Err: redislock.ErrNotAcquired}
			},
			func() { e.Kind = 0 },
		} {
			change()
			tell(ctx, e)
		}
		Expect(log.String()).To(Equal(`level=INFO msg=redislock lock.event=acquired lock.name=orders lock.fence=7 lock.waited=1s lock.handed_over=true
level=INFO msg=redislock lock.event=released lock.name=orders lock.fence=7 lock.held=1m0s
level=WARN msg=redislock lock.event=released lock.name=orders lock.fence=7 lock.held=1m0s lock.error="no answer"
level=WARN msg=redislock lock.event=lost lock.name=orders lock.fence=7 lock.held=1m0s lock.error="lease lost"
level=INFO msg=redislock lock.event="not acquired" lock.name=orders lock.waited=0s lock.error="not acquired"
level=INFO msg=redislock lock.event=unknown lock.name=orders lock.held=0s lock.error="not acquired"
`))
	})
})
