package redislock_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// Milliseconds, as the functions take them.
const (
	long   = 60_000  // a lease or a wait that does not end within a spec
	claim  = 2_000   // a handed-over lease, at most
	memory = 600_000 // what lock-state outlives the last user
)

// rawLock is one lock as a client in any language sees it.
type rawLock struct {
	client             rueidis.Client
	lock, queue, state string
	list               string // the signal list; "": every token has one of its own
}

// newRawLock is a lock of which the server that client talks to has the keys: so in a cluster, too,
// functions are called by hand.
func newRawLock(client rueidis.Client) rawLock {
	GinkgoHelper()
	for {
		k := keysOf(newName())
		err := redis(client, "EXISTS", k[0]).Error()
		if err == nil {
			return rawLock{client: client, lock: k[0], queue: k[1], state: k[2]}
		}
		Expect(err).To(MatchError(HavePrefix("MOVED")))
	}
}

func (l rawLock) keys() []string { return []string{l.lock, l.queue, l.state} }

// signal is the signal list of a client, or of a token that has one of its own.
func (l rawLock) signal(client string) string {
	return "lock-signal" + strings.TrimPrefix(l.lock, "lock") + ":" + client
}

// as is the same lock, for a client that uses one signal list for all of its waiters.
func (l rawLock) as(client string) rawLock {
	l.list = l.signal(client)
	return l
}

// with is the same lock over another connection.
func (l rawLock) with(client rueidis.Client) rawLock {
	l.client = client
	return l
}

// words are a call as the server gets it: function, keys, arguments.
func (l rawLock) words(function string, args ...any) (string, []string, []string) {
	keys, texts := l.keys(), make([]string, len(args))
	for i, arg := range args {
		texts[i] = fmt.Sprint(arg)
	}
	if function == "lock_acquire" {
		keys = append(keys, cmp.Or(l.list, l.signal(texts[0])))
	}
	return function, keys, texts
}

func (l rawLock) call(function string, args ...any) rueidis.RedisResult {
	name, keys, texts := l.words(function, args...)
	return fcall(l.client, name, keys, texts...)
}

// command is a call for a pipeline.
func (l rawLock) command(function string, args ...any) []string {
	name, keys, texts := l.words(function, args...)
	return append(append([]string{"FCALL", name, strconv.Itoa(len(keys))}, keys...), texts...)
}

// pipeline sends all commands at once: no pause of the client can come between them.
func (l rawLock) pipeline(commands ...[]string) []rueidis.RedisResult {
	built := make(rueidis.Commands, len(commands))
	for i, words := range commands {
		built[i] = l.client.B().Arbitrary(words...).Build()
	}
	return l.client.DoMulti(context.Background(), built...)
}

func asInt(result rueidis.RedisResult) int64 {
	GinkgoHelper()
	n, err := result.ToInt64() // an integer reply: digits in a string are none
	Expect(err).NotTo(HaveOccurred())
	return n
}

func asText(result rueidis.RedisResult) string {
	GinkgoHelper()
	s, err := result.ToString()
	Expect(err).NotTo(HaveOccurred())
	return s
}

func asInts(result rueidis.RedisResult) []int64 {
	GinkgoHelper()
	elements, err := result.ToArray()
	Expect(err).NotTo(HaveOccurred())
	all := make([]int64, len(elements))
	for i := range elements {
		all[i], err = elements[i].ToInt64()
		Expect(err).NotTo(HaveOccurred())
	}
	return all
}

func (l rawLock) acquire(token string, lease, wait int) []int64 {
	GinkgoHelper()
	return asInts(l.call("lock_acquire", token, lease, wait))
}

func (l rawLock) release(token string) int64 {
	GinkgoHelper()
	return asInt(l.call("lock_release", token))
}

func (l rawLock) extend(token string, lease int) int64 {
	GinkgoHelper()
	return asInt(l.call("lock_extend", token, lease))
}

func (l rawLock) reset() int64 {
	GinkgoHelper()
	return asInt(l.call("lock_reset"))
}

// shown is what lock_inspect tells.
type shown struct {
	holder                   string
	fence, ttl, waiting, now int64
	waiters                  []string // their tokens
	details                  [][]rueidis.RedisMessage
}

func (l rawLock) inspect() shown {
	GinkgoHelper()
	return parseShown(l.call("lock_inspect"))
}

func parseShown(result rueidis.RedisResult) (s shown) {
	GinkgoHelper()
	elements, err := result.ToArray()
	Expect(err).NotTo(HaveOccurred())
	Expect(len(elements) % 2).To(BeZero())
	seen := 0
	for i := 0; i < len(elements); i += 2 {
		field, err := elements[i].ToString()
		Expect(err).NotTo(HaveOccurred())
		value := elements[i+1]
		seen++
		switch field {
		case "holder":
			s.holder, err = value.ToString()
		case "fence":
			s.fence, err = value.ToInt64()
		case "ttl_ms":
			s.ttl, err = value.ToInt64()
		case "waiting":
			s.waiting, err = value.ToInt64()
		case "now_ms":
			s.now, err = value.ToInt64()
		case "waiters":
			var list []rueidis.RedisMessage
			list, err = value.ToArray()
			s.waiters = []string{}
			for _, one := range list {
				details, err := one.ToArray()
				Expect(err).NotTo(HaveOccurred())
				token, err := details[0].ToString()
				Expect(err).NotTo(HaveOccurred())
				s.waiters, s.details = append(s.waiters, token), append(s.details, details)
			}
		default:
			seen--
		}
		Expect(err).NotTo(HaveOccurred(), field)
	}
	Expect(seen).To(Equal(6), "the fields of lock_inspect")
	return s
}

// int runs a command that replies with an integer.
func (l rawLock) int(args ...string) int64 {
	GinkgoHelper()
	return asInt(redis(l.client, args...))
}

func (l rawLock) pttl(key string) int64 {
	GinkgoHelper()
	return l.int("PTTL", key)
}

func (l rawLock) unread(client string) int64 {
	GinkgoHelper()
	return l.int("LLEN", l.signal(client))
}

// existing are the keys of this lock that exist, signal lists included.
func (l rawLock) existing() []string {
	GinkgoHelper()
	keys, err := redis(l.client, "KEYS", "*"+strings.TrimPrefix(l.lock, "lock:")+"*").AsStrSlice()
	Expect(err).NotTo(HaveOccurred())
	return keys
}

// fields are those of the state.
func (l rawLock) fields() []string {
	GinkgoHelper()
	fields, err := redis(l.client, "HKEYS", l.state).AsStrSlice()
	Expect(err).NotTo(HaveOccurred())
	return fields
}

// snapshot is all that the server stores of this lock.
func (l rawLock) snapshot() map[string]string {
	GinkgoHelper()
	all := map[string]string{}
	for _, key := range l.existing() {
		all[key] = asText(redis(l.client, "DUMP", key)) + fmt.Sprint(l.int("PEXPIRETIME", key))
	}
	return all
}

func (l rawLock) micros() int64 {
	GinkgoHelper()
	return microsOf(redis(l.client, "TIME"))
}

func microsOf(result rueidis.RedisResult) int64 {
	GinkgoHelper()
	time, err := result.AsIntSlice()
	Expect(err).NotTo(HaveOccurred())
	return time[0]*1_000_000 + time[1]
}

func (l rawLock) now() int64 {
	GinkgoHelper()
	return l.micros() / 1000
}

// signalled is one element of a signal list.
type signalled struct {
	fence, deadline int64
	token           string
}

func parseSignal(result rueidis.RedisResult) signalled {
	GinkgoHelper()
	element := asText(result)
	parts := strings.SplitN(element, " ", 3)
	Expect(parts).To(HaveLen(3), element)
	Expect(parts[:2]).To(HaveEach(MatchRegexp(`^[1-9][0-9]*$`)), element)
	fence, _ := strconv.ParseInt(parts[0], 10, 64)
	deadline, _ := strconv.ParseInt(parts[1], 10, 64)
	return signalled{fence, deadline, parts[2]}
}

// pop takes the oldest signal of a client.
func (l rawLock) pop(client string) signalled {
	GinkgoHelper()
	return parseSignal(redis(l.client, "LPOP", l.signal(client)))
}

// pass releases the lock of one and lets the next claim it in the same breath.
func (l rawLock) pass(from, to string) {
	GinkgoHelper()
	results := l.pipeline(l.command("lock_release", from), l.command("lock_extend", to, long))
	Expect(asInt(results[0])).To(Equal(int64(1)), "%q did not hold", from)
	Expect(asInt(results[1])).To(Equal(int64(1)), "the lock did not go from %q to %q", from, to)
}

// runOut ends the holder's lease.
func (l rawLock) runOut(ctx context.Context) {
	GinkgoHelper()
	redis(l.client, "PEXPIRE", l.lock, "1")
	l.gone(ctx, l.lock)
}

func (l rawLock) gone(ctx context.Context, key string) {
	GinkgoHelper()
	Eventually(ctx, func() int64 { return l.int("EXISTS", key) }).Should(BeZero())
}

// past returns when the server's clock has passed this millisecond.
func (l rawLock) past(ctx context.Context, ms int64) {
	GinkgoHelper()
	Eventually(ctx, l.now).Should(BeNumerically(">", ms))
}

// contended is a lock that "h" holds and for which these wait, in this order.
func (l rawLock) contended(waiters ...string) {
	GinkgoHelper()
	Expect(l.acquire("h", long, 0)).To(hold())
	for i, token := range waiters {
		Expect(l.acquire(token, long, long)).To(queued(i + 1))
	}
}

// hold, queued and busy are the three replies of lock_acquire.
func hold() types.GomegaMatcher {
	return HaveExactElements(int64(1), BeNumerically(">", 0), BeNumerically(">=", -1), BeNumerically(">", 0))
}

func queued(position int) types.GomegaMatcher {
	return HaveExactElements(int64(0), int64(position), BeNumerically(">", 0), BeNumerically(">", 0))
}

func busy() types.GomegaMatcher {
	return HaveExactElements(int64(0), int64(0), BeNumerically(">=", -1), BeNumerically(">", 0))
}

// within is a span that began as want and has been running for less than a spec takes.
func within(want int64) types.GomegaMatcher {
	return And(BeNumerically("<=", want), BeNumerically(">", want-soon.Milliseconds()), BeNumerically(">", 0))
}

// ofLease is what is left of a lease that began in this spec; 0: it never ends.
func ofLease(lease int) types.GomegaMatcher {
	if lease == 0 {
		return Equal(int64(-1))
	}
	return within(int64(lease))
}

// signature is how a function is to be called.
type signature struct {
	function   string
	keys, args []string
	flags      []string
}

var signatures = []signature{
	{"lock_acquire", []string{"lock", "queue", "state", "signal"}, []string{"TOKEN", "LEASE_MS", "WAIT_MS"}, nil},
	{"lock_release", []string{"lock", "queue", "state"}, []string{"TOKEN"}, []string{"allow-oom"}},
	{"lock_extend", []string{"lock", "queue", "state"}, []string{"TOKEN", "LEASE_MS"}, []string{"allow-oom"}},
	{"lock_reset", []string{"lock", "queue", "state"}, nil, []string{"allow-oom"}},
	{"lock_inspect", []string{"lock", "queue", "state"}, nil, []string{"no-writes"}},
	{"lock_version", nil, nil, []string{"no-writes"}},
}

// textOf says which text of lua/lock.lua has which version.
const (
	textOf  = "1.0.0"
	textSum = "0a1539945c2c554361d0d2a817c0e784cc3da66f408f0a7889c578e2bf543d6c"
)

var _ = describe("the function library", func() {
	var (
		client rueidis.Client
		l      rawLock
		mine   *redistest.Server
	)

	// own makes l a lock on a server of this spec's own.
	own := func(ctx context.Context) {
		GinkgoHelper()
		mine = ownRedis()
		client = directly(mine.Addr())
		Expect(redislock.Load(ctx, client)).To(Succeed())
		l = newRawLock(client)
	}

	BeforeEach(func(ctx SpecContext) {
		client = directly(server.Addr())
		Expect(redislock.Load(ctx, client)).To(Succeed())
		l = newRawLock(client)
	})

	It("has another version whenever its text changes", func() {
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(redislock.Source())))
		Expect([]string{redislock.Version, sum}).To(Equal([]string{textOf, textSum}),
			"lua/lock.lua has changed. Servers replace a library only by a newer version: raise VERSION in "+
				"lua/lock.lua and Version in functions.go, say it in CHANGELOG.md, then set textOf and textSum here. "+
				"(Before the first release of a version, setting textSum is enough.)")
	})

	DescribeTable("writes numbers of any size", func(lease int64) {
		ms, wait := strconv.FormatInt(lease, 10), min(lease, waitMax)
		Expect(asInts(l.call("lock_acquire", "h", ms, 0))).To(HaveExactElements(int64(1), BeNumerically(">", 0), lease, BeNumerically(">", 0)))
		Expect(l.pttl(l.lock)).To(within(lease))
		Expect(asInts(l.call("lock_acquire", "a", ms, wait))).To(queued(1))
		Expect(l.inspect().details[0][3].ToInt64()).To(Equal(lease))
		Expect(l.pttl(l.queue)).To(within(wait))
	},
		Entry(nil, int64(20_000)), Entry(nil, int64(999_999_999)), Entry(nil, int64(1_000_000_000)), Entry(nil, int64(1_000_000_001)),
		Entry(nil, int64(2_999_999_999)), Entry(nil, int64(leaseMax)),
	)

	It("registers six functions, each with its flags and a description that shows the call", func() {
		lists, err := redis(client, "FUNCTION", "LIST", "LIBRARYNAME", "lock", "WITHCODE").ToArray()
		Expect(err).NotTo(HaveOccurred())
		Expect(lists).To(HaveLen(1))
		library, err := lists[0].AsMap()
		Expect(err).NotTo(HaveOccurred())
		code := library["library_code"]
		Expect(code.ToString()).To(Equal(redislock.Source()))
		field := library["functions"]
		functions, err := field.ToArray()
		Expect(err).NotTo(HaveOccurred())
		Expect(functions).To(HaveLen(len(signatures)))
		for _, f := range functions {
			fields, err := f.AsMap()
			Expect(err).NotTo(HaveOccurred())
			name, description, flags := fields["name"], fields["description"], fields["flags"]
			function, err := name.ToString()
			Expect(err).NotTo(HaveOccurred())
			i := slices.IndexFunc(signatures, func(s signature) bool { return s.function == function })
			Expect(i).NotTo(Equal(-1), function)
			s := signatures[i]
			usage := strings.Join(s.keys, " ")
			if len(s.args) > 0 {
				usage += " | " + strings.Join(s.args, " ")
			}
			Expect(description.ToString()).To(And(HavePrefix(usage), MatchRegexp(`\w+ \w+`)), function)
			Expect(flags.AsStrSlice()).To(ConsistOf(s.flags), function)
		}
	})

	It("answers lock_inspect and lock_version to FCALL_RO, and the writing ones not", func() {
		for _, s := range signatures[:4] {
			words := l.command(s.function, []any{"a", long, long}[:len(s.args)]...)
			words[0] = "FCALL_RO"
			Expect(redis(client, words...).Error()).To(MatchError(ContainSubstring("write flag")), s.function)
		}
		Expect(l.call("lock_inspect").Error()).NotTo(HaveOccurred())
		Expect(l.call("lock_version").Error()).To(HaveOccurred(), "it takes no keys")
		Expect(fcall(client, "lock_version", nil).Error()).NotTo(HaveOccurred())
		Expect(l.existing()).To(BeEmpty())
	})

	for _, protocol := range []string{"RESP2", "RESP3"} {
		Describe("replies in "+protocol+":", func() {
			BeforeEach(func() {
				l = l.with(directly(server.Addr(), func(o *rueidis.ClientOption) { o.AlwaysRESP2 = protocol == "RESP2" }))
			})

			It("lock_acquire of a free lock: 1, fence, lease_left_ms, now_ms", func() {
				before := l.micros()
				reply := l.acquire("a", long, 0)
				after := l.micros()
				Expect(reply).To(HaveExactElements(int64(1),
					And(BeNumerically(">=", before), BeNumerically("<=", after)),
					int64(long),
					And(BeNumerically(">=", before/1000), BeNumerically("<=", after/1000))))
			})

			It("lock_acquire without expiry: lease_left_ms is -1", func() {
				Expect(l.acquire("a", 0, 0)).To(HaveExactElements(int64(1), BeNumerically(">", 0), int64(-1), BeNumerically(">", 0)))
			})

			It("lock_acquire of a busy lock: 0, position, check_in_ms, now_ms", func() {
				l.contended()
				for position := range 3 {
					before := l.now()
					reply := l.acquire(strconv.Itoa(position), long, long)
					Expect(reply).To(queued(position + 1))
					Expect(reply[2]).To(BeNumerically("<=", long/3))
					Expect(reply[3]).To(And(BeNumerically(">=", before), BeNumerically("<=", l.now())))
				}
			})

			It("lock_acquire with WAIT_MS 0 of a busy lock: 0, 0, holder_left_ms, now_ms", func() {
				l.contended()
				Expect(l.acquire("b", long, 0)).To(HaveExactElements(int64(0), int64(0), within(long), BeNumerically(">", 0)))
				Expect(l.extend("h", 0)).To(Equal(int64(1)))
				Expect(l.acquire("b", long, 0)).To(HaveExactElements(int64(0), int64(0), int64(-1), BeNumerically(">", 0)))
			})

			It("lock_release: 1 to the holder, 2 to a waiter, 0 to all others", func() {
				l.contended("a")
				Expect(l.release("a")).To(Equal(int64(2)))
				Expect(l.release("a")).To(Equal(int64(0)))
				Expect(l.release("h")).To(Equal(int64(1)))
				Expect(l.release("h")).To(Equal(int64(0)))
			})

			It("lock_extend: 1 to the holder, 0 to all others", func() {
				Expect(l.extend("h", long)).To(Equal(int64(0)))
				l.contended("a")
				Expect(l.extend("a", long)).To(Equal(int64(0)))
				Expect(l.extend("b", long)).To(Equal(int64(0)))
				Expect(l.extend("h", long)).To(Equal(int64(1)))
			})

			It("lock_reset: 1 if the lock was held, 0 if not", func() {
				Expect(l.reset()).To(Equal(int64(0)))
				l.contended()
				Expect(l.reset()).To(Equal(int64(1)))
				Expect(l.reset()).To(Equal(int64(0)))
				l.contended("a")
				Expect(l.reset()).To(Equal(int64(1)))
				Expect(l.inspect().holder).To(Equal("a"))
			})

			It("lock_inspect: fields and values, each waiter with its token first", func() {
				free := l.inspect()
				Expect(free.details).To(BeEmpty())
				Expect([]int64{free.fence, free.ttl, free.waiting}).To(Equal([]int64{0, -2, 0}))
				Expect(free.holder).To(BeEmpty())

				l.contended("a")
				l.as("client").acquire("b", 0, 2*long)
				fence := l.acquire("h", long, 0)[1]
				s := l.inspect()
				Expect(s.holder).To(Equal("h"))
				Expect(s.fence).To(Equal(fence))
				Expect(s.ttl).To(within(long))
				Expect(s.waiting).To(Equal(int64(2)))
				Expect(s.waiters).To(Equal([]string{"a", "b"}))
				Expect(s.now).To(And(BeNumerically("<=", l.now()), BeNumerically(">", l.now()-soon.Milliseconds())))
				waiter := s.details[1] // token, waited_ms, lapses_in_ms, lease_ms, signal
				Expect(waiter).To(HaveLen(5))
				Expect(waiter[1].ToInt64()).To(BeNumerically("~", 0, soon.Milliseconds()))
				Expect(waiter[2].ToInt64()).To(within(2 * long))
				Expect(waiter[3].ToInt64()).To(Equal(int64(0)))
				Expect(waiter[4].ToString()).To(Equal(l.signal("client")))

				l.extend("h", 0)
				Expect(l.inspect().ttl).To(Equal(int64(-1)))
			})

			It("lock_version: the version of the Go package", func() {
				Expect(fcall(l.client, "lock_version", nil).ToString()).To(Equal(redislock.Version))
			})

			It("errors: one line that begins with LOCKARG or WRONGTYPE", func() {
				Expect(l.call("lock_acquire", "", long, long).Error()).To(refuse("LOCKARG", "TOKEN"))
				redis(client, "LPUSH", l.lock, "x")
				Expect(l.call("lock_extend", "a", long).Error()).To(refuse("WRONGTYPE"))
			})
		})
	}

	Describe("leases", func() {
		It("are the PX of the lock key, whose value is the token", func() {
			l.acquire("a", long, 0)
			Expect(asText(redis(client, "GET", l.lock))).To(Equal("a"))
			Expect(l.pttl(l.lock)).To(within(long))
		})

		It("of 0 never expire", func() {
			l.acquire("a", 0, 0)
			Expect(l.pttl(l.lock)).To(Equal(int64(-1)))
		})

		It("start anew when the holder acquires again, longer, shorter or for ever, with the same fence", func() {
			fence := l.acquire("a", long, long)[1]
			for _, lease := range []int{3 * long, long, 0, 2 * long} {
				Expect(l.acquire("a", lease, long)).To(HaveExactElements(int64(1), fence, ofLease(lease), BeNumerically(">", 0)))
				Expect(l.pttl(l.lock)).To(ofLease(lease))
			}
			Expect(l.inspect().waiters).To(BeEmpty())
		})

		It("end LEASE_MS from the last lock_extend, longer, shorter or never", func() {
			l.acquire("a", long, 0)
			for _, lease := range []int{3 * long, long, 0, 2 * long} {
				Expect(l.extend("a", lease)).To(Equal(int64(1)))
				Expect(l.pttl(l.lock)).To(ofLease(lease))
			}
		})

		It("run out by themselves", func(ctx SpecContext) {
			Expect(l.acquire("a", 30, 0)).To(hold())
			Eventually(ctx, func() []int64 { return l.acquire("b", long, 0) }).Should(hold())
			Expect(l.extend("a", long)).To(Equal(int64(0)))
			Expect(l.release("a")).To(Equal(int64(0)))
		})

		It("of others are not touched by the extend, release or try of a stranger", func() {
			l.contended("a")
			before := l.snapshot()
			Expect(l.extend("x", 3*long)).To(Equal(int64(0)))
			Expect(l.extend("a", 3*long)).To(Equal(int64(0)))
			Expect(l.release("x")).To(Equal(int64(0)))
			Expect(l.acquire("x", 3*long, 0)).To(busy())
			Expect(l.snapshot()).To(Equal(before))
		})
	})

	Describe("a try (WAIT_MS 0)", func() {
		It("takes a free lock", func() {
			Expect(l.acquire("a", long, 0)).To(hold())
		})

		It("of a busy lock leaves no trace", func() {
			l.contended()
			before := l.snapshot()
			Expect(l.acquire("a", long, 0)).To(busy())
			Expect(l.snapshot()).To(Equal(before))
		})

		It("of a waiter takes it out of the queue if the lock is busy", func() {
			l.contended("a", "b")
			Expect(l.acquire("a", long, 0)).To(busy())
			Expect(l.inspect().waiters).To(Equal([]string{"b"}))
			l.pass("h", "b")
		})

		It("of the next waiter takes the lock if it is free", func(ctx SpecContext) {
			l.contended("a", "b")
			l.runOut(ctx)
			Expect(l.acquire("a", long, 0)).To(hold())
			Expect(l.inspect().waiters).To(Equal([]string{"b"}))
		})
	})

	Describe("signals", func() {
		It("are FENCE DEADLINE_MS TOKEN", func() {
			l.contended("a")
			before := l.micros()
			l.pass("h", "a")
			s := l.pop("a")
			Expect(s.token).To(Equal("a"))
			Expect(s.fence).To(And(BeNumerically(">=", before), BeNumerically("<=", l.micros()), Equal(l.inspect().fence)))
			Expect(l.unread("a")).To(BeZero())
		})

		DescribeTable("tell the end of the short lease: min(LEASE_MS, 2 s)", func(lease, want int) {
			l.contended()
			l.acquire("a", lease, long)
			results := l.pipeline([]string{"TIME"}, l.command("lock_release", "h"), []string{"PEXPIRETIME", l.lock}, []string{"TIME"})
			deadline := l.pop("a").deadline
			Expect(deadline - int64(want)).To(And(
				BeNumerically(">=", microsOf(results[0])/1000), BeNumerically("<=", microsOf(results[3])/1000)))
			Expect(asInt(results[2])).To(BeNumerically("~", deadline, 1), "the lock's own")
		},
			Entry("500 ms", 500, 500),
			Entry("2 s", claim, claim),
			Entry("a minute", long, claim),
			Entry("never", 0, claim),
		)

		It("expire unread, after the deadline and once the wait of the waiter would have lapsed", func() {
			l.contended("a")
			results := l.pipeline(l.command("lock_release", "h"), []string{"PTTL", l.signal("a")})
			Expect(asInt(results[1])).To(within(long + claim))
		})

		It("of many waiters may come over one list", func() {
			client := l.as("client")
			client.contended("a", "b", "c")
			client.pass("h", "a")
			client.pass("a", "b")
			client.pass("b", "c")
			for _, token := range []string{"a", "b", "c"} {
				Expect(l.pop("client").token).To(Equal(token))
			}
		})

		It("come over any list key of the slot", func() {
			l.contended()
			l.list = "mailbox " + strings.TrimPrefix(l.lock, "lock:") + " of\r\n\x00\xff"
			Expect(l.acquire("a", long, long)).To(queued(1))
			Expect(l.release("h")).To(Equal(int64(1)))
			Expect(parseSignal(redis(client, "LPOP", l.list)).token).To(Equal("a"))
		})

		DescribeTable("carry tokens of any bytes, which are compared whole", func(token string) {
			other := token + "x"
			l = l.as("client")
			Expect(l.acquire(other, long, long)).To(hold())
			Expect(l.acquire(token, long, long)).To(queued(1))
			Expect(l.acquire(token[:len(token)-1]+"y", long, long)).To(queued(2))
			Expect(l.release(token + "z")).To(Equal(int64(0)))
			Expect(l.inspect().waiters[0]).To(Equal(token))
			l.pass(other, token)
			Expect(l.pop("client").token).To(Equal(token))
			Expect(l.inspect().holder).To(Equal(token))
			Expect(l.extend(other, long)).To(Equal(int64(0)))
			Expect(l.release(token)).To(Equal(int64(1)))
		},
			Entry("spaces", " 1 2  3 "),
			Entry("NUL, line ends and invalid UTF-8", "a\x00\r\n\xff\xfe"),
			Entry("a pattern", "%d*[^"),
			Entry("a field of the state", "fence"),
			Entry("another field of the state", "since"),
			Entry("a field with the mark of waiters", "@a"),
			Entry("a long one", strings.Repeat("0123456789", 100)),
			Entry("upper case", "TOKEN"),
		)
	})

	Describe("rule 1: exclusive", func() {
		It("lets one of many have the lock", func() {
			held := 0
			for i := range 50 {
				if l.acquire(strconv.Itoa(i), long, long*(i%2))[0] == 1 {
					held++
				}
			}
			Expect(held).To(Equal(1))
			Expect(l.inspect().holder).To(Equal("0"))
		})

		It("lets nobody but the holder release or extend", func() {
			l.contended("a")
			for _, token := range []string{"a", "b", "hh", "H", "h\x00"} {
				Expect(l.release(token)).NotTo(Equal(int64(1)))
				Expect(l.extend(token, long)).To(Equal(int64(0)))
			}
			Expect(l.inspect().holder).To(Equal("h"))
		})
	})

	Describe("rule 2: first come, first served", func() {
		It("grants in the order of arrival, whatever the tokens, leases and waits", func() {
			tokens := []string{"9", "b", "10", "a", "Z", "\xff", "\x00"}
			l.contended()
			for i, token := range tokens {
				Expect(l.acquire(token, i*long, long*(9-i))).To(queued(i + 1))
			}
			from := "h"
			for _, token := range tokens {
				l.pass(from, token)
				from = token
			}
		})

		It("keeps the place of a waiter that calls again", func() {
			l.contended("a", "b", "c")
			for _, i := range []int{2, 0, 1, 2} {
				Expect(l.acquire([]string{"a", "b", "c"}[i], long, long)).To(queued(i + 1))
			}
			Expect(l.inspect().waiters).To(Equal([]string{"a", "b", "c"}))
		})

		It("moves the others up when one leaves", func() {
			l.contended("a", "b", "c")
			Expect(l.release("b")).To(Equal(int64(2)))
			Expect(l.acquire("c", long, long)).To(queued(2))
			Expect(l.release("a")).To(Equal(int64(2)))
			Expect(l.acquire("c", long, long)).To(queued(1))
		})

		It("puts a holder that releases and asks again at the tail", func() {
			l.contended("a", "b")
			l.pass("h", "a")
			Expect(l.acquire("h", long, long)).To(queued(2))
			l.pass("a", "b")
			l.pass("b", "h")
		})

		DescribeTable("lets nobody overtake when the lease has run out", func(ctx SpecContext, wait int, reply types.GomegaMatcher) {
			l.contended("a", "b")
			l.runOut(ctx)
			results := l.pipeline(l.command("lock_acquire", "new", long, wait), l.command("lock_extend", "a", long))
			Expect(asInts(results[0])).To(reply)
			Expect(asInt(results[1])).To(Equal(int64(1)))
			Expect(l.pop("a").token).To(Equal("a"))
			Expect(l.inspect().waiters[0]).To(Equal("b"))
		},
			Entry("a newcomer", long, queued(2)),
			Entry("a try", 0, busy()),
		)

		It("does not let a waiter farther back overtake when the lease has run out", func(ctx SpecContext) {
			l.contended("a", "b", "c")
			l.runOut(ctx)
			results := l.pipeline(l.command("lock_acquire", "c", long, long), l.command("lock_extend", "a", long))
			Expect(asInts(results[0])).To(queued(2))
			Expect(asInt(results[1])).To(Equal(int64(1)))
		})

		It("gives a lock whose lease has run out to the next waiter when it looks, without a signal", func(ctx SpecContext) {
			l.contended("a", "b")
			l.runOut(ctx)
			Expect(l.acquire("a", long, long)).To(HaveExactElements(int64(1), BeNumerically(">", 0), int64(long), BeNumerically(">", 0)))
			Expect(l.unread("a")).To(BeZero())
			Expect(l.inspect().waiters).To(Equal([]string{"b"}))
		})

		DescribeTable("gives a lock whose lease has run out to the next waiter at any other call too",
			func(ctx SpecContext, want int, function string, args ...any) {
				l.contended("a", "b")
				l.runOut(ctx)
				results := l.pipeline(l.command(function, args...), l.command("lock_extend", "a", long))
				Expect(asInt(results[0])).To(Equal(int64(want)))
				Expect(asInt(results[1])).To(Equal(int64(1)))
			},
			Entry("a late release", 0, "lock_release", "h"),
			Entry("a waiter that leaves", 2, "lock_release", "b"),
			Entry("a reset", 0, "lock_reset"),
		)
	})

	Describe("rule 3: handed over, not dropped", func() {
		DescribeTable("gives the lock to the next waiter in the same call", func(function string, args ...any) {
			l.contended("a", "b")
			results := l.pipeline(l.command(function, args...), l.command("lock_inspect"), []string{"LLEN", l.signal("a")})
			Expect(asInt(results[0])).To(Equal(int64(1)))
			s := parseShown(results[1])
			Expect(s.holder).To(Equal("a"))
			Expect(s.waiters).To(Equal([]string{"b"}))
			Expect(asInt(results[2])).To(Equal(int64(1)))
			Expect(l.unread("b")).To(BeZero())
		},
			Entry("of lock_release", "lock_release", "h"),
			Entry("of lock_reset", "lock_reset"),
		)

		It("takes a lock without waiters away at once", func() {
			l.contended()
			Expect(l.release("h")).To(Equal(int64(1)))
			Expect(l.int("EXISTS", l.lock)).To(BeZero())
		})

		It("hands on a lock that its new holder does not want any more", func() {
			l.contended("a", "b")
			results := l.pipeline(l.command("lock_release", "h"), l.command("lock_release", "a"), l.command("lock_extend", "b", long))
			for _, result := range results {
				Expect(asInt(result)).To(Equal(int64(1)))
			}
		})
	})

	Describe("rule 4: a handed-over lease starts short", func() {
		DescribeTable("and is full once the holder has shown that it is there", func(function string, args ...any) {
			l.contended("a")
			results := l.pipeline(l.command("lock_release", "h"), []string{"PTTL", l.lock}, l.command(function, args...), []string{"PTTL", l.lock})
			Expect(asInt(results[1])).To(And(BeNumerically(">", 0), BeNumerically("<=", claim)))
			Expect(asInt(results[3])).To(within(long))
		},
			Entry("by lock_extend", "lock_extend", "a", long),
			Entry("by lock_acquire", "lock_acquire", "a", long, long),
		)

		It("is never one without an end, until confirmed", func() {
			l.contended()
			l.acquire("a", 0, long)
			results := l.pipeline(l.command("lock_release", "h"), []string{"PTTL", l.lock}, l.command("lock_acquire", "a", 0, long))
			Expect(asInt(results[1])).To(And(BeNumerically(">", 0), BeNumerically("<=", claim)))
			Expect(asInts(results[2])[2]).To(Equal(int64(-1)))
			Expect(l.pttl(l.lock)).To(Equal(int64(-1)))
		})

		It("is what the waiter asked for last", func() {
			l.contended("a")
			l.acquire("a", 700, long)
			results := l.pipeline(l.command("lock_release", "h"), []string{"PTTL", l.lock})
			Expect(asInt(results[1])).To(And(BeNumerically(">", 0), BeNumerically("<=", 700)))
		})

		It("so a waiter that died with a long lease costs the next one seconds", func(ctx SpecContext) {
			l.contended("dead", "a")
			Expect(l.release("h")).To(Equal(int64(1)))
			Eventually(ctx, func() []int64 { return l.acquire("a", long, long) }).Should(hold())
		})
	})

	Describe("rule 5: the lock key is the truth", func() {
		It("tells a waiter whose signal was lost that it holds the lock", func() {
			l.contended("a")
			results := l.pipeline(l.command("lock_release", "h"), []string{"DEL", l.signal("a")}, l.command("lock_acquire", "a", long, long))
			Expect(asInts(results[2])).To(HaveExactElements(int64(1), l.inspect().fence, int64(long), BeNumerically(">", 0)))
		})

		It("tells a waiter whose signal came too late that it waits", func(ctx SpecContext) {
			l.contended("a")
			l.release("h")
			l.runOut(ctx)
			Expect(l.acquire("b", long, long)).To(hold())
			Expect(l.pop("a").token).To(Equal("a"))
			Expect(l.acquire("a", long, long)).To(queued(1))
		})

		It("answers a call that was sent twice by what is", func() {
			l.contended("a", "b")
			for range 2 {
				Expect(l.acquire("h", long, long)).To(hold())
				Expect(l.extend("h", long)).To(Equal(int64(1)))
				Expect(l.acquire("b", long, long)).To(queued(2))
			}
			l.pass("h", "a")
			Expect(l.release("h")).To(Equal(int64(0)))
			Expect(l.inspect().holder).To(Equal("a"), "the second release is not of the next one's lock")
			Expect(l.unread("a")).To(Equal(int64(1)))
		})
	})

	Describe("rule 6: a waiter lives by checking in", func() {
		It("keeps a place for WAIT_MS after the last call", func() {
			l.contended()
			l.acquire("a", long, long)
			l.acquire("a", long, 3*long)
			lapses, err := l.inspect().details[0][2].ToInt64()
			Expect(err).NotTo(HaveOccurred())
			Expect(lapses).To(within(3 * long))
		})

		It("drops a waiter that does not, without a hand-over to it", func(ctx SpecContext) {
			l.contended()
			l.acquire("dead", long, 20)
			l.acquire("a", long, long)
			Eventually(ctx, func() []string { return l.inspect().waiters }).Should(Equal([]string{"a"}))
			Expect(l.inspect().waiting).To(Equal(int64(1)))
			Expect(l.acquire("a", long, long)).To(queued(1))
			Expect(l.fields()).NotTo(ContainElement(ContainSubstring("dead")))
			l.pass("h", "a")
			Expect(l.unread("dead")).To(BeZero())
		})

		DescribeTable("puts one that comes back too late at the tail", func(ctx SpecContext, tokens ...string) {
			l.contended()
			for _, token := range tokens {
				wait := long
				if token == "late" {
					wait = 20
				}
				l.acquire(token, long, wait)
			}
			Eventually(ctx, func() []string { return l.inspect().waiters }).ShouldNot(ContainElement("late"))
			Expect(l.acquire("late", long, long)).To(queued(len(tokens)))
			want := append(slices.DeleteFunc(slices.Clone(tokens), func(t string) bool { return t == "late" }), "late")
			Expect(l.inspect().waiters).To(Equal(want))
		},
			Entry("from the head", "late", "a", "b"),
			Entry("from the middle", "a", "late", "b"),
		)

		DescribeTable("lets the head look", func(holders, wait, least, most int) {
			results := l.pipeline(l.command("lock_acquire", "h", holders, 0), l.command("lock_acquire", "a", long, wait))
			Expect(asInts(results[1])[2]).To(And(BeNumerically(">=", least), BeNumerically("<=", most)))
		},
			Entry("within 1 s", long, long, 1000, 1000),
			Entry("within 1 s where the holder's lease never ends", 0, long, 1000, 1000),
			Entry("when the holder's lease ends", 900, long, 1, 901),
			Entry("within WAIT_MS/3", long, 900, 300, 300),
			Entry("at the earliest in a millisecond", long, 1, 1, 1),
		)

		It("lets those farther back look less often, and within WAIT_MS/3", func() {
			l.contended()
			last := int64(0)
			for i := range 30 {
				checkIn := l.acquire(strconv.Itoa(i), long, long)[2]
				Expect(checkIn).To(And(BeNumerically(">=", last), BeNumerically("<=", long/3)))
				last = checkIn
			}
			Expect(last).To(BeNumerically(">", 1000))
			Expect(l.acquire("short", long, 600)[2]).To(BeNumerically("<=", 200))
		})

		// left is a lock that was handed to "dead1", who never looked, and is free since; "dead2" and
		// the others of its client wait, and then "a" of another one.
		left := func(ctx context.Context) (deadline int64) {
			GinkgoHelper()
			dead := l.as("dead")
			l.contended()
			for i := 1; i <= 5; i++ {
				Expect(dead.acquire(fmt.Sprintf("dead%d", i), 40, long)).To(queued(i))
			}
			Expect(l.acquire("a", long, long)).To(queued(6))
			Expect(l.release("h")).To(Equal(int64(1)))
			deadline = parseSignal(redis(client, "LINDEX", l.signal("dead"), "0")).deadline
			l.past(ctx, deadline)
			l.gone(ctx, l.lock)
			return deadline
		}

		It("skips all waiters of a client at once whose signal lies unread past its deadline", func(ctx SpecContext) {
			left(ctx)
			Expect(l.acquire("a", long, long)).To(hold())
			Expect(l.inspect().waiters).To(BeEmpty())
			Expect(l.unread("dead")).To(Equal(int64(1)), "the signals that were not meant are taken back")
		})

		It("skips them when somebody else calls, too", func(ctx SpecContext) {
			left(ctx)
			results := l.pipeline(l.command("lock_acquire", "new", long, long), l.command("lock_extend", "a", long))
			Expect(asInts(results[0])).To(queued(1))
			Expect(asInt(results[1])).To(Equal(int64(1)))
		})

		It("does not take a client for dead before the deadline", func() {
			l.as("client").contended("a", "b")
			results := l.pipeline(l.command("lock_release", "h"), []string{"DEL", l.lock},
				l.command("lock_acquire", "new", long, long), []string{"GET", l.lock})
			Expect(asText(results[3])).To(Equal("b"))
		})

		It("does not take a waiter for dead that has called since the deadline, and removes the litter", func(ctx SpecContext) {
			one := l.as("client")
			one.contended()
			one.acquire("a", 300, long)
			one.acquire("b", 300, long)
			results := l.pipeline(l.command("lock_release", "h"), one.command("lock_acquire", "a", long, long))
			Expect(asInts(results[1])).To(hold())
			l.past(ctx, parseSignal(redis(client, "LINDEX", l.signal("client"), "0")).deadline)
			Expect(one.acquire("b", long, long)).To(queued(1))
			l.pass("a", "b")
			Expect(l.unread("client")).To(Equal(int64(1)))
			Expect(l.pop("client").token).To(Equal("b"))
		})

		It("does not skip the waiter that is just calling, whatever its client left unread", func(ctx SpecContext) {
			left(ctx)
			results := l.pipeline(l.as("dead").command("lock_acquire", "dead4", long, long), []string{"GET", l.lock})
			Expect(asText(results[1])).To(BeElementOf("dead2", "dead4"), "dead4 is here, and was before a")
		})

		It("does not skip a waiter that has called since, for an older one of its client that has not", func(ctx SpecContext) {
			one := l.as("client")
			one.contended()
			for _, token := range []string{"a", "b", "c"} {
				one.acquire(token, 300, long)
			}
			Expect(l.acquire("d", long, long)).To(queued(4))
			l.pass("h", "a")
			l.past(ctx, parseSignal(redis(client, "LINDEX", l.signal("client"), "0")).deadline)
			Expect(one.acquire("c", long, long)).To(queued(2))
			results := l.pipeline(l.command("lock_release", "a"), []string{"GET", l.lock})
			Expect(asText(results[1])).To(BeElementOf("b", "c"), "c called after the deadline, and was before d")
		})

		It("never lets the signal list of a client that polls instead of popping grow", func(ctx SpecContext) {
			one := l.as("client")
			one.contended()
			holder, deadline := "h", int64(0)
			for i := range 20 {
				token := strconv.Itoa(i)
				Expect(one.acquire(token, 1, long)).To(queued(1))
				l.past(ctx, deadline)
				Expect(one.acquire(token, 1, long)).To(queued(1))
				results := one.pipeline(one.command("lock_release", holder), one.command("lock_acquire", token, long, long))
				Expect(asInts(results[1])).To(hold())
				Expect(l.unread("client")).To(Equal(int64(1)))
				holder, deadline = token, parseSignal(redis(client, "LINDEX", l.signal("client"), "0")).deadline
			}
		})
	})

	Describe("rule 7: fencing tokens only grow", func() {
		const future = 9_007_199_254_700_000 // below 2^53, in the year 2255

		It("are the server's time in microseconds", func() {
			before := l.micros()
			Expect(l.acquire("a", long, 0)[1]).To(And(BeNumerically(">=", before), BeNumerically("<=", l.micros())))
		})

		It("are one more than the last if the clock is behind it", func() {
			redis(client, "HSET", l.state, "fence", strconv.Itoa(future))
			Expect(l.acquire("h", long, 0)[1]).To(Equal(int64(future + 1)))
			l.acquire("a", long, long)
			l.pass("h", "a")
			Expect(l.pop("a").fence).To(Equal(int64(future + 2)))
			Expect(l.acquire("a", long, 0)[1]).To(Equal(int64(future+2)), "the same to the same holder")
			Expect(l.inspect().fence).To(Equal(int64(future + 2)))
		})

		// Where the state is lost, the clock alone makes the next one greater.
		DescribeTable("over", func(ctx SpecContext, stateLost bool, end func(context.Context)) {
			own(ctx)
			if !stateLost {
				redis(client, "HSET", l.state, "fence", strconv.Itoa(future))
			}
			last := l.acquire("h", long, 0)[1]
			end(ctx)
			next := l.acquire("b", long, 0)
			Expect(next).To(hold())
			Expect(next[1]).To(BeNumerically(">", last))
			if !stateLost {
				Expect(next[1]).To(Equal(last + 1))
			}
			Expect(next[1]).To(BeNumerically("<", int64(1)<<53))
		},
			Entry("a release", false, func(context.Context) { l.release("h") }),
			Entry("an expiry", false, func(ctx context.Context) { l.runOut(ctx) }),
			Entry("a reset", false, func(context.Context) { l.reset() }),
			Entry("a new load of the library", false, func(context.Context) {
				Expect(redis(client, "FUNCTION", "LOAD", "REPLACE", redislock.Source()).Error()).NotTo(HaveOccurred())
				l.release("h")
			}),
			Entry("loss of the lock", false, func(context.Context) { redis(client, "DEL", l.lock) }),
			Entry("loss of the queue", false, func(context.Context) {
				l.acquire("a", long, long)
				redis(client, "DEL", l.queue)
				l.release("h")
			}),
			Entry("loss of the state", true, func(context.Context) {
				redis(client, "DEL", l.state)
				l.release("h")
			}),
			Entry("a restart that loses everything", true, func(ctx context.Context) {
				Expect(mine.Restart()).To(Succeed())
				client = directly(mine.Addr()) // the old one may have connections that it does not know to be broken
				l = l.with(client)
				Eventually(ctx, func() error { return redislock.Load(ctx, client) }).Should(Succeed())
				// A cluster takes a moment until it takes writes.
				Eventually(ctx, func() error { return l.call("lock_acquire", "b", long, 0).Error() }).Should(Succeed())
			}),
		)

		It("is a new one for a holder that acquires again after the loss of the state", func() {
			last := l.acquire("a", long, 0)[1]
			redis(client, "DEL", l.state)
			Expect(l.inspect().fence).To(BeZero())
			next := l.acquire("a", long, 0)[1]
			Expect(next).To(BeNumerically(">", last))
			Expect(l.inspect().fence).To(Equal(next))
		})
	})

	Describe("rule 8: nothing is left behind", func() {
		onlyState := func() {
			GinkgoHelper()
			Expect(l.existing()).To(Equal([]string{l.state}))
			Expect(l.pttl(l.state)).To(And(BeNumerically(">", 0), BeNumerically("<=", memory)))
		}

		It("but lock-state, for 10 minutes, after the last release", func() {
			l.acquire("a", 3*long, 0)
			Expect(l.pttl(l.state)).To(within(3*long+memory), "it outlives a holder that dies")
			l.release("a")
			onlyState()
		})

		It("but lock-state, for 10 minutes, after a reset", func() {
			l.acquire("a", 3*long, 0)
			l.reset()
			onlyState()
		})

		It("but lock-state, and no field of a waiter in it, after hand-overs and waiters that left", func() {
			l.contended("a", "b", "c")
			l.release("b")
			l.pass("h", "a")
			l.pass("a", "c")
			l.pop("a")
			l.pop("c")
			l.release("c")
			onlyState()
			Expect(l.fields()).To(ConsistOf("fence", "last", "since"))
		})

		It("while anybody waits: the state outlives the longest wait, whoever comes before or after", func() {
			const day = 24 * hourMS
			l.contended("a")
			Expect(l.acquire("b", long, day)).To(queued(2))
			Expect(l.pttl(l.state)).To(within(day + memory))
			Expect(l.acquire("c", long, long)).To(queued(3))
			Expect(l.pttl(l.state)).To(within(day + memory))
			l.pass("h", "a")
			Expect(l.acquire("d", long, day)).To(queued(3))
			Expect(l.pttl(l.state)).To(within(day + memory))
		})

		It("of waiters that all died: the queue expires, their fields go with the next waiter", func(ctx SpecContext) {
			l.contended()
			for i := range 20 {
				l.acquire(strconv.Itoa(i), long, 20)
			}
			l.gone(ctx, l.queue)
			Expect(l.acquire("a", long, long)).To(queued(1))
			Expect(l.int("HLEN", l.state)).To(BeNumerically("<=", 4))
			Expect(l.inspect().waiters).To(Equal([]string{"a"}))
			l.pass("h", "a")
		})

		It("has a TTL on all keys while waiters wait", func() {
			l.contended("a", "b")
			results := l.pipeline(l.command("lock_release", "h"), []string{"PTTL", l.lock},
				[]string{"PTTL", l.queue}, []string{"PTTL", l.state}, []string{"PTTL", l.signal("a")})
			for _, result := range results[1:] {
				Expect(asInt(result)).To(BeNumerically(">", 0))
			}
		})

		It("keeps the place of a waiter with a long WAIT_MS when one with a short one calls", func() {
			l.contended()
			l.acquire("a", long, 3*long)
			l.acquire("b", long, 1000)
			Expect(l.pttl(l.queue)).To(within(3 * long))
		})

		DescribeTable("has no TTL on the state of a lock that never expires, and one again after", func(function string, args ...any) {
			l.acquire("h", long, 0)
			l.acquire("h", 0, 0)
			l.acquire("a", long, long)
			Expect(l.pttl(l.state)).To(Equal(int64(-1)))
			Expect(l.call(function, args...).Error()).NotTo(HaveOccurred())
			Expect(l.pttl(l.state)).To(BeNumerically(">", 0))
		},
			Entry("a hand-over", "lock_release", "h"),
			Entry("a reset", "lock_reset"),
			Entry("a lease", "lock_extend", "h", long),
			Entry("a lease at acquire", "lock_acquire", "h", long, long),
		)

		It("has a TTL on the state after the release of a lock that never expired", func() {
			l.acquire("h", 0, 0)
			l.release("h")
			onlyState()
		})

		DescribeTable("has a TTL on the state when a lock that never expires was deleted", func(function string, args ...any) {
			l.acquire("h", 0, 0)
			l.acquire("a", long, long)
			redis(client, "DEL", l.lock)
			if function == "lock_reset" {
				redis(client, "DEL", l.queue)
			} else {
				l.release("a")
			}
			Expect(asInt(l.call(function, args...))).To(Equal(int64(0)))
			onlyState()
		},
			Entry("and its holder releases", "lock_release", "h"),
			Entry("and an operator resets it", "lock_reset"),
		)
	})

	Describe("rule 9: loss of any key heals, in order:", func() {
		for _, free := range []bool{false, true} {
			for i, key := range []string{"lock", "queue", "state"} {
				It(fmt.Sprintf("%s while the lock is %s", key, map[bool]string{false: "held", true: "free"}[free]), func(ctx SpecContext) {
					l.contended("a", "b", "c")
					if free {
						l.runOut(ctx)
					}
					redis(client, "DEL", l.keys()[i])
					// The check-ins that follow, in the order in which they are due. With the queue, the
					// order is lost, too: it is that of the check-ins.
					granted := l.acquire("a", long, long)
					Expect(l.acquire("b", long, long)).To(Or(queued(1), queued(2)))
					Expect(l.acquire("c", long, long)).To(Or(queued(2), queued(3)))
					if key == "lock" || free {
						Expect(granted).To(hold())
					} else {
						Expect(granted).To(queued(1))
						l.pass("h", "a")
					}
					l.pass("a", "b")
					l.pass("b", "c")
					Expect(l.release("c")).To(Equal(int64(1)))
				})
			}
		}

		It("the state, and nobody overtakes the next waiter before it has called", func() {
			l.contended("a", "b", "c")
			results := l.pipeline([]string{"DEL", l.state},
				l.command("lock_acquire", "c", long, long), l.command("lock_release", "h"),
				l.command("lock_acquire", "new", long, 0), l.command("lock_acquire", "b", long, long),
				l.command("lock_acquire", "a", long, long))
			Expect(asInts(results[1])).To(queued(3))
			Expect(asInt(results[2])).To(Equal(int64(1)))
			Expect(asInts(results[3])).To(busy())
			Expect(asInts(results[4])).To(queued(2))
			Expect(asInts(results[5])).To(hold())
			l.pass("a", "b")
			l.pass("b", "c")
		})

		It("the state, also where the clock has gone back", func() {
			l.contended()
			redis(client, "HSET", l.state, "last", "9007199254700000") // when the next one queues, in the year 2255
			Expect(l.acquire("a", long, long)).To(queued(1))
			redis(client, "DEL", l.state)
			Expect(l.acquire("b", long, long)).To(queued(2))
			Expect(l.acquire("c", long, long)).To(queued(3))
		})

		It("the state, and a waiter that does not come back is dropped soon", func(ctx SpecContext) {
			l.contended("dead", "a")
			redis(client, "DEL", l.state)
			Expect(l.acquire("a", long, long)).To(queued(2))
			l.release("h")
			Eventually(ctx, func() []int64 { return l.acquire("a", long, long) }).Should(hold())
		})

		It("all keys at once", func() {
			l.contended("a", "b")
			redis(client, append([]string{"DEL"}, l.existing()...)...)
			Expect(l.acquire("a", long, long)).To(hold())
			Expect(l.acquire("b", long, long)).To(queued(1))
			Expect(l.release("h")).To(Equal(int64(0)))
			l.pass("a", "b")
		})
	})

	It("rule 10: refuses to acquire over maxmemory, and releases, hands over, extends, resets and shows", func(ctx SpecContext) {
		own(ctx)
		l.contended("a", "b")
		redis(client, "CONFIG", "SET", "maxmemory", "1")
		for _, token := range []string{"h", "a", "new"} {
			Expect(l.call("lock_acquire", token, long, long).Error()).To(MatchError(HavePrefix("OOM ")))
		}
		Expect(l.extend("h", 2*long)).To(Equal(int64(1)))
		l.pass("h", "a")
		Expect(l.pop("a").token).To(Equal("a"))
		Expect(l.reset()).To(Equal(int64(1)))
		Expect(l.pop("b").token).To(Equal("b"))
		Expect(l.extend("b", long)).To(Equal(int64(1)))
		Expect(l.inspect().holder).To(Equal("b"))
		Expect(fcall(client, "lock_version", nil).Error()).NotTo(HaveOccurred())
		Expect(l.release("b")).To(Equal(int64(1)))
		Expect(l.int("EXISTS", l.lock)).To(BeZero())
	})

	Describe("rule 11: where the server refuses the signal", func() {
		It("of a waiter to the one who releases (ACL), the lock is free until the waiter looks", func(ctx SpecContext) {
			own(ctx)
			Expect(redis(client, "ACL", "SETUSER", "limited", "on", ">secret", "~lock*", "+@all").Error()).NotTo(HaveOccurred())
			limited := l.with(directly(mine.Addr(), func(o *rueidis.ClientOption) { o.Username, o.Password = "limited", "secret" }))
			Expect(redis(limited.client, "LLEN", "mailbox").Error()).To(MatchError(HavePrefix("NOPERM")))

			Expect(limited.acquire("h", long, 0)).To(hold())
			waiter := l
			waiter.list = "mailbox:" + strings.TrimPrefix(l.lock, "lock:")
			Expect(waiter.acquire("a", long, long)).To(queued(1))
			Expect(limited.acquire("b", long, long)).To(queued(2))

			Expect(limited.release("h")).To(Equal(int64(1)))
			Expect(l.existing()).To(ConsistOf(l.queue, l.state))
			Expect(limited.acquire("new", long, 0)).To(busy())
			Expect(limited.acquire("new", long, long)).To(queued(3))
			Expect(limited.acquire("b", long, long)).To(queued(2))
			Expect(waiter.acquire("a", long, long)).To(hold())
			limited.pass("a", "b")
			limited.pass("b", "new")
		})

		It("to all (a key of another type), the lock is free until the waiter looks", func() {
			l.contended("a", "b")
			redis(client, "SET", l.signal("a"), "x")
			Expect(l.release("h")).To(Equal(int64(1)))
			Expect(l.int("EXISTS", l.lock)).To(BeZero())
			Expect(l.acquire("new", long, 0)).To(busy())
			Expect(l.acquire("b", long, long)).To(queued(2))
			Expect(l.as("elsewhere").acquire("a", long, long)).To(hold())
			l.pass("a", "b")
		})

		It("for ever, and the waiter never looks, it lapses and the next one has its turn", func(ctx SpecContext) {
			l.contended()
			l.acquire("dead", long, 30)
			l.acquire("a", long, long)
			redis(client, "SET", l.signal("dead"), "x")
			l.release("h")
			Eventually(ctx, func() []int64 { return l.acquire("a", long, long) }).Should(hold())
		})
	})

	Describe("rule 12: cost", func() {
		// spent counts the redis.call's of the calls made in do.
		spent := func(do func()) (calls int) {
			GinkgoHelper()
			redis(client, "CONFIG", "RESETSTAT")
			do()
			counts := commandCalls(client)
			// What comes from outside: from here, from rueidis to see that a connection lives, from Sentinels.
			for _, outer := range []string{"fcall", "fcall_ro", "info", "config|resetstat", "hello", "client|setinfo", "ping", "publish"} {
				delete(counts, outer)
			}
			for _, n := range counts {
				calls += n
			}
			return calls
		}
		BeforeEach(own)

		It("of a free acquire is at most 8 commands, of a plain release 5", func() {
			for range 3 {
				Expect(spent(func() { l.acquire("a", long, long) })).To(And(BeNumerically(">", 2), BeNumerically("<=", 8)))
				Expect(spent(func() { l.extend("a", long) })).To(BeNumerically("<=", 8))
				Expect(spent(func() { l.release("a") })).To(And(BeNumerically(">", 2), BeNumerically("<=", 5)))
			}
		})

		for _, waiting := range []int{2, 1000} {
			It(fmt.Sprintf("of queueing is at most 10 commands, of a hand-over 13, with %d waiters", waiting), func() {
				l = l.as("client")
				l.contended()
				fill := make([][]string, waiting-2)
				Expect(spent(func() { l.acquire("0", long, long) })).To(And(BeNumerically(">", 2), BeNumerically("<=", 10)))
				for i := range fill {
					fill[i] = l.command("lock_acquire", fmt.Sprint("fill", i), long, long)
				}
				for i, result := range l.pipeline(fill...) {
					Expect(asInts(result)).To(queued(i + 2))
				}
				Expect(spent(func() { Expect(l.acquire("1", long, long)).To(queued(waiting)) })).To(BeNumerically("<=", 10))
				for _, token := range []string{"0", "1"} {
					Expect(spent(func() { l.acquire(token, long, long) })).To(BeNumerically("<=", 10), "a check-in")
				}
				Expect(spent(func() { l.release("h") })).To(And(BeNumerically(">", 2), BeNumerically("<=", 13)))
				Expect(l.inspect().waiting).To(Equal(int64(waiting - 1)))
				Expect(spent(func() { Expect(l.acquire("1", long, 0)).To(busy()) })).To(BeNumerically("<=", 10), "leaving")
			})
		}

		It("of cleaning up after 10,000 dead waiters is a batch of commands for each 100", func(ctx SpecContext) {
			const dead = 10_000
			l = l.as("client")
			l.contended("guard")
			commands := make([][]string, dead)
			for i := range commands {
				commands[i] = l.command("lock_acquire", fmt.Sprint("dead", i), long, 1)
			}
			for _, result := range l.pipeline(commands...) {
				Expect(result.Error()).NotTo(HaveOccurred())
			}
			Expect(l.release("guard")).To(Equal(int64(2)))
			Expect(l.int("ZCARD", l.queue)).To(Equal(int64(dead)))
			l.past(ctx, l.now()+1)
			calls := spent(func() {
				for range 3 { // no call drops more than 4,000
					l.acquire("new", long, long)
				}
				Expect(l.acquire("new", long, long)).To(queued(1))
			})
			Expect(calls).To(BeNumerically("<=", dead/100*4+60))
			Expect(l.int("HLEN", l.state)).To(BeNumerically("<=", 4))
			l.pass("h", "new")
		})

		It("of skipping 1,000 waiters of a dead client, too", func(ctx SpecContext) {
			l.contended()
			dead := l.as("dead")
			commands := make([][]string, 1_000)
			for i := range commands {
				commands[i] = dead.command("lock_acquire", strconv.Itoa(i), 1, long)
			}
			l.pipeline(commands...)
			l.release("h")
			l.past(ctx, parseSignal(redis(client, "LINDEX", l.signal("dead"), "0")).deadline)
			l.gone(ctx, l.lock)
			Expect(spent(func() { Expect(l.acquire("new", long, long)).To(hold()) })).To(BeNumerically("<=", 1_000/100*4+40))
		})

		It("of lock_inspect is bounded: it counts all and lists the first 1,000", func() {
			l.contended()
			commands := make([][]string, 1_001)
			for i := range commands {
				commands[i] = l.command("lock_acquire", strconv.Itoa(i), long, long)
			}
			l.pipeline(commands...)
			Expect(spent(func() {
				s := l.inspect()
				Expect(s.waiting).To(Equal(int64(1_001)))
				Expect(s.waiters).To(HaveLen(1_000))
			})).To(BeNumerically("<=", 30), "2 for each 100")
		})
	})

	Describe("bad input", func() {
		// unchanged looks that nothing was written.
		unchanged := func(do func()) {
			GinkgoHelper()
			before := l.snapshot()
			do()
			Expect(l.snapshot()).To(Equal(before))
		}
		// good are arguments that would work.
		good := func(s signature) (keys, args []string) {
			keys = append(l.keys(), l.signal("h"))[:len(s.keys)]
			args = []string{"h", "60000", "60000"}[:len(s.args)]
			return slices.Clone(keys), slices.Clone(args)
		}
		BeforeEach(func() { l.contended("a", "b") })

		entries := func(of func(signature) bool) (all []any) {
			for _, s := range signatures {
				if of(s) {
					all = append(all, Entry(s.function, s))
				}
			}
			return all
		}

		DescribeTable("a wrong number of keys or arguments", append([]any{func(s signature) {
			keys, args := good(s)
			unchanged(func() {
				for _, wrong := range [][]string{append(keys, l.signal("extra")), append(keys, l.signal("extra"), l.signal("more"))} {
					Expect(fcall(client, s.function, wrong, args...).Error()).To(refuse("LOCKARG", append(s.keys, "keys")...))
				}
				for n := range keys {
					Expect(fcall(client, s.function, keys[:n], args...).Error()).To(refuse("LOCKARG", append(s.keys, "keys")...))
				}
				Expect(fcall(client, s.function, keys, append(args, "1")...).Error()).To(refuse("LOCKARG", append(s.args, "arguments")...))
				for n := range args {
					Expect(fcall(client, s.function, keys, args[:n]...).Error()).To(refuse("LOCKARG", append(s.args, "arguments")...))
				}
			})
		}}, entries(func(signature) bool { return true })...)...)

		DescribeTable("an empty token", append([]any{func(s signature) {
			keys, args := good(s)
			args[0] = ""
			unchanged(func() { Expect(fcall(client, s.function, keys, args...).Error()).To(refuse("LOCKARG", "TOKEN")) })
		}}, entries(func(s signature) bool { return len(s.args) > 0 })...)...)

		DescribeTable("anything but a decimal integer of up to 13 digits", append([]any{func(s signature) {
			keys, args := good(s)
			unchanged(func() {
				for i := 1; i < len(args); i++ {
					for _, bad := range []string{
						"", "-1", "-0", "+1", "1.5", "1.", ".5", "1e3", "0x10", " 1", "1 ", "1 1", "1\n", "\n1", "1,000", "nan", "inf", "-inf", "true",
						"12345678901234", "00000000000001", "1\x00", "\x001", "\u0661", "1\xb2", "1ms", strings.Repeat("9", 400),
					} {
						wrong := slices.Clone(args)
						wrong[i] = bad
						Expect(fcall(client, s.function, keys, wrong...).Error()).To(refuse("LOCKARG", s.args[i]), "%q", bad)
					}
				}
			})
		}}, entries(func(s signature) bool { return len(s.args) > 1 })...)...)

		DescribeTable("the same key twice", append([]any{func(s signature) {
			_, args := good(s)
			unchanged(func() {
				for i := range s.keys {
					for j := range i {
						keys, _ := good(s)
						keys[i] = keys[j]
						Expect(fcall(client, s.function, keys, args...).Error()).To(refuse("LOCKARG", s.keys[i], s.keys[j]))
					}
				}
			})
		}}, entries(func(s signature) bool { return len(s.keys) > 0 })...)...)

		DescribeTable("a key of the wrong type", append([]any{func(s signature) {
			keys, args := good(s)
			for i, key := range keys {
				for _, alone := range []bool{true, false} { // the only key that exists?
					if alone {
						redis(client, append([]string{"DEL"}, l.existing()...)...)
					}
					redis(client, "DEL", key)
					if s.keys[i] == "lock" {
						redis(client, "LPUSH", key, "x")
					} else {
						redis(client, "SET", key, "x", "PX", "600000")
					}
					unchanged(func() {
						for _, token := range []string{"h", "a", "b", "new"} {
							if len(args) > 0 {
								args[0] = token
							}
							Expect(fcall(client, s.function, keys, args...).Error()).To(refuse("WRONGTYPE"), "%s, %s", s.keys[i], token)
						}
					})
					redis(client, append([]string{"DEL"}, l.existing()...)...)
					l.contended("a", "b")
				}
			}
		}}, entries(func(s signature) bool { return len(s.keys) > 0 })...)...)
	})

	DescribeTable("does what a sequential model of a fair lock does, step by step", func(ctx SpecContext, violent bool) {
		newLockModel(client, violent).run(ctx, 5_000)
	},
		Entry("with leases and waits that never end", false),
		Entry("with locks that end and queues that vanish at any moment", true),
	)
})

// refuse is an error reply whose first word is this, that names these, and shows nothing of Lua.
func refuse(code string, names ...string) types.GomegaMatcher {
	all := []types.GomegaMatcher{HavePrefix(code + " ")}
	for _, name := range names {
		all = append(all, ContainSubstring(name))
	}
	for _, leak := range []string{"script:", "user_function", "stack", "lock.lua", "\n"} {
		all = append(all, Not(ContainSubstring(leak)))
	}
	return MatchError(And(all...))
}

// modelled is one lock of the property test: the real one and what a sequential program would know.
type modelled struct {
	rawLock
	holder  string
	waiting []string
	endless map[string]bool // tokens that asked for a lease of 0 last
	forever bool            // the holder's lease never ends, or did not when the lock was deleted
	fence   int64
}

type lockModel struct {
	random  *rand.Rand
	violent bool
	locks   []*modelled
	past    []string
}

func newLockModel(client rueidis.Client, violent bool) *lockModel {
	m := &lockModel{random: rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), 1)), violent: violent}
	for range 3 {
		m.locks = append(m.locks, &modelled{rawLock: newRawLock(client), endless: map[string]bool{}})
	}
	return m
}

// next gives the lock to the head of the queue, and says to whom.
func (m *modelled) next() string {
	m.holder = ""
	if len(m.waiting) > 0 {
		m.holder, m.waiting, m.forever = m.waiting[0], m.waiting[1:], false
	}
	return m.holder
}

func (m *modelled) leave(token string) bool {
	i := slices.Index(m.waiting, token)
	if i < 0 {
		return false
	}
	m.waiting = slices.Delete(m.waiting, i, i+1)
	return true
}

func (m *lockModel) run(ctx context.Context, steps int) {
	GinkgoHelper()
	for step := range steps {
		if ctx.Err() != nil {
			Fail("the time is over")
		}
		m.step(ctx, step)
	}
}

// step makes one call and compares: reply, holder, queue, signal, fence and TTLs. A lock that was
// handed over is claimed in the same pipeline, so that time plays no role.
func (m *lockModel) step(ctx context.Context, step int) {
	GinkgoHelper()
	l := m.locks[m.random.IntN(len(m.locks))]
	token := strconv.Itoa(m.random.IntN(7))
	if m.random.IntN(3) == 0 && l.holder != "" {
		token = l.holder
	}
	lease := []int{0, long, 2 * long, 3 * long}[m.random.IntN(4)]
	wait := []int{0, long, long, 2 * long}[m.random.IntN(4)]
	list := func(token string) string { return string(rune('A' + int(token[0]-'0')%4)) } // some share one

	var command []string
	var want, handed = []int64{0}, ""
	granted := false
	grant := func() {
		l.leave(token)
		l.holder, l.forever, granted = token, lease == 0, true
		left := int64(lease)
		if lease == 0 {
			left = -1
		}
		want = []int64{1, -1, left}
	}
	kind := m.random.IntN(11)
	if kind == 10 && !m.violent {
		kind = 9
	}
	switch kind {
	case 0, 1, 2, 3, 4:
		command = l.as(list(token)).command("lock_acquire", token, lease, wait)
		free := l.holder == ""
		switch {
		case l.holder == token:
			grant()
			granted = false // no new one
		case free && (len(l.waiting) == 0 || l.waiting[0] == token):
			grant()
		default:
			if free {
				handed = l.next()
			}
			l.endless[token] = lease == 0
			if wait == 0 {
				l.leave(token)
				want = []int64{0, 0}
			} else {
				if !slices.Contains(l.waiting, token) {
					l.waiting = append(l.waiting, token)
				}
				want = []int64{0, int64(slices.Index(l.waiting, token) + 1)}
			}
		}
	case 5, 6:
		command = l.command("lock_release", token)
		switch {
		case l.holder == token:
			want, handed = []int64{1}, l.next()
			l.forever = false
		case l.leave(token):
			want = []int64{2}
			fallthrough
		default:
			if l.holder == "" {
				handed = l.next()
			}
		}
	case 7:
		command = l.command("lock_extend", token, lease)
		if l.holder == token {
			want, l.forever = []int64{1}, lease == 0
		}
	case 8:
		command = l.command("lock_reset")
		if l.holder != "" {
			want = []int64{1}
			l.forever = false
		}
		handed = l.next()
	case 9:
		command = []string{"DEL", l.lock}
		if l.holder != "" {
			want = []int64{1}
		}
		l.holder = ""
	case 10:
		command, want = m.violence(ctx, l)
	}

	commands := [][]string{command, l.command("lock_inspect"), {"PTTL", l.lock}, {"PTTL", l.queue}, {"PTTL", l.state},
		{"PTTL", l.signal("A")}, {"PTTL", l.signal("B")}, {"PTTL", l.signal("C")}, {"PTTL", l.signal("D")}}
	checks := len(commands)
	if handed != "" {
		claimed := l.command("lock_extend", handed, long)
		if l.endless[handed] {
			claimed = l.as(list(handed)).command("lock_acquire", handed, 0, long)
		}
		commands = append(commands, []string{"LPOP", l.signal(list(handed))}, claimed)
	}
	m.past = append(m.past, fmt.Sprint(step, " ", command[1:]))
	m.past = m.past[max(0, len(m.past)-30):]
	where := func() string {
		return fmt.Sprintf("seed %d, step %d; the last calls:\n%s", GinkgoRandomSeed(), step, strings.Join(m.past, "\n"))
	}

	results := l.pipeline(commands...)
	s := parseShown(results[1])
	var got []int64
	if _, err := results[0].ToInt64(); err == nil {
		got = []int64{asInt(results[0])}
	} else {
		got = asInts(results[0])
		if got[0] == 1 {
			Expect(got[1]).To(Equal(s.fence), where)
			got[1] = -1
		}
		got = got[:len(want)]
	}
	Expect(got).To(Equal(want), where)
	Expect(s.holder).To(Equal(l.holder), where)
	Expect(s.waiters).To(HaveExactElements(l.waiting), where)
	if granted || handed != "" {
		Expect(s.fence).To(BeNumerically(">", l.fence), where)
		l.fence = s.fence
	}
	if l.holder != "" {
		Expect(s.fence).To(Equal(l.fence), where)
	}
	for i, result := range results[2:checks] {
		if !l.forever || i == 1 || i > 2 {
			Expect(asInt(result)).NotTo(Equal(int64(-1)), func() string { return fmt.Sprint(commands[2+i]) + " " + where() })
		}
	}
	if handed != "" {
		Expect(asInt(results[2])).To(And(BeNumerically(">", 0), BeNumerically("<=", claim)), where)
		signal := parseSignal(results[checks])
		Expect(signal.token).To(Equal(handed), where)
		Expect(signal.fence).To(Equal(s.fence), where)
		Expect(results[checks+1].Error()).NotTo(HaveOccurred(), where)
		l.forever = l.endless[handed]
	}
}

// violence is what a lock may suffer from others: its lease ends, never ends, or its queue vanishes.
func (m *lockModel) violence(ctx context.Context, l *modelled) (command []string, want []int64) {
	GinkgoHelper()
	switch m.random.IntN(3) {
	case 0:
		l.runOut(ctx)
		l.holder = ""
		return []string{"EXISTS", l.lock}, []int64{0}
	case 1:
		command, want = []string{"PERSIST", l.lock}, []int64{0}
		if l.holder != "" && !l.forever {
			l.forever, want = true, []int64{1}
		}
		return command, want
	default:
		command, want = []string{"DEL", l.queue}, []int64{min(1, int64(len(l.waiting)))}
		l.waiting = nil
		return command, want
	}
}
