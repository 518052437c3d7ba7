package redislock

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("a term", func() {
	from := time.Now()

	DescribeTable("gives notice ahead of its deadline", func(lease, ahead time.Duration) {
		t := term{from, lease}
		deadline := from.Add(lease)
		Expect(t.deadline()).To(Equal(deadline))
		Expect(t.notice()).To(Equal(deadline.Add(-ahead)))
		Expect(t.isUsable(deadline.Add(-ahead - 1))).To(BeTrue())
		Expect(t.isUsable(deadline.Add(-ahead))).To(BeFalse())
		Expect(t.isRunning(deadline.Add(-1))).To(BeTrue())
		Expect(t.isRunning(deadline)).To(BeFalse())
	},
		Entry("a tenth of the lease", time.Second, 100*time.Millisecond),
		Entry("of the shortest, too", time.Millisecond, 100*time.Microsecond),
		Entry("of a lease that was handed over", handedLease, 200*time.Millisecond),
		Entry("half a second at most", 10*time.Second, 500*time.Millisecond),
		Entry("of the longest, too", time.Hour, 500*time.Millisecond),
	)

	It("that never expires gives none", func() {
		never := term{from: from}
		Expect(never.deadline().IsZero()).To(BeTrue())
		Expect(never.notice().IsZero()).To(BeTrue())
		far := from.Add(time.Hour)
		Expect(never.isUsable(far)).To(BeTrue())
		Expect(never.isRunning(far)).To(BeTrue())
		Expect(never.endsBefore(term{from, time.Hour})).To(BeFalse())
		Expect(term{from, time.Hour}.endsBefore(never)).To(BeTrue())
		Expect(never.endsBefore(never)).To(BeFalse())
	})

	It("that is shorter and began later can be the one that ends last", func() {
		long, short := term{from, 10 * time.Second}, term{from.Add(9 * time.Second), 5 * time.Second}
		Expect(short.endsBefore(long)).To(BeFalse())
		Expect(long.endsBefore(short)).To(BeTrue())
	})

	It("is cut by a limit, and 0 is no limit", func() {
		Expect(term{from, time.Hour}.atMost(time.Minute)).To(Equal(term{from, time.Minute}))
		Expect(term{from, time.Minute}.atMost(time.Hour)).To(Equal(term{from, time.Minute}))
		Expect(term{from, time.Minute}.atMost(0)).To(Equal(term{from, time.Minute}))
		Expect(term{from: from}.atMost(time.Minute)).To(Equal(term{from, time.Minute}))
		Expect(term{from: from}.atMost(0)).To(Equal(term{from: from}))
	})
})

var _ = Describe("the alarm of a lock", func() {
	var lock *Lock
	set := func(t term) {
		lock.mu.Lock()
		defer lock.mu.Unlock()
		lock.setTerm(t)
	}
	BeforeEach(func(ctx SpecContext) {
		l := &Locker{held: map[*Lock]struct{}{}}
		lock = newLock(ctx, l, &request{}, grant{term: term{time.Now(), time.Hour}})
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
		Expect(lock.current()).To(Equal(held))
	})
	It("ends Context, once, while a call that keeps the lease hangs", func() {
		lock.extending <- struct{}{} // the call
		set(term{time.Now().Add(-time.Hour), time.Hour})
		Eventually(lock.Context().Done()).Should(BeClosed())
		Expect(context.Cause(lock.Context())).To(BeIdenticalTo(ErrLost))
		Expect(lock.current()).To(Equal(lost))
		Expect(lock.extend(lock.Context(), time.Hour)).To(MatchError(context.Canceled))
		<-lock.extending
	})
	It("is not there if the lock never expires", func() {
		set(term{from: time.Now()})
		lock.ring()
		Expect(lock.alarm.Stop()).To(BeFalse(), "it was stopped")
		Expect(lock.Context().Err()).NotTo(HaveOccurred())
	})
})
