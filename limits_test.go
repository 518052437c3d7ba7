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
)

// The limits of a call.
const (
	tokenMax = 1_024 // bytes
	keyMax   = 2_048
	leaseMax = 315_360_000_000 // ten years
	waitMax  = 86_400_000      // a day
)

var _ = describe("limits", func() {
	var (
		client rueidis.Client
		l      rawLock
	)
	BeforeEach(func(ctx SpecContext) {
		client = directly(server.Addr())
		Expect(redislock.Load(ctx, client)).To(Succeed())
		l = newRawLock(client)
	})

	It("take the longest token, lease and wait", func() {
		token := strings.Repeat("x", tokenMax)
		Expect(l.acquire("h", leaseMax, 0)).To(HaveExactElements(int64(1), BeNumerically(">", 0), int64(leaseMax), BeNumerically(">", 0)))
		Expect(l.as("client").acquire(token, leaseMax, waitMax)).To(queued(1))
		Expect(l.extend("h", leaseMax)).To(Equal(int64(1)))
		Expect(l.pttl(l.lock)).To(within(leaseMax))
		l.pass("h", token)
		Expect(l.pop("client").token).To(Equal(token))
		Expect(l.acquire(token, 0, 0)).To(hold())
	})

	It("take keys as long as they may be", func() {
		pad := strings.Repeat("x", keyMax-len(l.signal("a")))
		l.lock, l.queue, l.state = l.lock+pad, l.queue+pad, l.state+pad
		Expect(l.lock).To(HaveLen(keyMax - len("lock-signal::a") + len("lock:")))
		Expect(l.acquire("h", long, 0)).To(hold())
		Expect(l.acquire("a", long, long)).To(queued(1))
		l.pass("h", "a")
		Expect(l.pop("a").token).To(Equal("a"))
	})

	DescribeTable("name what is too large, and write nothing", func(s signature) {
		l.contended("a")
		before := l.snapshot()
		good := func() (keys, args []string) {
			return append(l.keys(), l.signal("h"))[:len(s.keys)], []string{"h", "60000", "60000"}[:len(s.args)]
		}
		for i, name := range s.args {
			tooMuch := map[string]string{
				"TOKEN": strings.Repeat("x", tokenMax+1), "LEASE_MS": strconv.Itoa(leaseMax + 1), "WAIT_MS": strconv.Itoa(waitMax + 1),
			}[name]
			keys, args := good()
			args[i] = tooMuch
			Expect(fcall(client, s.function, keys, args...).Error()).To(refuse("LOCKARG", name))
		}
		for i, name := range s.keys {
			keys, args := good()
			keys = slices.Clone(keys)
			keys[i] += strings.Repeat("x", keyMax)
			Expect(fcall(client, s.function, keys, args...).Error()).To(refuse("LOCKARG", "key "+name))
		}
		Expect(l.snapshot()).To(Equal(before))
	},
		Entry(nil, signatures[0]), Entry(nil, signatures[1]), Entry(nil, signatures[2]), Entry(nil, signatures[3]), Entry(nil, signatures[4]),
	)

	// written are waiters that somebody writes by hand: so many, who called then. The list of each is its own.
	written := func(n int, called int64, entry string) {
		GinkgoHelper()
		var commands [][]string
		for i := range n {
			token := fmt.Sprintf("w%06d", i)
			commands = append(commands, []string{"ZADD", l.queue, strconv.Itoa(i + 1), token},
				[]string{"HSET", l.state, "@" + token, fmt.Sprint(called, entry, l.signal(token))})
		}
		for _, result := range l.pipeline(commands...) {
			Expect(result.Error()).NotTo(HaveOccurred())
		}
	}
	// goesOn has a newcomer call until it holds the lock. It is told to go on at once, and no call looks at more.
	goesOn := func(atLeast, atMost int) {
		GinkgoHelper()
		calls, waiting := 0, int64(-1)
		for reply := l.acquire("new", long, long); reply[0] == 0; reply = l.acquire("new", long, long) {
			calls++
			Expect(calls).To(BeNumerically("<", atMost))
			Expect(reply[2]).To(Equal(int64(1)), "check_in_ms")
			if waiting >= 0 {
				Expect(reply[1]).To(BeNumerically("<", waiting), "each call drops some")
			}
			waiting = reply[1]
			Expect(l.acquire("other", long, 0)).To(busy(), "nobody overtakes those who were not looked at")
		}
		Expect(calls).To(BeNumerically(">=", atLeast))
		Expect(l.inspect().waiters).To(BeEmpty())
	}

	It("end a call that has dropped 4,000 waiters, and the next one goes on", func() {
		Expect(l.acquire("h", long, 0)).To(hold())
		written(10_000, l.now()-3_600_000, " 1000 1000 333 ")
		Expect(l.release("h")).To(Equal(int64(1)))
		Expect(l.int("ZCARD", l.queue)).To(And(BeNumerically(">", 6_000), BeNumerically("<", 7_000)))
		Expect(l.int("EXISTS", l.lock)).To(BeZero())
		goesOn(1, 5)
	})

	It("end a call that has found 400 clients dead, each by its own list", func() {
		const dead = 1_500
		Expect(l.acquire("h", long, 0)).To(hold())
		now := l.now()
		written(dead, now-3_600_000, " 7200000 1000 10000 ")
		var commands [][]string
		for i := range dead {
			commands = append(commands, []string{"RPUSH", l.signal(fmt.Sprintf("w%06d", i)), fmt.Sprint("1 ", now-60_000, " w")})
		}
		l.pipeline(commands...)
		Expect(l.release("h")).To(Equal(int64(1)))
		Expect(l.int("ZCARD", l.queue)).To(And(BeNumerically(">", dead-500), BeNumerically("<", dead)))
		goesOn(1, 10)
	})

	It("end a call that has met a token which no function would have written, and a batch of others", func() {
		Expect(l.acquire("h", long, 0)).To(hold())
		for i := range 300 {
			redis(client, "ZADD", l.queue, strconv.Itoa(i+1), fmt.Sprintf("%0*d", tokenMax+1, i))
		}
		redis(client, "PEXPIRE", l.queue, "600000")
		s := l.inspect()
		Expect(s.waiters).To(BeEmpty())
		Expect(s.waiting).To(BeNumerically("<=", 200), "it looks at no more than 100")
		Expect(l.release("h")).To(Equal(int64(1)))
		Expect(l.int("ZCARD", l.queue)).To(BeNumerically(">=", 199))
		goesOn(1, 300)
	})

	It("show and believe no number that no function would have written", func() {
		l.contended("a")
		for _, entry := range []string{" 86400001 1000 1000 ", " 60000 315360000001 1000 ", " 60000 1000 10001 "} {
			redis(client, "HSET", l.state, "@a", fmt.Sprint(l.now(), entry, l.signal("a")))
			Expect(l.inspect().details[0][4].ToString()).To(BeEmpty(), "it counts as lost")
		}
		redis(client, "HSET", l.state, "@a", "9999999999999 60000 1000 1000 "+l.signal("a"))
		Expect(l.inspect().details[0][2].ToInt64()).To(Equal(int64(waitMax)), "lapses_in_ms")
		redis(client, "HSET", l.state, "@a", fmt.Sprint(l.now(), " 60000 1000 1000 ", strings.Repeat("x", keyMax+100)))
		Expect(l.inspect().details[0][4].ToString()).To(BeEmpty())
	})

	It("read no more of what somebody wrote at the lock's key than a token may have", func() {
		redis(client, "SET", l.lock, strings.Repeat("x", 10*tokenMax), "PX", "600000")
		Expect(l.inspect().holder).To(HaveLen(tokenMax + 1))
		Expect(l.acquire("a", long, 0)).To(busy())
		Expect(l.reset()).To(Equal(int64(1)))
		redis(client, "SET", l.lock, "", "PX", "600000")
		Expect(l.acquire("a", long, 0)).To(hold(), "nobody has the empty token")
	})
})
