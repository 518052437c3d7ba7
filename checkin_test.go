package redislock_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	Describe("rule 6: a waiter lives by checking in", func() {
		It("keeps a place for WAIT_MS after the last call", func() {
			l.Contended()
			l.Acquire("a", Long, Long)
			l.Acquire("a", Long, 3*Long)
			lapses, err := l.Inspect().Details[0][2].ToInt64()
			Expect(err).NotTo(HaveOccurred())
			Expect(lapses).To(Within(3 * Long))
		})

		It("drops a waiter that does not, without a hand-over to it", func(ctx SpecContext) {
			l.Contended()
			l.Acquire("dead", Long, 20)
			l.Acquire("a", Long, Long)
			Eventually(ctx, func() []string { return l.Inspect().Waiters }).Should(Equal([]string{"a"}))
			Expect(l.Inspect().Waiting).To(Equal(int64(1)))
			Expect(l.Acquire("a", Long, Long)).To(Queued(1))
			Expect(l.Fields()).NotTo(ContainElement(ContainSubstring("dead")))
			l.Pass("h", "a")
			Expect(l.Unread("dead")).To(BeZero())
		})

		DescribeTable("puts one that comes back too late at the tail", func(ctx SpecContext, tokens ...string) {
			l.Contended()
			for _, token := range tokens {
				wait := Long
				if token == "late" {
					wait = 20
				}
				l.Acquire(token, Long, wait)
			}
			Eventually(ctx, func() []string { return l.Inspect().Waiters }).ShouldNot(ContainElement("late"))
			Expect(l.Acquire("late", Long, Long)).To(Queued(len(tokens)))
			want := append(slices.DeleteFunc(slices.Clone(tokens), func(t string) bool { return t == "late" }), "late")
			Expect(l.Inspect().Waiters).To(Equal(want))
		},
			Entry("from the head", "late", "a", "b"),
			Entry("from the middle", "a", "late", "b"),
		)

		DescribeTable("lets the head look", func(holders, wait, least, most int) {
			results := l.Pipeline(l.Command("lock_acquire", "h", holders, 0), l.Command("lock_acquire", "a", Long, wait))
			Expect(AsInts(results[1])[2]).To(And(BeNumerically(">=", least), BeNumerically("<=", most)))
		},
			Entry("within 1 s", Long, Long, 1000, 1000),
			Entry("within 1 s where the holder's lease never ends", 0, Long, 1000, 1000),
			Entry("when the holder's lease ends", 900, Long, 1, 901),
			Entry("within WAIT_MS/3", Long, 900, 300, 300),
			Entry("at the earliest in a millisecond", Long, 1, 1, 1),
		)

		It("lets those farther back look less often, and within WAIT_MS/3", func() {
			l.Contended()
			last := int64(0)
			for i := range 30 {
				checkIn := l.Acquire(strconv.Itoa(i), Long, Long)[2]
				Expect(checkIn).To(And(BeNumerically(">=", last), BeNumerically("<=", Long/3)))
				last = checkIn
			}
			Expect(last).To(Equal(int64(Long/3)), "no other limit: the calls of 10,000 waiters add up")
			Expect(l.Acquire("short", Long, 600)[2]).To(BeNumerically("<=", 200))
		})

		// left is a lock that was handed to "dead1", who never looked, and is free since; "dead2" and
		// the others of its client wait, and then "a" of another one.
		left := func(ctx context.Context) (deadline int64) {
			GinkgoHelper()
			dead := l.As("dead")
			l.Contended()
			for i := 1; i <= 5; i++ {
				Expect(dead.Acquire(fmt.Sprintf("dead%d", i), 40, Long)).To(Queued(i))
			}
			Expect(l.Acquire("a", Long, Long)).To(Queued(6))
			Expect(l.Release("h")).To(Equal(int64(1)))
			deadline = ParseSignal(Redis(l.Client, "LINDEX", l.Signal("dead"), "0")).Deadline
			l.Past(ctx, deadline)
			l.Gone(ctx, l.Lock)
			return deadline
		}

		It("skips all waiters of a client at once whose signal lies unread past its deadline", func(ctx SpecContext) {
			left(ctx)
			Expect(l.Acquire("a", Long, Long)).To(Hold())
			Expect(l.Inspect().Waiters).To(BeEmpty())
			Expect(l.Unread("dead")).To(Equal(int64(1)), "the signals that were not meant are taken back")
		})

		It("skips them when somebody else calls, too", func(ctx SpecContext) {
			left(ctx)
			results := l.Pipeline(l.Command("lock_acquire", "new", Long, Long), l.Command("lock_extend", "a", Long))
			Expect(AsInts(results[0])).To(Queued(1))
			Expect(AsInt(results[1])).To(Equal(int64(1)))
		})

		It("does not take a client for dead before the deadline", func() {
			l.As("client").Contended("a", "b")
			results := l.Pipeline(l.Command("lock_release", "h"), []string{"DEL", l.Lock},
				l.Command("lock_acquire", "new", Long, Long), []string{"GET", l.Lock})
			Expect(AsText(results[3])).To(Equal("b"))
		})

		It("does not take a waiter for dead that has called since the deadline, and removes the litter", func(ctx SpecContext) {
			one := l.As("client")
			one.Contended()
			one.Acquire("a", 300, Long)
			one.Acquire("b", 300, Long)
			results := l.Pipeline(l.Command("lock_release", "h"), one.Command("lock_acquire", "a", Long, Long))
			Expect(AsInts(results[1])).To(Hold())
			l.Past(ctx, ParseSignal(Redis(l.Client, "LINDEX", l.Signal("client"), "0")).Deadline)
			Expect(one.Acquire("b", Long, Long)).To(Queued(1))
			l.Pass("a", "b")
			Expect(l.Unread("client")).To(Equal(int64(1)))
			Expect(l.Pop("client").Token).To(Equal("b"))
		})

		It("does not skip the waiter that is just calling, whatever its client left unread", func(ctx SpecContext) {
			left(ctx)
			results := l.Pipeline(l.As("dead").Command("lock_acquire", "dead4", Long, Long), []string{"GET", l.Lock})
			Expect(AsText(results[1])).To(BeElementOf("dead2", "dead4"), "dead4 is here, and was before a")
		})

		It("does not skip a waiter that has called since, for an older one of its client that has not", func(ctx SpecContext) {
			one := l.As("client")
			one.Contended()
			for _, token := range []string{"a", "b", "c"} {
				one.Acquire(token, 300, Long)
			}
			Expect(l.Acquire("d", Long, Long)).To(Queued(4))
			l.Pass("h", "a")
			l.Past(ctx, ParseSignal(Redis(l.Client, "LINDEX", l.Signal("client"), "0")).Deadline)
			Expect(one.Acquire("c", Long, Long)).To(Queued(2))
			results := l.Pipeline(l.Command("lock_release", "a"), []string{"GET", l.Lock})
			Expect(AsText(results[1])).To(BeElementOf("b", "c"), "c called after the deadline, and was before d")
		})

		It("never lets the signal list of a client that polls instead of popping grow", func(ctx SpecContext) {
			one := l.As("client")
			one.Contended()
			holder, deadline := "h", int64(0)
			for i := range 20 {
				token := strconv.Itoa(i)
				Expect(one.Acquire(token, 1, Long)).To(Queued(1))
				l.Past(ctx, deadline)
				Expect(one.Acquire(token, 1, Long)).To(Queued(1))
				results := one.Pipeline(one.Command("lock_release", holder), one.Command("lock_acquire", token, Long, Long))
				Expect(AsInts(results[1])).To(Hold())
				Expect(l.Unread("client")).To(Equal(int64(1)))
				holder, deadline = token, ParseSignal(Redis(l.Client, "LINDEX", l.Signal("client"), "0")).Deadline
			}
		})
	})
})
