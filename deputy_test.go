package redislock_test

import (
	"fmt"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// forge rewrites by hand what the state knows of a waiter: its signal list, and when it called last.
func (l rawLock) forge(token, list string, called int64) []string {
	GinkgoHelper()
	_, rest, _ := strings.Cut(asText(redis(l.client, "HGET", l.state, "@"+token)), " ")
	Expect(rest).To(HaveSuffix(l.signal(token)))
	return []string{"HSET", l.state, "@" + token, fmt.Sprint(called, " ", strings.TrimSuffix(rest, l.signal(token)), list)}
}

var _ = describe("a waiter that cannot be told", func() {
	const hour = 3_600_000
	var (
		client rueidis.Client
		l      rawLock
		tag    string // of the keys, with its braces
	)
	BeforeEach(func(ctx SpecContext) {
		client = directly(server.Addr())
		Expect(redislock.Load(ctx, client)).To(Succeed())
		l = newRawLock(client)
		tag = strings.TrimPrefix(l.lock, "lock:")
	})

	// fresh is a call that no pause of this test makes old.
	fresh := func() int64 { return l.now() + hour }

	DescribeTable("is one whose list has not the name of a signal list", func(told bool, list func() string) {
		l.contended("a")
		results := l.pipeline(l.forge("a", list(), fresh()), l.command("lock_release", "h"), l.command("lock_inspect"), []string{"LLEN", list()})
		Expect(asInt(results[1])).To(Equal(int64(1)))
		s := parseShown(results[2])
		if told {
			Expect(s.holder).To(Equal("a"))
			Expect(asInt(results[3])).To(Equal(int64(1)))
			return
		}
		Expect(s.holder).To(BeEmpty())
		Expect(s.waiters).To(Equal([]string{"a"}))
		Expect(l.existing()).To(ConsistOf(l.queue, l.state))
		Expect(l.acquire("a", long, long)).To(hold())
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
		l.contended("a")
		results := l.pipeline(l.forge("a", list, fresh()), l.command("lock_release", "h"), []string{"EXISTS", l.lock})
		told := map[bool]int64{true: 0, false: 1}[here.name == "cluster"] // where it is of another slot
		Expect(asInt(results[2])).To(Equal(told))
		redis(client, "DEL", list)
	})

	It("is none where the prefix has a colon", func() {
		l.lock, l.queue, l.state = "lock:eu:"+tag, "lock:eu-queue:"+tag, "lock:eu-state:"+tag
		l.list = "lock:eu-signal:" + tag // in a cluster it needs the slot
		if here.name != "cluster" {
			l.list = "lock:eu-signal:" + strings.Trim(tag, "{}")
		}
		Expect(l.acquire("h", long, 0)).To(hold())
		Expect(l.acquire("a", long, long)).To(queued(1))
		l.pass("h", "a")
	})

	DescribeTable("is one whose list holds anything else, and the list stays as it is", func(oldest string) {
		list := "jobs " + tag
		l.contended("a")
		redis(client, "RPUSH", list, oldest, "1 2 x")
		redis(client, l.forge("a", list, fresh())...)
		contents := func() []string {
			elements, err := redis(client, "LRANGE", list, "0", "-1").AsStrSlice()
			Expect(err).NotTo(HaveOccurred())
			return elements
		}
		Expect(l.release("h")).To(Equal(int64(1)))
		Expect(l.reset()).To(Equal(int64(0)), "it loses its place, see below")
		Expect(contents()).To(Equal([]string{oldest, "1 2 x"}))
		Expect(l.pttl(list)).To(Equal(int64(-1)))
		Expect(l.int("EXISTS", l.lock)).To(BeZero())
	},
		Entry("a job", "job 1"), Entry("nothing", ""), Entry("a number", "1"), Entry("two numbers", "1 2"),
		Entry("two numbers and a space", "1 2 "), Entry("two numbers and more, not in front", "x 1 2 3"),
		Entry("a number that is none", "1 2.5 x"), Entry("one with a sign", "-1 2 x"),
	)

	It("is told, if the oldest element is a signal", func() {
		list := "jobs " + tag
		l.contended("a")
		redis(client, "RPUSH", list, fmt.Sprint("1 ", fresh(), " x"))
		redis(client, l.forge("a", list, fresh())...)
		l.pass("h", "a")
		Expect(l.pttl(list)).To(within(long + claim))
	})

	Describe("and is silent", func() {
		// deaf makes a waiter one that cannot be told, and that called last at this time.
		deaf := func(token string, called int64) {
			GinkgoHelper()
			redis(client, l.forge(token, l.signal(token), called)...)
			redis(client, "SET", l.signal(token), "x", "PX", "600000")
		}

		DescribeTable("loses its place, and the next one has the lock at once", func(function string, args ...any) {
			l.contended("deaf", "a")
			deaf("deaf", l.now()-1000-claim-1)
			results := l.pipeline(l.command(function, args...), l.command("lock_inspect"))
			Expect(results[0].Error()).NotTo(HaveOccurred())
			Expect(parseShown(results[1]).holder).To(Equal("a"))
			Expect(l.fields()).NotTo(ContainElement("@deaf"))
		},
			Entry("at a release", "lock_release", "h"),
			Entry("at a reset", "lock_reset"),
		)

		It("loses its place at a call that finds the lock free", func(ctx SpecContext) {
			l.contended("deaf", "a")
			l.runOut(ctx)
			deaf("deaf", l.now()-1000-claim-1)
			Expect(l.acquire("a", long, long)).To(hold())
		})

		It("keeps its place while somebody holds the lock: it may come back", func() {
			l.contended("deaf", "a")
			deaf("deaf", l.now()-hour/100)
			Expect(l.acquire("a", long, long)).To(queued(2))
			redis(client, "DEL", l.signal("deaf"))
			Expect(l.acquire("deaf", long, long)).To(queued(1))
		})

		It("keeps its place until its check-in is over: those farther back look less often", func() {
			tokens := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "deaf"}
			l.contended(tokens...)
			for _, token := range tokens[:9] {
				Expect(l.release(token)).To(Equal(int64(2)))
			}
			deaf("deaf", l.now()-4_000) // told 10 s
			Expect(l.acquire("a", long, long)).To(queued(2))
			Expect(l.release("h")).To(Equal(int64(1)))
			Expect(l.acquire("a", long, long)).To(queued(2))
			redis(client, "DEL", l.signal("deaf"))
			Expect(l.acquire("deaf", long, long)).To(hold())
		})

		It("and nobody is told to call later than in 10 s", func() {
			l.contended()
			for i := range 30 {
				Expect(l.acquire(strconv.Itoa(i), long, waitMax)[2]).To(Equal(int64(min(i+1, 10) * 1000)))
			}
		})

		It("so 1,500 of them in front of a live one are gone within a few calls", func() {
			const dead = 1_500
			l.contended()
			var queue, silence [][]string
			for i := range dead {
				queue = append(queue, l.command("lock_acquire", strconv.Itoa(i), long, long))
			}
			for _, result := range l.pipeline(queue...) {
				Expect(result.Error()).NotTo(HaveOccurred())
			}
			called := l.now() - 10_000 - claim - 1
			for i := range dead {
				token := strconv.Itoa(i)
				silence = append(silence, []string{"HSET", l.state, "@" + token, fmt.Sprint(called, " 60000 1000 10000 ", l.signal(token))},
					[]string{"SET", l.signal(token), "x", "PX", "600000"})
			}
			for _, result := range l.pipeline(silence...) {
				Expect(result.Error()).NotTo(HaveOccurred())
			}
			Expect(l.acquire("a", long, long)).To(queued(dead + 1))
			Expect(l.release("h")).To(Equal(int64(1)))
			calls := 0
			for reply := l.acquire("a", long, long); reply[0] == 0; reply = l.acquire("a", long, long) {
				Expect(reply[1]).To(BeNumerically(">", 1), "the front is cleared from call to call")
				calls++
				Expect(calls).To(BeNumerically("<", 40))
			}
		})
	})

	Describe("at a reset", func() {
		It("of a free lock loses its place at once, and no other does", func() {
			l.contended("a", "b", "c")
			for _, token := range []string{"a", "b"} {
				redis(client, l.forge(token, "jobs", fresh())...)
			}
			Expect(l.release("h")).To(Equal(int64(1)))
			Expect(l.reset()).To(Equal(int64(0)))
			s := l.inspect()
			Expect(s.holder).To(BeEmpty())
			Expect(s.waiters).To(Equal([]string{"b", "c"}))
			Expect(l.reset()).To(Equal(int64(0)))
			Expect(l.inspect().holder).To(Equal("c"))
		})

		It("of a held lock keeps its place: it was the holder that was in the way", func() {
			l.contended("a", "b")
			redis(client, l.forge("a", "jobs", fresh())...)
			Expect(l.reset()).To(Equal(int64(1)))
			Expect(l.inspect().waiters).To(Equal([]string{"a", "b"}))
			Expect(l.acquire("a", long, long)).To(hold())
		})
	})
})
