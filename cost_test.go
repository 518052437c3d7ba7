package redislock_test

import (
	"fmt"
	"strconv"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, OwnRedis().Addr()) }) // for it alone: commands are counted

	Describe("rule 12: cost", func() {
		// spent counts the redis.call's of the calls made in do.
		spent := func(do func()) (calls int) {
			GinkgoHelper()
			Redis(l.Client, "CONFIG", "RESETSTAT")
			do()
			counts := CommandCalls(l.Client)
			// What comes from outside: from here, from rueidis to see that a connection lives, from Sentinels.
			for _, outer := range []string{"fcall", "fcall_ro", "info", "config|resetstat", "hello", "client|setinfo", "ping", "publish"} {
				delete(counts, outer)
			}
			for _, n := range counts {
				calls += n
			}
			return calls
		}

		It("of a free acquire is at most 7 commands, of a plain release 5", func() {
			for i := range 3 {
				most := 7
				if i == 0 {
					most = 8 // the state is new
				}
				Expect(spent(func() { l.Acquire("a", Long, Long) })).To(And(BeNumerically(">", 2), BeNumerically("<=", most)))
				Expect(spent(func() { l.Extend("a", Long) })).To(BeNumerically("<=", 6))
				Expect(spent(func() { l.Release("a") })).To(And(BeNumerically(">", 2), BeNumerically("<=", 5)))
			}
		})

		for _, waiting := range []int{2, 1000} {
			It(fmt.Sprintf("of queueing is at most 8 commands, of a hand-over 11, with %d waiters", waiting), func(ctx SpecContext) {
				l = l.As("client")
				l.Contended()
				fill := make([][]string, waiting-2)
				Expect(spent(func() { l.Acquire("0", Long, Long) })).To(And(BeNumerically(">", 2), BeNumerically("<=", 10)))
				for i := range fill {
					fill[i] = l.Command("lock_acquire", fmt.Sprint("fill", i), Long, Long)
				}
				for i, result := range l.Pipeline(fill...) {
					Expect(AsInts(result)).To(Queued(i + 2))
				}
				Expect(spent(func() { Expect(l.Acquire("1", Long, Long)).To(Queued(waiting)) })).To(BeNumerically("<=", 8))
				for _, token := range []string{"0", "1"} {
					Expect(spent(func() { l.Acquire(token, Long, Long) })).To(BeNumerically("<=", 10), "a check-in")
				}
				l.Past(ctx, l.Now()) // in the same millisecond no TTL grows, which takes one more to see
				Expect(spent(func() { l.Release("h") })).To(And(BeNumerically(">", 2), BeNumerically("<=", 11)))
				Expect(l.Inspect().Waiting).To(Equal(int64(waiting - 1)))
				Expect(spent(func() { Expect(l.Acquire("1", Long, 0)).To(Busy()) })).To(BeNumerically("<=", 10), "leaving")
			})
		}

		for _, holders := range []int{0, 5} {
			It(fmt.Sprintf("of what is held together: first share 10, further one 11, queueing 11, extend 10, hand-over 17, HOLDERS %d", holders), func(ctx SpecContext) {
				later := func() { l.Past(ctx, l.Now()) } // in the same millisecond no TTL grows, which takes one more to see
				share := func(token string, most int) {
					GinkgoHelper()
					Expect(spent(func() { l.Share(token, Long, Long, holders) })).To(And(BeNumerically(">", 2), BeNumerically("<=", most)), token)
				}
				l.Acquire("h", Long, Long) // the state exists then
				l.Release("h")
				for range 2 {
					share("a", 10)
					l.Release("a")
				}
				share("a", 10)
				for _, token := range []string{"b", "c", "d", "e"} {
					share(token, 11)
				}
				later()
				Expect(spent(func() { l.Extend("a", Long) })).To(BeNumerically("<=", 10))
				for _, token := range []string{"v", "w", "x", "y", "z"} {
					l.Acquire("writer", Long, Long) // one that is silent for 2 s is told to call, which costs more
					share(token, 11)
				}
				later()
				Expect(spent(func() { l.Extend("b", Long) })).To(BeNumerically("<=", 10))
				Expect(l.Release("writer")).To(Equal(int64(2)))
				if holders == 0 {
					Expect(l.Inspect().Held).To(Equal(int64(10)))
					return
				}
				later()
				Expect(spent(func() { l.Release("a") })).To(And(BeNumerically(">", 2), BeNumerically("<=", 17)))
				Expect(l.Inspect().Held).To(Equal(int64(5)))
				later()
				Expect(spent(func() { l.Extend("b", Long) })).To(BeNumerically("<=", 10))
			})
		}

		It("of letting in readers is a bounded number for each, beside many holders, too", func() {
			l = l.As("client")
			hold := make([][]string, 1_000)
			for i := range hold {
				hold[i] = l.Command("lock_acquire", fmt.Sprint("holder", i), Long, 0, 0)
			}
			l.Pipeline(hold...)
			l.Acquire("writer", Long, Long)
			wait := make([][]string, 300)
			for i := range wait {
				wait[i] = l.Command("lock_acquire", strconv.Itoa(i), Long, Long, 0)
			}
			l.Pipeline(wait...)
			Expect(spent(func() { Expect(l.Release("writer")).To(Equal(int64(2))) })).To(BeNumerically("<=", 100*9+20))
			Expect(l.Inspect().Held).To(Equal(int64(1_100)))
		})

		It("of cleaning up after 10,000 dead waiters is a batch of commands for each 100", func(ctx SpecContext) {
			const dead = 10_000
			l = l.As("client")
			l.Contended("guard")
			commands := make([][]string, dead)
			for i := range commands {
				commands[i] = l.Command("lock_acquire", fmt.Sprint("dead", i), Long, 1)
			}
			for _, result := range l.Pipeline(commands...) {
				Expect(result.Error()).NotTo(HaveOccurred())
			}
			Expect(l.Release("guard")).To(Equal(int64(2)))
			Expect(l.Int("ZCARD", l.Queue)).To(Equal(int64(dead)))
			l.Past(ctx, l.Now()+1)
			calls := spent(func() {
				for range 3 { // none drops more than 4,000
					l.Acquire("new", Long, Long)
				}
				Expect(l.Acquire("new", Long, Long)).To(Queued(1))
			})
			Expect(calls).To(BeNumerically("<=", dead/100*4+60))
			Expect(l.Int("HLEN", l.State)).To(BeNumerically("<=", 4))
			l.Pass("h", "new")
		})

		It("of skipping 1,000 waiters of a dead client, too", func(ctx SpecContext) {
			l.Contended()
			dead := l.As("dead")
			commands := make([][]string, 1_000)
			for i := range commands {
				commands[i] = dead.Command("lock_acquire", strconv.Itoa(i), 1, Long)
			}
			l.Pipeline(commands...)
			l.Release("h")
			l.Past(ctx, ParseSignal(Redis(l.Client, "LINDEX", l.Signal("dead"), "0")).Deadline)
			l.Gone(ctx, l.Lock)
			Expect(spent(func() { Expect(l.Acquire("new", Long, Long)).To(Hold()) })).To(BeNumerically("<=", 1_000/100*4+40))
		})

		It("of lock_inspect is bounded: it counts all and lists the first 1,000", func() {
			l.Contended()
			commands := make([][]string, 1_001)
			for i := range commands {
				commands[i] = l.Command("lock_acquire", strconv.Itoa(i), Long, Long)
			}
			l.Pipeline(commands...)
			Expect(spent(func() {
				s := l.Inspect()
				Expect(s.Waiting).To(Equal(int64(1_001)))
				Expect(s.Waiters).To(HaveLen(1_000))
			})).To(BeNumerically("<=", 30), "2 for each 100")
		})
	})
})
