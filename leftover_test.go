package redislock_test

import (
	"strconv"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	Describe("rule 8: nothing is left behind", func() {
		onlyState := func() {
			GinkgoHelper()
			Expect(l.Existing()).To(Equal([]string{l.State}))
			Expect(l.PTTL(l.State)).To(And(BeNumerically(">", 0), BeNumerically("<=", Memory)))
		}

		It("but lock-state, for 10 minutes, after the last release", func() {
			l.Acquire("a", 3*Long, 0)
			Expect(l.PTTL(l.State)).To(Within(3*Long+Memory), "it outlives a holder that dies")
			l.Release("a")
			onlyState()
		})

		It("but lock-state, for 10 minutes, after a reset", func() {
			l.Acquire("a", 3*Long, 0)
			l.Reset()
			onlyState()
		})

		It("but lock-state, and no field of a waiter in it, after hand-overs and waiters that left", func() {
			l.Contended("a", "b", "c")
			l.Release("b")
			l.Pass("h", "a")
			l.Pass("a", "c")
			l.Pop("a")
			l.Pop("c")
			l.Release("c")
			onlyState()
			Expect(l.Fields()).To(ConsistOf("fence", "last", "since"))
		})

		It("while anybody waits: the state outlives the longest wait, whoever comes before or after", func() {
			const day = 24 * 60 * Long
			l.Contended("a")
			Expect(l.Acquire("b", Long, day)).To(Queued(2))
			Expect(l.PTTL(l.State)).To(Within(day + Memory))
			Expect(l.Acquire("c", Long, Long)).To(Queued(3))
			Expect(l.PTTL(l.State)).To(Within(day + Memory))
			l.Pass("h", "a")
			Expect(l.Acquire("d", Long, day)).To(Queued(3))
			Expect(l.PTTL(l.State)).To(Within(day + Memory))
		})

		It("of waiters that all died: the queue expires, their fields go with the next waiter", func(ctx SpecContext) {
			l.Contended()
			for i := range 20 {
				l.Acquire(strconv.Itoa(i), Long, 20)
			}
			l.Gone(ctx, l.Queue)
			Expect(l.Acquire("a", Long, Long)).To(Queued(1))
			Expect(l.Int("HLEN", l.State)).To(BeNumerically("<=", 4))
			Expect(l.Inspect().Waiters).To(Equal([]string{"a"}))
			l.Pass("h", "a")
		})

		It("has a TTL on all keys while waiters wait", func() {
			l.Contended("a", "b")
			results := l.Pipeline(l.Command("lock_release", "h"), []string{"PTTL", l.Lock},
				[]string{"PTTL", l.Queue}, []string{"PTTL", l.State}, []string{"PTTL", l.Signal("a")})
			for _, result := range results[1:] {
				Expect(AsInt(result)).To(BeNumerically(">", 0))
			}
		})

		It("keeps the place of a waiter with a long WAIT_MS when one with a short one calls", func() {
			l.Contended()
			l.Acquire("a", Long, 3*Long)
			l.Acquire("b", Long, 1000)
			Expect(l.PTTL(l.Queue)).To(Within(3 * Long))
		})

		DescribeTable("has no TTL on the state of a lock that never expires, and one again after", func(function string, args ...any) {
			l.Acquire("h", Long, 0)
			l.Acquire("h", 0, 0)
			l.Acquire("a", Long, Long)
			Expect(l.PTTL(l.State)).To(Equal(int64(-1)))
			Expect(l.Call(function, args...).Error()).NotTo(HaveOccurred())
			Expect(l.PTTL(l.State)).To(BeNumerically(">", 0))
		},
			Entry("a hand-over", "lock_release", "h"),
			Entry("a reset", "lock_reset"),
			Entry("a lease", "lock_extend", "h", Long),
			Entry("a lease at acquire", "lock_acquire", "h", Long, Long),
		)

		It("has a TTL on the state after the release of a lock that never expired", func() {
			l.Acquire("h", 0, 0)
			l.Release("h")
			onlyState()
		})

		DescribeTable("has a TTL on the state when a lock that never expires was deleted", func(function string, args ...any) {
			l.Acquire("h", 0, 0)
			l.Acquire("a", Long, Long)
			Redis(l.Client, "DEL", l.Lock)
			if function == "lock_reset" {
				Redis(l.Client, "DEL", l.Queue)
			} else {
				l.Release("a")
			}
			Expect(AsInt(l.Call(function, args...))).To(Equal(int64(0)))
			onlyState()
		},
			Entry("and its holder releases", "lock_release", "h"),
			Entry("and an operator resets it", "lock_reset"),
		)
	})
})
