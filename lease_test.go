package redislock_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// ofLease is what is left of a lease that began in this spec; 0: it never ends.
func ofLease(lease int) types.GomegaMatcher {
	if lease == 0 {
		return Equal(int64(-1))
	}
	return Within(int64(lease))
}

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	Describe("leases", func() {
		It("are the PX of the lock key, whose value is the token", func() {
			l.Acquire("a", Long, 0)
			Expect(AsText(Redis(l.Client, "GET", l.Lock))).To(Equal("a"))
			Expect(l.PTTL(l.Lock)).To(Within(Long))
		})

		It("of 0 never expire", func() {
			l.Acquire("a", 0, 0)
			Expect(l.PTTL(l.Lock)).To(Equal(int64(-1)))
		})

		It("start anew when the holder acquires again, longer, shorter or for ever, with the same fence", func() {
			fence := l.Acquire("a", Long, Long)[1]
			for _, lease := range []int{3 * Long, Long, 0, 2 * Long} {
				Expect(l.Acquire("a", lease, Long)).To(HaveExactElements(int64(1), fence, ofLease(lease), BeNumerically(">", 0)))
				Expect(l.PTTL(l.Lock)).To(ofLease(lease))
			}
			Expect(l.Inspect().Waiters).To(BeEmpty())
		})

		It("end LEASE_MS from the last lock_extend, longer, shorter or never", func() {
			l.Acquire("a", Long, 0)
			for _, lease := range []int{3 * Long, Long, 0, 2 * Long} {
				Expect(l.Extend("a", lease)).To(Equal(int64(1)))
				Expect(l.PTTL(l.Lock)).To(ofLease(lease))
			}
		})

		It("run out by themselves", func(ctx SpecContext) {
			Expect(l.Acquire("a", 30, 0)).To(Hold())
			Eventually(ctx, func() []int64 { return l.Acquire("b", Long, 0) }).Should(Hold())
			Expect(l.Extend("a", Long)).To(Equal(int64(0)))
			Expect(l.Release("a")).To(Equal(int64(0)))
		})

		It("of others are not touched by the extend, release or try of a stranger", func() {
			l.Contended("a")
			before := l.Snapshot()
			Expect(l.Extend("x", 3*Long)).To(Equal(int64(0)))
			Expect(l.Extend("a", 3*Long)).To(Equal(int64(0)))
			Expect(l.Release("x")).To(Equal(int64(0)))
			Expect(l.Acquire("x", 3*Long, 0)).To(Busy())
			Expect(l.Snapshot()).To(Equal(before))
		})

		It("of 13 digits are taken", func() {
			const most = 9_999_999_999_999
			Expect(l.Acquire("a", most, 0)).To(Hold())
			Expect(l.PTTL(l.Lock)).To(Within(most))
			Expect(l.Extend("a", most)).To(Equal(int64(1)))
			Expect(l.Acquire("b", most, Long)).To(Queued(1))
			l.Pass("a", "b")
			Expect(l.Pop("b").Token).To(Equal("b"))
		})
	})
})
