package redislock_test

import (
	"context"
	"strconv"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	var mine *redistest.Server
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	Describe("rule 7: fencing tokens only grow", func() {
		const future = 9_007_199_254_700_000 // below 2^53, in the year 2255

		It("are the server's time in microseconds", func() {
			before := l.Micros()
			Expect(l.Acquire("a", Long, 0)[1]).To(And(BeNumerically(">=", before), BeNumerically("<=", l.Micros())))
		})

		It("are one more than the last if the clock is behind it", func() {
			Redis(l.Client, "HSET", l.State, "fence", strconv.Itoa(future))
			Expect(l.Acquire("h", Long, 0)[1]).To(Equal(int64(future + 1)))
			l.Acquire("a", Long, Long)
			l.Pass("h", "a")
			Expect(l.Pop("a").Fence).To(Equal(int64(future + 2)))
			Expect(l.Acquire("a", Long, 0)[1]).To(Equal(int64(future+2)), "the same to the same holder")
			Expect(l.Inspect().Fence).To(Equal(int64(future + 2)))
		})

		// Where the state is lost, the clock alone makes the next one greater.
		DescribeTable("over", func(ctx SpecContext, stateLost bool, end func(context.Context)) {
			mine = OwnRedis()
			l = libraryAt(ctx, mine.Addr())
			if !stateLost {
				Redis(l.Client, "HSET", l.State, "fence", strconv.Itoa(future))
			}
			last := l.Acquire("h", Long, 0)[1]
			end(ctx)
			next := l.Acquire("b", Long, 0)
			Expect(next).To(Hold())
			Expect(next[1]).To(BeNumerically(">", last))
			if !stateLost {
				Expect(next[1]).To(Equal(last + 1))
			}
			Expect(next[1]).To(BeNumerically("<", int64(1)<<53))
		},
			Entry("a release", false, func(context.Context) { l.Release("h") }),
			Entry("an expiry", false, func(ctx context.Context) { l.RunOut(ctx) }),
			Entry("a reset", false, func(context.Context) { l.Reset() }),
			Entry("a new load of the library", false, func(context.Context) {
				Expect(Redis(l.Client, "FUNCTION", "LOAD", "REPLACE", redislock.Source()).Error()).NotTo(HaveOccurred())
				l.Release("h")
			}),
			Entry("loss of the lock", false, func(context.Context) { Redis(l.Client, "DEL", l.Lock) }),
			Entry("loss of the queue", false, func(context.Context) {
				l.Acquire("a", Long, Long)
				Redis(l.Client, "DEL", l.Queue)
				l.Release("h")
			}),
			Entry("loss of the state", true, func(context.Context) {
				Redis(l.Client, "DEL", l.State)
				l.Release("h")
			}),
			Entry("a restart that loses everything", true, func(ctx context.Context) {
				Expect(mine.Restart()).To(Succeed())
				client := Directly(mine.Addr()) // the old one may have connections that it does not know to be broken
				l = l.With(client)
				Eventually(ctx, func() error { return redislock.Load(ctx, client) }).Should(Succeed())
				// A cluster takes a moment until it takes writes.
				Eventually(ctx, func() error { return l.Call("lock_acquire", "b", Long, 0).Error() }).Should(Succeed())
			}),
		)

		It("is a new one for a holder that acquires again after the loss of the state", func() {
			last := l.Acquire("a", Long, 0)[1]
			Redis(l.Client, "DEL", l.State)
			Expect(l.Inspect().Fence).To(BeZero())
			next := l.Acquire("a", Long, 0)[1]
			Expect(next).To(BeNumerically(">", last))
			Expect(l.Inspect().Fence).To(Equal(next))
		})
	})
})
