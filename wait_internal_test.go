package redislock

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/redistest"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

// What has to happen at the same moment for these to be seen from outside is made to happen here.
var _ = Describe("a waiter", func() {
	var l *Locker
	BeforeEach(func() {
		server, err := redistest.Start()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(server.Stop)
		client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr()}, DisableCache: true})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(client.Close)
		l, err = New(client, Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(l.Close)
	})

	// begun is a waiter for the lock "x" whose first call was answered.
	begun := func(ctx context.Context) *waiter {
		w := &waiter{request: l.opts.request("acquire"), l: l, caller: ctx, ctx: ctx, ended: make(chan struct{})}
		w.begin("x")
		return w
	}

	It("that is granted the lock when its ctx ends gives it back", func(ctx SpecContext) {
		short, cancel := context.WithCancel(ctx)
		w := begun(short)
		Expect(w.ended).To(BeClosed())
		Expect(w.err).NotTo(HaveOccurred())
		cancel()
		w.quit()
		Expect(w.result()).Error().To(And(MatchError(ErrUnavailable), MatchError(context.Canceled)))
		Expect(l.Inspect(ctx, "x")).To(HaveField("Holder", ""))
	})

	It("whose lock another process goes on with does not give it up again", func(ctx SpecContext) {
		for _, detach := range []bool{true, false} {
			first, err := l.Acquire(ctx, "x")
			Expect(err).NotTo(HaveOccurred())
			w := begun(ctx)
			Expect(first.Release(ctx)).To(Succeed())
			Eventually(w.ended).Should(BeClosed())
			lock, err := w.result()
			Expect(err).NotTo(HaveOccurred())
			if detach {
				lock.Detach()
			}
			Expect(detach || lock.Release(ctx) == nil).To(BeTrue())
			l.hub.mu.Lock()
			_, past := l.hub.past[lock.Token()]
			l.hub.mu.Unlock()
			Expect(past).To(Equal(!detach))
			Expect(l.Reset(ctx, "x")).To(Equal(detach))
		}
	})

	It("that comes while the Locker is being closed is refused", func(ctx SpecContext) {
		l.hub.refuse()
		w := begun(ctx)
		Expect(w.ended).To(BeClosed())
		Expect(w.result()).Error().To(MatchError(ErrClosed))
	})

	Describe("that is told of a hand-over while it checks in", func() {
		var w *waiter
		var told wire.Signal
		BeforeEach(func(ctx SpecContext) {
			lock, err := l.Acquire(ctx, "x")
			Expect(err).NotTo(HaveOccurred())
			w = begun(ctx)
			Expect(w.ended).NotTo(BeClosed())
			state, err := l.Inspect(ctx, "x")
			Expect(err).NotTo(HaveOccurred())
			l.hub.mu.Lock()
			defer l.hub.mu.Unlock()
			told = wire.Signal{Fence: state.Fence + 1, Deadline: w.clock.now + time.Since(w.clock.at).Milliseconds() + handedLease.Milliseconds()}
			DeferCleanup(func() {
				_, _ = w.result()
				Expect(lock.Release(context.Background())).To(Succeed())
			})
		})

		It("does not go on before that is answered: sent on another connection, it could come after the release", func() {
			l.hub.mu.Lock()
			w.calling = make(chan struct{})
			w.tell(told)
			Expect(w.over).To(BeFalse())
			w.calling = nil
			w.undo(ErrClosed)
			l.hub.mu.Unlock()
			Eventually(w.ended).Should(BeClosed())
		})

		answered := func(now int64) {
			l.hub.mu.Lock()
			defer l.hub.mu.Unlock()
			// Sent when the server's clock showed that, however long this took: else it seems to have been put back.
			w.told, w.sent = &told, w.clock.at.Add(time.Duration(now-w.clock.now)*time.Millisecond)
			w.answered(wire.Acquired{Position: 1, CheckIn: time.Minute, Now: now, Sent: w.sent, List: w.heard}, nil)
		}

		It("believes nothing of a signal with fence 0, and asks", func() {
			asked := w.asked
			told.Fence = 0
			l.hub.mu.Lock()
			w.tell(told)
			l.hub.mu.Unlock()
			Expect(w.ended).NotTo(BeClosed())
			Eventually(func() int {
				l.hub.mu.Lock()
				defer l.hub.mu.Unlock()
				return w.asked
			}).Should(BeNumerically(">", asked))
			Expect(w.ended).NotTo(BeClosed())
			l.hub.mu.Lock()
			w.undo(ErrClosed)
			l.hub.mu.Unlock()
			Eventually(w.ended).Should(BeClosed())
		})

		It("has the lock when it is answered", func() {
			answered(told.Deadline - handedLease.Milliseconds())
			Expect(w.ended).To(BeClosed())
			Expect(w.err).NotTo(HaveOccurred())
			Expect(w.grant.fence).To(Equal(told.Fence))
		})

		asksAgain := func(asked int) {
			GinkgoHelper()
			Eventually(func() int {
				l.hub.mu.Lock()
				defer l.hub.mu.Unlock()
				return w.asked
			}).Should(BeNumerically(">", asked))
			Expect(w.ended).NotTo(BeClosed())
			l.hub.mu.Lock()
			w.undo(ErrClosed)
			l.hub.mu.Unlock()
			Eventually(w.ended).Should(BeClosed())
		}

		It("asks again if the answer is newer: what it was given was taken back (reset, failover)", func() {
			asked := w.asked
			answered(told.Deadline - handedLease.Milliseconds() + 1)
			Expect(w.ended).NotTo(BeClosed())
			asksAgain(asked)
		})

		It("asks again if the server's clock was put back: the signal may be from before", func() {
			asked := w.asked
			l.hub.mu.Lock()
			w.line.clock.high = told.Deadline - handedLease.Milliseconds()
			w.tell(told)
			l.hub.mu.Unlock()
			Expect(w.ended).NotTo(BeClosed())
			asksAgain(asked)
		})

		It("asks again if a grant that came too late shows that the server's clock was put forward: the signal is over", func() {
			asked := w.asked
			l.hub.mu.Lock()
			w.answered(wire.Acquired{Held: true, Fence: told.Fence, Lease: 1, Now: told.Deadline + 60_000, Sent: w.line.clock.at}, nil)
			w.tell(told)
			l.hub.mu.Unlock()
			Expect(w.ended).NotTo(BeClosed())
			asksAgain(asked)
		})
	})
})
