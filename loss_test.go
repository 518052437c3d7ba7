package redislock_test

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	Describe("rule 9: loss of any key heals, in order:", func() {
		for _, free := range []bool{false, true} {
			for i, key := range []string{"lock", "queue", "state"} {
				It(fmt.Sprintf("%s while the lock is %s", key, map[bool]string{false: "held", true: "free"}[free]), func(ctx SpecContext) {
					l.Contended("a", "b", "c")
					if free {
						l.RunOut(ctx)
					}
					Redis(l.Client, "DEL", l.Keys()[i])
					// The check-ins that follow, in the order in which they are due. With the queue, the
					// order is lost, too: it is that of the check-ins.
					granted := l.Acquire("a", Long, Long)
					Expect(l.Acquire("b", Long, Long)).To(Or(Queued(1), Queued(2)))
					Expect(l.Acquire("c", Long, Long)).To(Or(Queued(2), Queued(3)))
					if key == "lock" || free {
						Expect(granted).To(Hold())
					} else {
						Expect(granted).To(Queued(1))
						l.Pass("h", "a")
					}
					l.Pass("a", "b")
					l.Pass("b", "c")
					Expect(l.Release("c")).To(Equal(int64(1)))
				})
			}
		}

		It("the state, and nobody overtakes the next waiter before it has called", func() {
			l.Contended("a", "b", "c")
			results := l.Pipeline([]string{"DEL", l.State},
				l.Command("lock_acquire", "c", Long, Long), l.Command("lock_release", "h"),
				l.Command("lock_acquire", "new", Long, 0), l.Command("lock_acquire", "b", Long, Long),
				l.Command("lock_acquire", "a", Long, Long))
			Expect(AsInts(results[1])).To(Queued(3))
			Expect(AsInt(results[2])).To(Equal(int64(1)))
			Expect(AsInts(results[3])).To(Busy())
			Expect(AsInts(results[4])).To(Queued(2))
			Expect(AsInts(results[5])).To(Hold())
			l.Pass("a", "b")
			l.Pass("b", "c")
		})

		It("the state, also where the clock has gone back", func() {
			l.Contended()
			Redis(l.Client, "HSET", l.State, "last", "9007199254700000") // when the next one queues, in the year 2255
			Expect(l.Acquire("a", Long, Long)).To(Queued(1))
			Redis(l.Client, "DEL", l.State)
			Expect(l.Acquire("b", Long, Long)).To(Queued(2))
			Expect(l.Acquire("c", Long, Long)).To(Queued(3))
		})

		It("the state, and a waiter that does not come back is dropped soon", func(ctx SpecContext) {
			l.Contended("dead", "a")
			Redis(l.Client, "DEL", l.State)
			Expect(l.Acquire("a", Long, Long)).To(Queued(2))
			l.Release("h")
			Eventually(ctx, func() []int64 { return l.Acquire("a", Long, Long) }).Should(Hold())
		})

		It("all keys at once", func() {
			l.Contended("a", "b")
			Redis(l.Client, append([]string{"DEL"}, l.Existing()...)...)
			Expect(l.Acquire("a", Long, Long)).To(Hold())
			Expect(l.Acquire("b", Long, Long)).To(Queued(1))
			Expect(l.Release("h")).To(Equal(int64(0)))
			l.Pass("a", "b")
		})
	})
})
