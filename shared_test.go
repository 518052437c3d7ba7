package redislock_test

import (
	"fmt"
	"strconv"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	const all = 0 // HOLDERS: any number

	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	// shared is a lock that these hold together.
	shared := func(tokens ...string) {
		GinkgoHelper()
		for _, token := range tokens {
			Expect(l.Share(token, Long, 0, all)).To(Hold())
		}
	}
	confirmed := func(tokens ...string) {
		GinkgoHelper()
		for _, token := range tokens {
			Expect(l.Extend(token, Long)).To(Equal(int64(1)), token)
		}
	}

	Describe("rule 13: held together", func() {
		It("is held by as many as each one asked for, and the next one waits", func() {
			for _, token := range []string{"a", "b", "c"} {
				Expect(l.Share(token, Long, Long, 3)).To(Hold())
			}
			Expect(l.Share("d", Long, Long, 3)).To(Queued(1))
			Expect(l.Share("e", Long, 0, 3)).To(Busy())
			Expect(l.Inspect().Held).To(Equal(int64(3)))
			Expect(l.Release("b")).To(Equal(int64(1)))
			confirmed("d")
			Expect(l.Inspect().Held).To(Equal(int64(3)))
		})

		It("is held by any number that asks for 0", func() {
			for i := range 50 {
				Expect(l.Share(strconv.Itoa(i), Long, 0, all)).To(Hold())
			}
			Expect(l.Inspect().Held).To(Equal(int64(50)))
		})

		It("compares what the first in line asked for with who holds it then", func() {
			for _, token := range []string{"a", "b", "c"} {
				Expect(l.Share(token, Long, Long, 5)).To(Hold())
			}
			Expect(l.Share("lower", Long, Long, 2)).To(Queued(1))
			Expect(l.Share("behind", Long, Long, 5)).To(Queued(2))
			Expect(l.Release("a")).To(Equal(int64(1)))
			Expect(l.Inspect().Held).To(Equal(int64(2)), "nobody is taken away, nobody let in")
			Expect(l.Release("b")).To(Equal(int64(1)))
			confirmed("c", "lower", "behind")
		})

		It("lets one who wants it alone wait until all have left", func() {
			shared("a", "b")
			Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
			Expect(l.Release("a")).To(Equal(int64(1)))
			Expect(l.Unread("writer")).To(BeZero())
			Expect(l.Release("b")).To(Equal(int64(1)))
			confirmed("writer")
			Expect(l.Inspect().Holder).To(Equal("writer"))
			Expect(Redis(l.Client, "GET", l.Lock).ToString()).To(Equal("writer"))
		})

		It("lets nobody share what one holds alone, also if that one asked for 1", func() {
			Expect(l.Share("h", Long, 0, 1)).To(Hold())
			Expect(l.Share("a", Long, 0, all)).To(Busy())
			Expect(l.Share("a", Long, Long, 9)).To(Queued(1))
			Expect(l.Release("h")).To(Equal(int64(1)))
			confirmed("a")
			Expect(l.Share("b", Long, Long, all)).To(Hold())
		})
	})

	Describe("rule 14: one line", func() {
		It("has a sharer wait behind one who wants it alone, a try too", func() {
			shared("a")
			Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
			Expect(l.Share("b", Long, Long, all)).To(Queued(2))
			Expect(l.Share("try", Long, 0, all)).To(Busy())
			Expect(l.Inspect().Held).To(Equal(int64(1)))
		})

		DescribeTable("lets the next ones in when the one that kept them out", func(leave func()) {
			shared("a")
			Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
			for i, token := range []string{"b", "c"} {
				Expect(l.Share(token, Long, Long, all)).To(Queued(i + 2))
			}
			leave()
			confirmed("b", "c")
			Expect(l.Inspect().Waiting).To(BeZero())
		},
			Entry("leaves", func() { Expect(l.Release("writer")).To(Equal(int64(2))) }),
			Entry("only tries", func() { Expect(l.Acquire("writer", Long, 0)).To(Busy()) }),
		)

		It("lets the next ones in when the one that kept them out has lapsed", func(ctx SpecContext) {
			shared("a")
			Expect(l.Acquire("writer", Long, 50)).To(Queued(1))
			Expect(l.Share("b", Long, Long, all)).To(Queued(2))
			l.Past(ctx, l.Now()+50)
			confirmed("a", "b")
		})

		It("lets those behind the first one in with it", func(ctx SpecContext) {
			l.Contended()
			for i, token := range []string{"a", "b", "c"} {
				Expect(l.Share(token, Long, Long, 3)).To(Queued(i + 1))
			}
			l.RunOut(ctx)
			Expect(l.Share("a", Long, Long, 3)).To(Hold())
			confirmed("b", "c")
			Expect(l.Unread("a")).To(BeZero())
		})
	})

	Describe("rule 15: in batches", func() {
		It("lets 100 in, and the next call goes on", func() {
			l = l.As("client")
			l.Contended()
			commands := make([][]string, 150)
			for i := range commands {
				commands[i] = l.Command("lock_acquire", strconv.Itoa(i), Long, Long, all)
			}
			l.Pipeline(commands...)
			held := func(commands ...[]string) int64 {
				results := l.Pipeline(append(commands, l.Command("lock_inspect"))...)
				return ParseShown(results[len(results)-1]).Held
			}
			Expect(held(l.Command("lock_release", "h"))).To(Equal(int64(100)))
			Expect(l.Int("LLEN", l.List)).To(Equal(int64(100)))
			Expect(held(l.Command("lock_extend", "0", Long))).To(Equal(int64(150)))
			Expect(l.Int("HLEN", l.State)).To(Equal(int64(3)))
		})

		It("gives a share for 2 s, until confirmed", func() {
			l.Contended()
			l.Share("a", Long, Long, all)
			l.Share("b", 700, Long, all)
			results := l.Pipeline(l.Command("lock_release", "h"), l.Command("lock_inspect"), l.Command("lock_extend", "a", Long), l.Command("lock_inspect"))
			before, after := ParseShown(results[1]), ParseShown(results[3])
			Expect(before.Holders).To(Equal([]string{"b", "a"}))
			Expect(before.TTLs).To(HaveExactElements(BeNumerically("<=", 700), And(BeNumerically(">", 700), BeNumerically("<=", Claim))))
			Expect(after.TTLs).To(HaveExactElements(BeNumerically("<=", 700), Within(Long)))
		})
	})

	Describe("rule 16: a share ends by itself", func() {
		It("and no call of another one lengthens or shortens it", func(ctx SpecContext) {
			Expect(l.Share("short", 1000, 0, all)).To(Hold())
			Expect(l.Share("long", Long, 0, all)).To(Hold())
			Expect(l.PTTL(l.Lock)).To(Within(Long + 1))
			ends := Redis(l.Client, "ZSCORE", l.Lock, "short")
			end, err := ends.AsInt64()
			Expect(err).NotTo(HaveOccurred())
			confirmed("long")
			Expect(l.Share("other", 30, 0, all)).To(Hold())
			Expect(Redis(l.Client, "ZSCORE", l.Lock, "short").AsInt64()).To(Equal(end))
			Expect(l.PTTL(l.Lock)).To(Within(Long + 1))
			l.Past(ctx, end)
			Expect(l.Extend("short", Long)).To(Equal(int64(0)))
			Expect(l.Release("short")).To(Equal(int64(0)))
			Expect(l.Inspect().Holders).To(Equal([]string{"long"}))
		})

		DescribeTable("and any call hands it on", func(ctx SpecContext, function string, args ...any) {
			Expect(l.Share("dead", 500, 0, 2)).To(Hold())
			Expect(l.Share("h", Long, 0, 2)).To(Hold())
			Expect(l.Share("a", Long, Long, 2)).To(Queued(1))
			Expect(l.Share("b", Long, Long, 2)).To(Queued(2))
			l.Past(ctx, l.Now()+501)
			Expect(l.Call(function, args...).Error()).NotTo(HaveOccurred())
			confirmed("a", "h")
			Expect(l.Inspect().Waiters).To(Equal([]string{"b"}))
		},
			Entry("an extend", "lock_extend", "h", Long),
			Entry("an extend that comes too late", "lock_extend", "dead", Long),
			Entry("a release that comes too late", "lock_release", "dead"),
			Entry("a check-in", "lock_acquire", "b", Long, Long, 2),
			Entry("a holder that asks again", "lock_acquire", "h", Long, Long, 2),
			Entry("a newcomer's try", "lock_acquire", "new", Long, 0, 2),
		)

		It("and the first in line is told to look when enough have ended", func() {
			ends := map[string]int64{}
			for i, token := range []string{"a", "b", "c"} {
				reply := l.Share(token, (i+1)*300, 0, 3)
				Expect(reply).To(Hold())
				ends[token] = reply[3] + reply[2]
			}
			for holders, last := range map[int]string{3: "a", 2: "b", 1: "c"} {
				reply := l.Share("first", Long, Long, holders)
				if reply[0] == 0 { // else they have ended meanwhile
					Expect(reply[2]).To(BeNumerically("~", ends[last]-reply[3]+1, 100), last) // PTTL's clock does not stand still
				}
			}
		})

		It("unless it never expires; when that one leaves, the key has its TTL back", func() {
			shared("a")
			Expect(l.Share("never", 0, 0, all)[2]).To(Equal(int64(-1)))
			s := l.Inspect()
			Expect([]any{s.Holder, s.TTL, s.TTLs[1]}).To(Equal([]any{"never", int64(-1), int64(-1)}))
			for _, key := range []string{l.Lock, l.State} {
				Expect(l.PTTL(key)).To(Equal(int64(-1)))
			}
			confirmed("a")
			Expect(l.PTTL(l.Lock)).To(Equal(int64(-1)))
			Expect(l.Release("never")).To(Equal(int64(1)))
			Expect(l.PTTL(l.Lock)).To(Within(Long + 1))
			Expect(l.PTTL(l.State)).To(Within(Long + Memory + 1))
		})

		It("and nothing but the state is left of the last one", func() {
			shared("a", "b")
			Expect(l.Release("a")).To(Equal(int64(1)))
			Expect(l.Release("b")).To(Equal(int64(1)))
			Expect(l.Existing()).To(Equal([]string{l.State}))
			Expect(l.PTTL(l.State)).To(And(BeNumerically(">", 0), BeNumerically("<=", Memory)))
			Expect(l.Acquire("c", Long, 0)).To(Hold())
			Expect(l.Release("c")).To(Equal(int64(1)))
		})

		It("a reset takes it from all, and hands the lock on", func() {
			shared("a", "b")
			Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
			Expect(l.Reset()).To(Equal(int64(1)))
			confirmed("writer")
			for _, token := range []string{"a", "b"} {
				Expect(l.Extend(token, Long)).To(Equal(int64(0)))
			}
			Expect(l.Share("c", Long, Long, all)).To(Queued(1))
			Expect(l.Reset()).To(Equal(int64(1)))
			confirmed("c")
		})
	})

	It("rule 17: all who hold it together have one fence, higher than any before", func() {
		before := l.Acquire("h", Long, 0)[1]
		Expect(l.Share("a", Long, Long, all)).To(Queued(1))
		Expect(l.Release("h")).To(Equal(int64(1)))
		together := l.Pop("a").Fence
		Expect(together).To(BeNumerically(">", before))
		for _, token := range []string{"a", "b", "a"} {
			Expect(l.Share(token, Long, Long, all)[1]).To(Equal(together), token)
		}
		Expect(l.Inspect().Fence).To(Equal(together))
		Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
		l.Release("a")
		l.Release("b")
		Expect(l.Pop("writer").Fence).To(BeNumerically(">", together))
	})

	Describe("rule 18: asking again", func() {
		It("renews a share, whatever it asks for", func() {
			shared("a", "b")
			for _, holders := range []int{1, 2, all} {
				Expect(l.Share("a", 2*Long, Long, holders)).To(Hold())
			}
			Expect(l.Acquire("a", 2*Long, Long)).To(Hold())
			s := l.Inspect()
			Expect(s.Holders).To(Equal([]string{"b", "a"}))
			Expect(s.TTLs[1]).To(Within(2 * Long))
			Expect(s.Waiting).To(BeZero())
			Expect(l.Release("a")).To(Equal(int64(1)))
			Expect(l.Release("a")).To(Equal(int64(0)))
		})

		It("leaves alone who holds it alone", func() {
			l.Acquire("a", Long, 0)
			Expect(l.Share("a", Long, Long, all)).To(Hold())
			Expect(l.Share("b", Long, 0, all)).To(Busy())
		})

		It("keeps the place of one who asks for something else", func() {
			l.Contended("a", "b")
			Expect(l.Share("a", Long, Long, all)).To(Queued(1))
			Expect(l.Share("b", Long, Long, all)).To(Queued(2))
			l.Release("h")
			confirmed("a", "b")
		})
	})

	Describe("rule 19: who keeps sharers out, and is silent", func() {
		const cue = `^0 [1-9]\d* writer$`
		peek := func() string { return AsText(Redis(l.Client, "LINDEX", l.Signal("writer"), "0")) }
		// kept has a writer wait for "a", and "b" behind it, until the writer has been silent for long enough.
		kept := func(ctx SpecContext) {
			GinkgoHelper()
			shared("a")
			reply := l.Acquire("writer", Long, Long)
			Expect(reply).To(Queued(1))
			called := reply[3]
			l.Past(ctx, called+1)
			reply = l.Share("b", Long, Long, all)
			Expect(reply[:3]).To(Equal([]int64{0, 2, called + Claim + 1 - reply[3]}))
			Expect(l.Unread("writer")).To(BeZero())
			l.Past(ctx, called+Claim)
		}

		It("is told to call, once, and only when one who shares asks", func(ctx SpecContext) {
			kept(ctx)
			Expect(l.Extend("a", Long)).To(Equal(int64(1)))
			Expect(l.Acquire("other", Long, Long)).To(Queued(3))
			Expect(l.Unread("writer")).To(BeZero())
			for range 3 {
				Expect(l.Share("b", Long, Long, all)).To(Queued(2))
			}
			Expect(l.Unread("writer")).To(Equal(int64(1)))
			Expect(peek()).To(MatchRegexp(cue))
			Expect(l.PTTL(l.Signal("writer"))).To(Within(Claim + Long))
			Expect(l.Inspect().Fence).To(Equal(l.Share("a", Long, Long, all)[1]), "nothing was granted")
		})

		It("keeps its place if it calls", func(ctx SpecContext) {
			kept(ctx)
			Expect(l.Share("b", Long, Long, all)).To(Queued(2))
			Expect(Redis(l.Client, "LPOP", l.Signal("writer")).ToString()).To(MatchRegexp(cue))
			Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
			Expect(l.Share("b", Long, Long, all)).To(Queued(2))
			Expect(l.Release("a")).To(Equal(int64(1)))
			confirmed("writer")
		})

		It("has lost it when the signal lies unread past its deadline", func(ctx SpecContext) {
			kept(ctx)
			Expect(l.Share("b", Long, Long, all)).To(Queued(2))
			l.Past(ctx, ParseCue(peek()))
			Expect(l.Share("b", Long, Long, all)).To(Hold())
			Expect(l.Inspect().Waiters).To(BeEmpty())
		})

		It("loses it too if it cannot be told", func(ctx SpecContext) {
			shared("a")
			unknown := l
			unknown.List = "mailbox:" + l.Lock
			Expect(unknown.Acquire("writer", Long, 300)).To(Queued(1))
			Expect(l.Share("b", Long, Long, all)).To(Queued(2))
			l.Past(ctx, l.Now()+300)
			Expect(l.Share("b", Long, Long, all)).To(Hold())
		})
	})

	Describe("who was handed a share and is dead", func() {
		It("costs the others 2 s, and its client's other waiters nothing", func(ctx SpecContext) {
			dead := l.As("dead")
			for _, token := range []string{"x", "y", "z"} {
				Expect(l.Share(token, Long, 0, 3)).To(Hold())
			}
			for i := range 9 {
				Expect(dead.Share(fmt.Sprint("dead", i), Long, Long, 3)).To(Queued(i + 1))
			}
			for i := range 3 {
				Expect(l.Share(strconv.Itoa(i), Long, Long, 3)).To(Queued(10 + i))
			}
			for _, token := range []string{"x", "y", "z"} {
				Expect(l.Release(token)).To(Equal(int64(1)))
			}
			results := l.Pipeline([]string{"LRANGE", l.Signal("dead"), "0", "-1"})
			signals, err := results[0].AsStrSlice()
			Expect(err).NotTo(HaveOccurred())
			Expect(signals).To(HaveLen(3))
			l.Past(ctx, ParseCue(signals[2]))
			Expect(l.Share("2", Long, Long, 3)).To(Hold(), "the last one, as all before it fit")
			confirmed("0", "1")
			Expect(l.Inspect().Waiting).To(BeZero())
		})
	})

	Describe("loss of a key of a lock that is held together", func() {
		BeforeEach(func() {
			shared("a", "b")
			Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
			Expect(l.Share("c", Long, Long, all)).To(Queued(2))
		})

		It("the lock: it is free", func() {
			Redis(l.Client, "DEL", l.Lock)
			Expect(l.Extend("a", Long)).To(Equal(int64(0)))
			Expect(l.Share("c", Long, Long, all)).To(Queued(1))
			confirmed("writer")
		})

		It("the queue: who calls again waits again", func() {
			Redis(l.Client, "DEL", l.Queue)
			Expect(l.Share("c", Long, Long, all)).To(Hold())
			Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
			for _, token := range []string{"a", "b", "c"} {
				Expect(l.Release(token)).To(Equal(int64(1)))
			}
			confirmed("writer")
		})

		It("the state: the shares are held, and the next fence is higher", func() {
			fence := l.Share("a", Long, Long, all)[1]
			Redis(l.Client, "DEL", l.State)
			confirmed("a")
			Expect(l.Inspect().Holders).To(ConsistOf("a", "b"))
			Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
			Expect(l.Share("c", Long, Long, all)).To(Queued(2))
			Expect(l.Share("b", Long, Long, all)[1]).To(BeNumerically(">", fence))
			Expect(l.PTTL(l.State)).To(BeNumerically(">", Memory))
			l.Pipeline(l.Command("lock_release", "a"), l.Command("lock_release", "b"))
			confirmed("writer")
			Expect(l.Release("writer")).To(Equal(int64(1)))
			confirmed("c")
		})
	})

	It("shows who holds it, in the order in which the leases end, and what each waiter asked for", func() {
		for i, token := range []string{"c", "b", "a"} {
			Expect(l.Share(token, (3-i)*Long, 0, all)).To(Hold())
		}
		Expect(l.Acquire("writer", Long, Long)).To(Queued(1))
		Expect(l.Share("d", Long, Long, 7)).To(Queued(2))
		Expect(l.Share("e", Long, Long, all)).To(Queued(3))
		s := l.Inspect()
		Expect(s.Holder).To(Equal("c"))
		Expect(s.TTL).To(Within(3 * Long))
		Expect(s.Held).To(Equal(int64(3)))
		Expect(s.Holders).To(Equal([]string{"a", "b", "c"}))
		Expect(s.TTLs).To(HaveExactElements(Within(Long), Within(2*Long), Within(3*Long)))
		var asked []int64
		for _, details := range s.Details {
			n, err := details[5].ToInt64()
			Expect(err).NotTo(HaveOccurred())
			asked = append(asked, n)
		}
		Expect(asked).To(Equal([]int64{1, 7, 0}))
	})
})
