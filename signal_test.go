package redislock_test

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	Describe("signals", func() {
		It("are FENCE DEADLINE_MS TOKEN", func() {
			l.Contended("a")
			before := l.Micros()
			l.Pass("h", "a")
			s := l.Pop("a")
			Expect(s.Token).To(Equal("a"))
			Expect(s.Fence).To(And(BeNumerically(">=", before), BeNumerically("<=", l.Micros()), Equal(l.Inspect().Fence)))
			Expect(l.Unread("a")).To(BeZero())
		})

		DescribeTable("tell the end of the short lease: min(LEASE_MS, 2 s)", func(lease, want int) {
			l.Contended()
			l.Acquire("a", lease, Long)
			results := l.Pipeline([]string{"TIME"}, l.Command("lock_release", "h"), []string{"PEXPIRETIME", l.Lock}, []string{"TIME"})
			deadline := l.Pop("a").Deadline
			Expect(deadline - int64(want)).To(And(
				BeNumerically(">=", MicrosOf(results[0])/1000), BeNumerically("<=", MicrosOf(results[3])/1000)))
			Expect(AsInt(results[2])).To(BeNumerically("~", deadline, 1), "the lock's own")
		},
			Entry("500 ms", 500, 500),
			Entry("2 s", Claim, Claim),
			Entry("a minute", Long, Claim),
			Entry("never", 0, Claim),
		)

		It("expire unread, after the deadline and once the wait of the waiter would have lapsed", func() {
			l.Contended("a")
			results := l.Pipeline(l.Command("lock_release", "h"), []string{"PTTL", l.Signal("a")})
			Expect(AsInt(results[1])).To(Within(Long + Claim))
		})

		It("of many waiters may come over one list", func() {
			client := l.As("client")
			client.Contended("a", "b", "c")
			client.Pass("h", "a")
			client.Pass("a", "b")
			client.Pass("b", "c")
			for _, token := range []string{"a", "b", "c"} {
				Expect(l.Pop("client").Token).To(Equal(token))
			}
		})

		It("come over any list key of the slot", func() {
			l.Contended()
			l.List = "mailbox " + strings.TrimPrefix(l.Lock, "lock:") + " of\r\n\x00\xff"
			Expect(l.Acquire("a", Long, Long)).To(Queued(1))
			Expect(l.Release("h")).To(Equal(int64(1)))
			Expect(ParseSignal(Redis(l.Client, "LPOP", l.List)).Token).To(Equal("a"))
		})

		DescribeTable("carry tokens of any bytes, which are compared whole", func(token string) {
			other := token + "x"
			l = l.As("client")
			Expect(l.Acquire(other, Long, Long)).To(Hold())
			Expect(l.Acquire(token, Long, Long)).To(Queued(1))
			Expect(l.Acquire(token[:len(token)-1]+"y", Long, Long)).To(Queued(2))
			Expect(l.Release(token + "z")).To(Equal(int64(0)))
			Expect(l.Inspect().Waiters[0]).To(Equal(token))
			l.Pass(other, token)
			Expect(l.Pop("client").Token).To(Equal(token))
			Expect(l.Inspect().Holder).To(Equal(token))
			Expect(l.Extend(other, Long)).To(Equal(int64(0)))
			Expect(l.Release(token)).To(Equal(int64(1)))
		},
			Entry("spaces", " 1 2  3 "),
			Entry("NUL, line ends and invalid UTF-8", "a\x00\r\n\xff\xfe"),
			Entry("a pattern", "%d*[^"),
			Entry("a field of the state", "fence"),
			Entry("another field of the state", "since"),
			Entry("a field with the mark of waiters", "@a"),
			Entry("a long one", strings.Repeat("0123456789", 1000)),
			Entry("upper case", "TOKEN"),
		)
	})

	Describe("rule 5: the lock key is the truth", func() {
		It("tells a waiter whose signal was lost that it holds the lock", func() {
			l.Contended("a")
			results := l.Pipeline(l.Command("lock_release", "h"), []string{"DEL", l.Signal("a")}, l.Command("lock_acquire", "a", Long, Long))
			Expect(AsInts(results[2])).To(HaveExactElements(int64(1), l.Inspect().Fence, int64(Long), BeNumerically(">", 0)))
		})

		It("tells a waiter whose signal came too late that it waits", func(ctx SpecContext) {
			l.Contended("a")
			l.Release("h")
			l.RunOut(ctx)
			Expect(l.Acquire("b", Long, Long)).To(Hold())
			Expect(l.Pop("a").Token).To(Equal("a"))
			Expect(l.Acquire("a", Long, Long)).To(Queued(1))
		})

		It("answers a call that was sent twice by what is", func() {
			l.Contended("a", "b")
			for range 2 {
				Expect(l.Acquire("h", Long, Long)).To(Hold())
				Expect(l.Extend("h", Long)).To(Equal(int64(1)))
				Expect(l.Acquire("b", Long, Long)).To(Queued(2))
			}
			l.Pass("h", "a")
			Expect(l.Release("h")).To(Equal(int64(0)))
			Expect(l.Inspect().Holder).To(Equal("a"), "the second release is not of the next one's lock")
			Expect(l.Unread("a")).To(Equal(int64(1)))
		})
	})
})
