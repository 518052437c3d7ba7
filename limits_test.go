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

// The limits of a call.
const (
	tokenMax = 16_384 // bytes
	keyMax   = 8_192
	leaseMax = 9_999_999_999_999
	waitMax  = 86_400_000 // a day
)

var _ = OnEachTopology("limits", func() {
	var (
		client rueidis.Client
		l      RawLock
	)
	BeforeEach(func(ctx SpecContext) {
		client = Directly(Server.Addr())
		Expect(redislock.Load(ctx, client)).To(Succeed())
		l = NewRawLock(client)
	})

	It("take the longest token, lease and wait", func() {
		token := strings.Repeat("x", tokenMax)
		Expect(l.Acquire("h", leaseMax, 0)).To(HaveExactElements(int64(1), BeNumerically(">", 0), int64(leaseMax), BeNumerically(">", 0)))
		Expect(l.As("client").Acquire(token, leaseMax, waitMax)).To(Queued(1))
		Expect(l.Extend("h", leaseMax)).To(Equal(int64(1)))
		Expect(l.PTTL(l.Lock)).To(Within(leaseMax))
		l.Pass("h", token)
		Expect(l.Pop("client").Token).To(Equal(token))
		Expect(l.As("client").Acquire(token, 0, 0)).To(Hold())
	})

	It("take keys as long as they may be", func() {
		pad := strings.Repeat("x", keyMax-len(l.Signal("a")))
		l.Lock, l.Queue, l.State = l.Lock+pad, l.Queue+pad, l.State+pad
		Expect(l.Lock).To(HaveLen(keyMax - len("lock-signal::a") + len("lock:")))
		Expect(l.Acquire("h", Long, 0)).To(Hold())
		Expect(l.Acquire("a", Long, Long)).To(Queued(1))
		l.Pass("h", "a")
		Expect(l.Pop("a").Token).To(Equal("a"))
	})

	DescribeTable("name what is too large, and write nothing", func(s signature) {
		l.Contended("a")
		before := l.Snapshot()
		good := func() (keys, args []string) {
			return append(l.Keys(), l.Signal("h"))[:len(s.keys)], []string{"h", "60000", "60000", "1"}[:len(s.args)]
		}
		for i, name := range s.args {
			tooMuch := map[string]string{
				"TOKEN": strings.Repeat("x", tokenMax+1), "LEASE_MS": strconv.Itoa(leaseMax + 1), "WAIT_MS": strconv.Itoa(waitMax + 1),
				"HOLDERS": "10000000000000",
			}[name]
			keys, args := good()
			args[i] = tooMuch
			Expect(FCall(client, s.function, keys, args...).Error()).To(refuse("LOCKARG", name))
		}
		for i, name := range s.keys {
			keys, args := good()
			keys = slices.Clone(keys)
			keys[i] += strings.Repeat("x", keyMax)
			Expect(FCall(client, s.function, keys, args...).Error()).To(refuse("LOCKARG", "key "+name))
		}
		Expect(l.Snapshot()).To(Equal(before))
	},
		Entry(nil, signatures[0]), Entry(nil, signatures[1]), Entry(nil, signatures[2]), Entry(nil, signatures[3]), Entry(nil, signatures[4]),
	)

	// written are n waiters that somebody writes by hand; they called then. Each has a list of its own.
	written := func(format string, n int, called int64, entry string) {
		GinkgoHelper()
		var commands [][]string
		for i := range n {
			token := fmt.Sprintf(format, i)
			commands = append(commands, []string{"ZADD", l.Queue, strconv.Itoa(i + 1), token},
				[]string{"HSET", l.State, "@" + token, fmt.Sprint(called, entry, l.Signal(token[len(token)-7:]))})
		}
		for _, result := range l.Pipeline(commands...) {
			Expect(result.Error()).NotTo(HaveOccurred())
		}
	}
	// goesOn has a newcomer call until it holds the lock. It is told to go on at once, and no call looks at more.
	goesOn := func(atLeast, atMost int) {
		GinkgoHelper()
		calls, waiting := 0, int64(-1)
		for reply := l.Acquire("new", Long, Long); reply[0] == 0; reply = l.Acquire("new", Long, Long) {
			calls++
			Expect(calls).To(BeNumerically("<", atMost))
			Expect(reply[2]).To(Equal(int64(1)), "check_in_ms")
			if waiting >= 0 {
				Expect(reply[1]).To(BeNumerically("<", waiting), "each call drops some")
			}
			waiting = reply[1]
			Expect(l.Acquire("other", Long, 0)).To(Busy(), "nobody overtakes those who were not looked at")
		}
		Expect(calls).To(BeNumerically(">=", atLeast))
		Expect(l.Inspect().Waiters).To(BeEmpty())
	}

	It("end a call that has dropped 4,000 waiters, and the next one goes on", func() {
		Expect(l.Acquire("h", Long, 0)).To(Hold())
		written("w%06d", 10_000, l.Now()-3_600_000, " 1000 1000 ")
		Expect(l.Release("h")).To(Equal(int64(1)))
		Expect(l.Int("ZCARD", l.Queue)).To(And(BeNumerically(">", 6_000), BeNumerically("<", 7_000)))
		Expect(l.Int("EXISTS", l.Lock)).To(BeZero())
		goesOn(1, 5)
	})

	It("end a call that has found 400 clients dead, each by its own list", func() {
		const dead = 1_500
		Expect(l.Acquire("h", Long, 0)).To(Hold())
		now := l.Now()
		written("w%06d", dead, now-3_600_000, " 7200000 1000 ")
		var commands [][]string
		for i := range dead {
			commands = append(commands, []string{"RPUSH", l.Signal(fmt.Sprintf("w%06d", i)), fmt.Sprint("1 ", now-60_000, " w")})
		}
		l.Pipeline(commands...)
		Expect(l.Release("h")).To(Equal(int64(1)))
		Expect(l.Int("ZCARD", l.Queue)).To(And(BeNumerically(">", dead-500), BeNumerically("<", dead)))
		goesOn(1, 10)
	})

	It("end a call sooner if tokens are long, and the list of lock_inspect, too", func() {
		const long = "%016384d" // tokenMax
		Expect(l.Acquire("h", Long, 0)).To(Hold())
		written(long, 300, l.Now(), " 7200000 1000 ")
		s := l.Inspect()
		Expect(s.Waiting).To(Equal(int64(300)))
		Expect(s.Waiters).To(HaveLen(100))
		written(long, 300, l.Now()-3_600_000, " 1000 1000 ")
		Expect(l.Release("h")).To(Equal(int64(1)))
		Expect(l.Int("ZCARD", l.Queue)).To(And(BeNumerically(">=", 199), BeNumerically("<", 300)))
		goesOn(1, 10)
	})

	It("end a call that has met a token which no function would have written, and a batch of others", func() {
		Expect(l.Acquire("h", Long, 0)).To(Hold())
		for i := range 300 {
			Redis(client, "ZADD", l.Queue, strconv.Itoa(i+1), fmt.Sprintf("%0*d", tokenMax+1, i))
		}
		Redis(client, "PEXPIRE", l.Queue, "600000")
		s := l.Inspect()
		Expect(s.Waiters).To(BeEmpty())
		Expect(s.Waiting).To(BeNumerically("<=", 200), "it looks at no more than 100")
		Expect(l.Release("h")).To(Equal(int64(1)))
		Expect(l.Int("ZCARD", l.Queue)).To(BeNumerically(">=", 199))
		goesOn(1, 300)
	})

	It("show and believe no number that no function would have written", func() {
		l.Contended("a")
		for _, entry := range []string{" 86400001 1000 ", " 60000 10000000000000 "} {
			Redis(client, "HSET", l.State, "@a", fmt.Sprint(l.Now(), entry, l.Signal("a")))
			Expect(l.Inspect().Details[0][4].ToString()).To(BeEmpty(), "it counts as lost")
		}
		Redis(client, "HSET", l.State, "@a", "9999999999999 60000 1000 "+l.Signal("a"))
		Expect(l.Inspect().Details[0][2].ToInt64()).To(Equal(int64(waitMax)), "lapses_in_ms")
		Redis(client, "HSET", l.State, "@a", fmt.Sprint(l.Now(), " 60000 1000 ", strings.Repeat("x", keyMax+100)))
		Expect(l.Inspect().Details[0][4].ToString()).To(BeEmpty())
	})

	It("read no more of what somebody wrote at the lock's key than a token may have", func() {
		Redis(client, "SET", l.Lock, strings.Repeat("x", 10*tokenMax), "PX", "600000")
		Expect(l.Inspect().Holder).To(HaveLen(tokenMax + 1))
		Expect(l.Acquire("a", Long, 0)).To(Busy())
		Expect(l.Reset()).To(Equal(int64(1)))
		Redis(client, "SET", l.Lock, "", "PX", "600000")
		Expect(l.Acquire("a", Long, 0)).To(Hold(), "nobody has the empty token")
	})
})
