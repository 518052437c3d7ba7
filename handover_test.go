package redislock_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	Describe("rule 3: handed over, not dropped", func() {
		DescribeTable("gives the lock to the next waiter in the same call", func(function string, args ...any) {
			l.Contended("a", "b")
			results := l.Pipeline(l.Command(function, args...), l.Command("lock_inspect"), []string{"LLEN", l.Signal("a")})
			Expect(AsInt(results[0])).To(Equal(int64(1)))
			s := ParseShown(results[1])
			Expect(s.Holder).To(Equal("a"))
			Expect(s.Waiters).To(Equal([]string{"b"}))
			Expect(AsInt(results[2])).To(Equal(int64(1)))
			Expect(l.Unread("b")).To(BeZero())
		},
			Entry("of lock_release", "lock_release", "h"),
			Entry("of lock_reset", "lock_reset"),
		)

		It("takes a lock without waiters away at once", func() {
			l.Contended()
			Expect(l.Release("h")).To(Equal(int64(1)))
			Expect(l.Int("EXISTS", l.Lock)).To(BeZero())
		})

		It("hands on a lock that its new holder does not want any more", func() {
			l.Contended("a", "b")
			results := l.Pipeline(l.Command("lock_release", "h"), l.Command("lock_release", "a"), l.Command("lock_extend", "b", Long))
			for _, result := range results {
				Expect(AsInt(result)).To(Equal(int64(1)))
			}
		})
	})

	Describe("rule 4: a handed-over lease starts short", func() {
		DescribeTable("and is full once the holder has shown that it is there", func(function string, args ...any) {
			l.Contended("a")
			results := l.Pipeline(l.Command("lock_release", "h"), []string{"PTTL", l.Lock}, l.Command(function, args...), []string{"PTTL", l.Lock})
			Expect(AsInt(results[1])).To(And(BeNumerically(">", 0), BeNumerically("<=", Claim)))
			Expect(AsInt(results[3])).To(Within(Long))
		},
			Entry("by lock_extend", "lock_extend", "a", Long),
			Entry("by lock_acquire", "lock_acquire", "a", Long, Long),
		)

		It("is never one without an end, until confirmed", func() {
			l.Contended()
			l.Acquire("a", 0, Long)
			results := l.Pipeline(l.Command("lock_release", "h"), []string{"PTTL", l.Lock}, l.Command("lock_acquire", "a", 0, Long))
			Expect(AsInt(results[1])).To(And(BeNumerically(">", 0), BeNumerically("<=", Claim)))
			Expect(AsInts(results[2])[2]).To(Equal(int64(-1)))
			Expect(l.PTTL(l.Lock)).To(Equal(int64(-1)))
		})

		It("is what the waiter asked for last", func() {
			l.Contended("a")
			l.Acquire("a", 700, Long)
			results := l.Pipeline(l.Command("lock_release", "h"), []string{"PTTL", l.Lock})
			Expect(AsInt(results[1])).To(And(BeNumerically(">", 0), BeNumerically("<=", 700)))
		})

		It("so a waiter that died with a long lease costs the next one seconds", func(ctx SpecContext) {
			l.Contended("dead", "a")
			Expect(l.Release("h")).To(Equal(int64(1)))
			Eventually(ctx, func() []int64 { return l.Acquire("a", Long, Long) }).Should(Hold())
		})
	})
})
