package redislock

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

var _ = Describe("a lease", func() {
	from := time.Now()
	after := from.Add
	plain := func(length time.Duration) lease {
		return lease{term: term{from, length}, length: length, begin: from, maxHold: wire.Never, renew: true, doubt: wire.Never}
	}

	DescribeTable("gives notice ahead of its deadline", func(length, ahead time.Duration) {
		t := term{from, length}
		deadline := after(length)
		Expect(t.deadline()).To(Equal(deadline))
		Expect(t.notice()).To(Equal(deadline.Add(-ahead)))
		Expect(t.isUsable(deadline.Add(-ahead - 1))).To(BeTrue())
		Expect(t.isUsable(deadline.Add(-ahead))).To(BeFalse())
	},
		Entry("a tenth of the lease", time.Second, 100*time.Millisecond),
		Entry("of the shortest, too", time.Millisecond, 100*time.Microsecond),
		Entry("of a lease that was handed over", handedLease, 200*time.Millisecond),
		Entry("half a second at most", 10*time.Second, 500*time.Millisecond),
		Entry("of the longest, too", maxLease, 500*time.Millisecond),
		Entry("of one that never expires, in three centuries", wire.Never, 500*time.Millisecond),
	)

	It("is renewed after a third of it, as long as it is to be", func() {
		at, ok := plain(9 * time.Second).next(from)
		Expect(ok).To(BeTrue())
		Expect(at).To(Equal(after(3 * time.Second)))
		for name, change := range map[string]func(*lease){
			"without renewal": func(l *lease) { l.renew = false },
			"never expires":   func(l *lease) { l.term.length, l.length = wire.Never, wire.Never },
			"the last one":    func(l *lease) { l.maxHold = 9 * time.Second },
			"but a rounding":  func(l *lease) { l.maxHold = 9*time.Second + time.Millisecond },
		} {
			l := plain(9 * time.Second)
			change(&l)
			_, ok := l.next(from)
			Expect(ok).To(BeFalse(), name)
		}
	})

	It("that was handed over is confirmed in time, whatever becomes of it then", func() {
		l := plain(wire.Never)
		l.term, l.unconfirmed, l.renew = term{from, handedLease}, true, false
		at, ok := l.next(from)
		Expect(ok).To(BeTrue())
		Expect(at).To(Equal(after(claimAfter)))
		l.term.length = time.Second
		at, _ = l.next(from)
		Expect(at).To(Equal(after(250 * time.Millisecond)))
		l = l.confirmed(term{from, wire.Never})
		_, ok = l.next(from)
		Expect(ok).To(BeFalse())
		Expect(l.term.length).To(Equal(wire.Never))
	})

	It("is cut by the maximum hold, and nothing is asked for when that is over", func() {
		l := plain(10 * time.Second)
		l.maxHold = 12 * time.Second
		t, ok := l.ask(after(5*time.Second+time.Microsecond), l.length)
		Expect(ok).To(BeTrue())
		Expect(t.length).To(Equal(6999 * time.Millisecond))
		l = l.confirmed(t)
		Expect(l.ending()).To(MatchError(ContainSubstring("maximum hold of 12s")))
		_, ok = l.ask(after(12*time.Second-time.Microsecond), l.length)
		Expect(ok).To(BeFalse())
		t, ok = plain(wire.Never).ask(after(time.Hour), wire.Never)
		Expect(ok).To(BeTrue())
		Expect(t.length).To(Equal(wire.Never), "a lock without limit never gets a lease by arithmetic")
	})

	It("ends with the maximum hold also if the server was asked late", func() {
		l := plain(10 * time.Second)
		l.maxHold = 12 * time.Second
		t, _ := l.ask(after(5*time.Second), l.length)
		t.from = after(8 * time.Second)
		Expect(l.confirmed(t).term.deadline()).To(Equal(after(12 * time.Second)))
	})

	It("that is asked to be shorter is shorter at once; longer, only when that was confirmed", func() {
		l := plain(10 * time.Second)
		Expect(l.asked(term{from, time.Second}).term.length).To(Equal(time.Second))
		Expect(l.asked(term{from, time.Minute}).term.length).To(Equal(10 * time.Second))
		later := term{after(9 * time.Second), 5 * time.Second} // shorter, but ends last
		Expect(l.asked(later).term).To(Equal(l.term))
		Expect(l.confirmed(later).term).To(Equal(later))
	})

	It("is never longer than a call without an answer asked for: it may arrive at any time", func() {
		l := plain(10*time.Second).unanswered(term{from, time.Second}, time.Second)
		Expect(l.length).To(Equal(time.Second))
		l = l.unanswered(term{from, time.Minute}, time.Minute)
		Expect(l.confirmed(term{from, time.Hour}).term.length).To(Equal(time.Second))
	})
})

var _ = Describe("the alarm of a lock", func() {
	var lock *Lock
	set := func(t term) {
		lock.mu.Lock()
		defer lock.mu.Unlock()
		next := lock.lease
		next.term = t
		lock.setLease(next)
	}
	BeforeEach(func(ctx SpecContext) {
		l := &Locker{held: map[*Lock]struct{}{}}
		lock = newLock(&waiter{l: l, caller: ctx, request: &request{maxHold: wire.Never}, grant: grant{term: term{time.Now(), time.Hour}}})
		Expect(l.hold(lock)).To(BeTrue())
		lock.start()
		DeferCleanup(func() {
			set(term{time.Now().Add(-time.Hour), time.Hour})
			l.bg.Wait()
		})
	})
	It("that rings when the lease has been renewed just now does nothing", func() {
		lock.ring()
		Expect(lock.Context().Err()).NotTo(HaveOccurred())
		Expect(lock.stage).To(Equal(held))
	})
	It("ends Context, once, while a call that keeps the lease hangs", func() {
		lock.extends <- struct{}{} // the call
		set(term{time.Now().Add(-time.Hour), time.Hour})
		Eventually(lock.Context().Done()).Should(BeClosed())
		Expect(context.Cause(lock.Context())).To(And(MatchError(ErrLost), MatchError(ContainSubstring("the 1h0m0s are over"))))
		Expect(lock.extend(lock.Context(), time.Hour)).To(MatchError(context.Canceled))
		<-lock.extends
	})
})
