package redislock_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// forge rewrites by hand what the state knows of a waiter: its signal list, and when it called last.
func forge(l RawLock, token, list string, called int64) []string {
	GinkgoHelper()
	_, rest, _ := strings.Cut(AsText(Redis(l.Client, "HGET", l.State, "@"+token)), " ")
	Expect(rest).To(HaveSuffix(l.Signal(token)))
	return []string{"HSET", l.State, "@" + token, fmt.Sprint(called, " ", strings.TrimSuffix(rest, l.Signal(token)), list)}
}

var _ = OnEachTopology("a waiter that cannot be told", func() {
	const (
		hour    = 3_600_000
		tooLong = 10_000 + Claim // of a waiter with Long to wait
	)
	var (
		client rueidis.Client
		l      RawLock
		tag    string // of the keys, with its braces
	)
	BeforeEach(func(ctx SpecContext) {
		client = Directly(Server.Addr())
		Expect(redislock.Load(ctx, client)).To(Succeed())
		l = NewRawLock(client)
		tag = strings.TrimPrefix(l.Lock, "lock:")
	})

	inCluster := func() bool { return slices.Contains(CurrentSpecReport().Labels(), "cluster") }

	// fresh is a call that no pause of this test makes old.
	fresh := func() int64 { return l.Now() + hour }

	DescribeTable("is one whose list has not the name of a signal list", func(told bool, list func() string) {
		l.Contended("a")
		results := l.Pipeline(forge(l, "a", list(), fresh()), l.Command("lock_release", "h"), l.Command("lock_inspect"), []string{"LLEN", list()})
		Expect(AsInt(results[1])).To(Equal(int64(1)))
		s := ParseShown(results[2])
		if told {
			Expect(s.Holder).To(Equal("a"))
			Expect(AsInt(results[3])).To(Equal(int64(1)))
			return
		}
		Expect(s.Holder).To(BeEmpty())
		Expect(s.Waiters).To(Equal([]string{"a"}))
		Expect(l.Existing()).To(ConsistOf(l.Queue, l.State))
		Expect(l.Acquire("a", Long, Long)).To(Hold())
	},
		Entry("lock-signal:{NAME}:x is one", true, func() string { return "lock-signal:" + tag + ":x" }),
		Entry("x{NAME} is one", true, func() string { return "x" + tag }),
		Entry("{NAME}x is one", true, func() string { return tag + "x\x00" }),
		Entry("lock-signal is none", false, func() string { return "lock-signal" + strings.Trim(tag, "{}") }),
		Entry("another prefix's is none", false, func() string { return "other-signal:" + strings.Trim(tag, "{}") }),
		Entry("one that ends as the prefix is none", false, func() string { return "b" + "lock-signal:" + strings.Trim(tag, "{}") }),
		Entry("one that begins the prefix is none", false, func() string { return "loc-signal:" + strings.Trim(tag, "{}") }),
		Entry("the name without braces is none", false, func() string { return "x" + strings.Trim(tag, "{}") + "x" }),
		Entry("any other is none", false, func() string { return "jobs-" + strings.Trim(tag, "{}") }),
	)

	It("is none where the list has the prefix alone, out of a cluster", func() {
		list := "lock-signal:" + strings.Trim(tag, "{}")
		l.Contended("a")
		results := l.Pipeline(forge(l, "a", list, fresh()), l.Command("lock_release", "h"), []string{"EXISTS", l.Lock})
		told := map[bool]int64{true: 0, false: 1}[inCluster()] // where it is of another slot
		Expect(AsInt(results[2])).To(Equal(told))
		Redis(client, "DEL", list)
	})

	It("is none where the prefix has a colon", func() {
		l.Lock, l.Queue, l.State = "lock:eu:"+tag, "lock:eu-queue:"+tag, "lock:eu-state:"+tag
		l.List = "lock:eu-signal:" + tag // in a cluster it needs the slot
		if !inCluster() {
			l.List = "lock:eu-signal:" + strings.Trim(tag, "{}")
		}
		Expect(l.Acquire("h", Long, 0)).To(Hold())
		Expect(l.Acquire("a", Long, Long)).To(Queued(1))
		l.Pass("h", "a")
	})

	DescribeTable("is one whose list holds anything else, and the list stays as it is", func(oldest string) {
		list := "jobs " + tag
		l.Contended("a")
		Redis(client, "RPUSH", list, oldest, "1 2 x")
		Redis(client, forge(l, "a", list, fresh())...)
		contents := func() []string {
			elements, err := Redis(client, "LRANGE", list, "0", "-1").AsStrSlice()
			Expect(err).NotTo(HaveOccurred())
			return elements
		}
		Expect(l.Release("h")).To(Equal(int64(1)))
		Expect(l.Reset()).To(Equal(int64(0)), "it loses its place, see below")
		Expect(contents()).To(Equal([]string{oldest, "1 2 x"}))
		Expect(l.PTTL(list)).To(Equal(int64(-1)))
		Expect(l.Int("EXISTS", l.Lock)).To(BeZero())
	},
		Entry("a job", "job 1"), Entry("nothing", ""), Entry("a number", "1"), Entry("two numbers", "1 2"),
		Entry("two numbers and a space", "1 2 "), Entry("two numbers and more, not in front", "x 1 2 3"),
		Entry("a number that is none", "1 2.5 x"), Entry("one with a sign", "-1 2 x"),
	)

	It("is told, if the oldest element is a signal", func() {
		list := "jobs " + tag
		l.Contended("a")
		Redis(client, "RPUSH", list, fmt.Sprint("1 ", fresh(), " x"))
		Redis(client, forge(l, "a", list, fresh())...)
		l.Pass("h", "a")
		Expect(l.PTTL(list)).To(Within(Long + Claim))
	})

	Describe("and is silent", func() {
		// deaf makes a waiter one that cannot be told, and that called last at this time.
		deaf := func(token string, called int64) {
			GinkgoHelper()
			Redis(client, forge(l, token, l.Signal(token), called)...)
			Redis(client, "SET", l.Signal(token), "x", "PX", "600000")
		}

		DescribeTable("loses its place, and the next one has the lock at once", func(function string, args ...any) {
			l.Contended("deaf", "a")
			deaf("deaf", l.Now()-tooLong-1)
			results := l.Pipeline(l.Command(function, args...), l.Command("lock_inspect"))
			Expect(results[0].Error()).NotTo(HaveOccurred())
			Expect(ParseShown(results[1]).Holder).To(Equal("a"))
			Expect(l.Fields()).NotTo(ContainElement("@deaf"))
		},
			Entry("at a release", "lock_release", "h"),
			Entry("at a reset", "lock_reset"),
		)

		It("loses its place at a call that finds the lock free", func(ctx SpecContext) {
			l.Contended("deaf", "a")
			l.RunOut(ctx)
			deaf("deaf", l.Now()-tooLong-1)
			Expect(l.Acquire("a", Long, Long)).To(Hold())
		})

		It("keeps its place while somebody holds the lock: it may come back", func() {
			l.Contended("deaf", "a")
			deaf("deaf", l.Now()-hour/100)
			Expect(l.Acquire("a", Long, Long)).To(Queued(2))
			Redis(client, "DEL", l.Signal("deaf"))
			Expect(l.Acquire("deaf", Long, Long)).To(Queued(1))
		})

		It("keeps its place for 12 s: those farther back look less often", func() {
			l.Contended("deaf")
			deaf("deaf", l.Now()-tooLong+8_000)
			Expect(l.Acquire("a", Long, Long)).To(Queued(2))
			Expect(l.Release("h")).To(Equal(int64(1)))
			Expect(l.Acquire("a", Long, Long)).To(Queued(2))
			Redis(client, "DEL", l.Signal("deaf"))
			Expect(l.Acquire("deaf", Long, Long)).To(Hold())
		})

		It("loses its place sooner, if its WAIT_MS has it look more often", func() {
			const wait = 9_000
			l.Contended()
			Expect(l.Acquire("deaf", Long, wait)).To(Queued(1))
			Expect(l.Acquire("a", Long, Long)).To(Queued(2))
			deaf("deaf", l.Now()-wait/3-Claim-1)
			Expect(l.Release("h")).To(Equal(int64(1)))
			Expect(l.Inspect().Holder).To(Equal("a"))
		})

		It("so 1,500 of them in front of a live one are gone within a few calls", func() {
			const dead = 1_500
			l.Contended()
			var queue, silence [][]string
			for i := range dead {
				queue = append(queue, l.Command("lock_acquire", strconv.Itoa(i), Long, Long))
			}
			for _, result := range l.Pipeline(queue...) {
				Expect(result.Error()).NotTo(HaveOccurred())
			}
			called := l.Now() - tooLong - 1
			for i := range dead {
				token := strconv.Itoa(i)
				silence = append(silence, []string{"HSET", l.State, "@" + token, fmt.Sprint(called, " 60000 1000 ", l.Signal(token))},
					[]string{"SET", l.Signal(token), "x", "PX", "600000"})
			}
			for _, result := range l.Pipeline(silence...) {
				Expect(result.Error()).NotTo(HaveOccurred())
			}
			Expect(l.Acquire("a", Long, Long)).To(Queued(dead + 1))
			Expect(l.Release("h")).To(Equal(int64(1)))
			calls := 0
			for reply := l.Acquire("a", Long, Long); reply[0] == 0; reply = l.Acquire("a", Long, Long) {
				Expect(reply[1]).To(BeNumerically(">", 1), "the front is cleared from call to call")
				calls++
				Expect(calls).To(BeNumerically("<", 40))
			}
		})
	})

	Describe("at a reset", func() {
		It("of a free lock loses its place at once, and no other does", func() {
			l.Contended("a", "b", "c")
			for _, token := range []string{"a", "b"} {
				Redis(client, forge(l, token, "jobs", fresh())...)
			}
			Expect(l.Release("h")).To(Equal(int64(1)))
			Expect(l.Reset()).To(Equal(int64(0)))
			s := l.Inspect()
			Expect(s.Holder).To(BeEmpty())
			Expect(s.Waiters).To(Equal([]string{"b", "c"}))
			Expect(l.Reset()).To(Equal(int64(0)))
			Expect(l.Inspect().Holder).To(Equal("c"))
		})

		It("of a held lock keeps its place: it was the holder that was in the way", func() {
			l.Contended("a", "b")
			Redis(client, forge(l, "a", "jobs", fresh())...)
			Expect(l.Reset()).To(Equal(int64(1)))
			Expect(l.Inspect().Waiters).To(Equal([]string{"a", "b"}))
			Expect(l.Acquire("a", Long, Long)).To(Hold())
		})
	})
})
