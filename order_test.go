package redislock_test

import (
	"strconv"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	Describe("a try (WAIT_MS 0)", func() {
		It("takes a free lock", func() {
			Expect(l.Acquire("a", Long, 0)).To(Hold())
		})

		It("of a busy lock leaves no trace", func() {
			l.Contended()
			before := l.Snapshot()
			Expect(l.Acquire("a", Long, 0)).To(Busy())
			Expect(l.Snapshot()).To(Equal(before))
		})

		It("of a waiter takes it out of the queue if the lock is busy", func() {
			l.Contended("a", "b")
			Expect(l.Acquire("a", Long, 0)).To(Busy())
			Expect(l.Inspect().Waiters).To(Equal([]string{"b"}))
			l.Pass("h", "b")
		})

		It("of the next waiter takes the lock if it is free", func(ctx SpecContext) {
			l.Contended("a", "b")
			l.RunOut(ctx)
			Expect(l.Acquire("a", Long, 0)).To(Hold())
			Expect(l.Inspect().Waiters).To(Equal([]string{"b"}))
		})
	})

	Describe("rule 1: exclusive", func() {
		It("lets one of many have the lock", func() {
			held := 0
			for i := range 50 {
				if l.Acquire(strconv.Itoa(i), Long, Long*(i%2))[0] == 1 {
					held++
				}
			}
			Expect(held).To(Equal(1))
			Expect(l.Inspect().Holder).To(Equal("0"))
		})

		It("lets nobody but the holder release or extend", func() {
			l.Contended("a")
			for _, token := range []string{"a", "b", "hh", "H", "h\x00"} {
				Expect(l.Release(token)).NotTo(Equal(int64(1)))
				Expect(l.Extend(token, Long)).To(Equal(int64(0)))
			}
			Expect(l.Inspect().Holder).To(Equal("h"))
		})
	})

	Describe("rule 2: first come, first served", func() {
		It("grants in the order of arrival, whatever the tokens, leases and waits", func() {
			tokens := []string{"9", "b", "10", "a", "Z", "\xff", "\x00"}
			l.Contended()
			for i, token := range tokens {
				Expect(l.Acquire(token, i*Long, Long*(9-i))).To(Queued(i + 1))
			}
			from := "h"
			for _, token := range tokens {
				l.Pass(from, token)
				from = token
			}
		})

		It("keeps the place of a waiter that calls again", func() {
			l.Contended("a", "b", "c")
			for _, i := range []int{2, 0, 1, 2} {
				Expect(l.Acquire([]string{"a", "b", "c"}[i], Long, Long)).To(Queued(i + 1))
			}
			Expect(l.Inspect().Waiters).To(Equal([]string{"a", "b", "c"}))
		})

		It("moves the others up when one leaves", func() {
			l.Contended("a", "b", "c")
			Expect(l.Release("b")).To(Equal(int64(2)))
			Expect(l.Acquire("c", Long, Long)).To(Queued(2))
			Expect(l.Release("a")).To(Equal(int64(2)))
			Expect(l.Acquire("c", Long, Long)).To(Queued(1))
		})

		It("puts a holder that releases and asks again at the tail", func() {
			l.Contended("a", "b")
			l.Pass("h", "a")
			Expect(l.Acquire("h", Long, Long)).To(Queued(2))
			l.Pass("a", "b")
			l.Pass("b", "h")
		})

		DescribeTable("lets nobody overtake when the lease has run out", func(ctx SpecContext, wait int, reply types.GomegaMatcher) {
			l.Contended("a", "b")
			l.RunOut(ctx)
			results := l.Pipeline(l.Command("lock_acquire", "new", Long, wait), l.Command("lock_extend", "a", Long))
			Expect(AsInts(results[0])).To(reply)
			Expect(AsInt(results[1])).To(Equal(int64(1)))
			Expect(l.Pop("a").Token).To(Equal("a"))
			Expect(l.Inspect().Waiters[0]).To(Equal("b"))
		},
			Entry("a newcomer", Long, Queued(2)),
			Entry("a try", 0, Busy()),
		)

		It("does not let a waiter farther back overtake when the lease has run out", func(ctx SpecContext) {
			l.Contended("a", "b", "c")
			l.RunOut(ctx)
			results := l.Pipeline(l.Command("lock_acquire", "c", Long, Long), l.Command("lock_extend", "a", Long))
			Expect(AsInts(results[0])).To(Queued(2))
			Expect(AsInt(results[1])).To(Equal(int64(1)))
		})

		It("gives a lock whose lease has run out to the next waiter when it looks, without a signal", func(ctx SpecContext) {
			l.Contended("a", "b")
			l.RunOut(ctx)
			Expect(l.Acquire("a", Long, Long)).To(HaveExactElements(int64(1), BeNumerically(">", 0), int64(Long), BeNumerically(">", 0)))
			Expect(l.Unread("a")).To(BeZero())
			Expect(l.Inspect().Waiters).To(Equal([]string{"b"}))
		})

		DescribeTable("gives a lock whose lease has run out to the next waiter at any other call too",
			func(ctx SpecContext, want int, function string, args ...any) {
				l.Contended("a", "b")
				l.RunOut(ctx)
				results := l.Pipeline(l.Command(function, args...), l.Command("lock_extend", "a", Long))
				Expect(AsInt(results[0])).To(Equal(int64(want)))
				Expect(AsInt(results[1])).To(Equal(int64(1)))
			},
			Entry("a late release", 0, "lock_release", "h"),
			Entry("a waiter that leaves", 2, "lock_release", "b"),
			Entry("a reset", 0, "lock_reset"),
		)
	})
})
