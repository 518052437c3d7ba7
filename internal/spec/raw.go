package spec

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"
	"github.com/redis/rueidis"
)

// Milliseconds, as the functions take them.
const (
	Long   = 60_000  // a lease or a wait that does not end within a spec
	Claim  = 2_000   // a handed-over lease, at most
	Memory = 600_000 // what lock-state outlives the last user
)

// RawLock is one lock as a client in any language sees it.
type RawLock struct {
	Client             rueidis.Client
	Lock, Queue, State string
	List               string // the signal list; "": every token has one of its own
}

// NewRawLock is a lock of which the server that client talks to has the keys: so in a cluster, too,
// functions are called by hand.
func NewRawLock(client rueidis.Client) RawLock {
	GinkgoHelper()
	for {
		k := KeysOf(NewName())
		err := Redis(client, "EXISTS", k[0]).Error()
		if err == nil {
			return RawLock{Client: client, Lock: k[0], Queue: k[1], State: k[2]}
		}
		Expect(err).To(MatchError(HavePrefix("MOVED")))
	}
}

// Keys are those of the lock, without the signal list.
func (l RawLock) Keys() []string { return []string{l.Lock, l.Queue, l.State} }

// Signal is the signal list of a client, or of a token that has one of its own.
func (l RawLock) Signal(client string) string {
	return "lock-signal" + strings.TrimPrefix(l.Lock, "lock") + ":" + client
}

// As is the same lock, for a client that uses one signal list for all of its waiters.
func (l RawLock) As(client string) RawLock {
	l.List = l.Signal(client)
	return l
}

// With is the same lock over another connection.
func (l RawLock) With(client rueidis.Client) RawLock {
	l.Client = client
	return l
}

// words are a call as the server gets it: function, keys, arguments.
func (l RawLock) words(function string, args ...any) (string, []string, []string) {
	keys, texts := l.Keys(), make([]string, len(args))
	for i, arg := range args {
		texts[i] = fmt.Sprint(arg)
	}
	if function == "lock_acquire" {
		keys = append(keys, cmp.Or(l.List, l.Signal(texts[0])))
	}
	return function, keys, texts
}

// Call runs a function on this lock.
func (l RawLock) Call(function string, args ...any) rueidis.RedisResult {
	name, keys, texts := l.words(function, args...)
	return FCall(l.Client, name, keys, texts...)
}

// Command is a call for a pipeline.
func (l RawLock) Command(function string, args ...any) []string {
	name, keys, texts := l.words(function, args...)
	return append(append([]string{"FCALL", name, strconv.Itoa(len(keys))}, keys...), texts...)
}

// Pipeline sends all commands at once: no pause of the client can come between them.
func (l RawLock) Pipeline(commands ...[]string) []rueidis.RedisResult {
	built := make(rueidis.Commands, len(commands))
	for i, words := range commands {
		built[i] = l.Client.B().Arbitrary(words...).Build()
	}
	return l.Client.DoMulti(context.Background(), built...)
}

// AsInt is an integer reply. Digits in a string do not count.
func AsInt(result rueidis.RedisResult) int64 {
	GinkgoHelper()
	n, err := result.ToInt64()
	Expect(err).NotTo(HaveOccurred())
	return n
}

// AsText is a string reply.
func AsText(result rueidis.RedisResult) string {
	GinkgoHelper()
	s, err := result.ToString()
	Expect(err).NotTo(HaveOccurred())
	return s
}

// AsInts is an array of integers.
func AsInts(result rueidis.RedisResult) []int64 {
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

// Acquire is lock_acquire; lease and wait are in milliseconds.
func (l RawLock) Acquire(token string, lease, wait int) []int64 {
	GinkgoHelper()
	return AsInts(l.Call("lock_acquire", token, lease, wait))
}

// Share is lock_acquire with HOLDERS, 0: any number.
func (l RawLock) Share(token string, lease, wait, holders int) []int64 {
	GinkgoHelper()
	return AsInts(l.Call("lock_acquire", token, lease, wait, holders))
}

// Release is lock_release.
func (l RawLock) Release(token string) int64 {
	GinkgoHelper()
	return AsInt(l.Call("lock_release", token))
}

// Extend is lock_extend; the lease is in milliseconds.
func (l RawLock) Extend(token string, lease int) int64 {
	GinkgoHelper()
	return AsInt(l.Call("lock_extend", token, lease))
}

// Reset is lock_reset.
func (l RawLock) Reset() int64 {
	GinkgoHelper()
	return AsInt(l.Call("lock_reset"))
}

// Shown is what lock_inspect tells.
type Shown struct {
	Holder                   string
	Fence, TTL, Waiting, Now int64
	Waiters                  []string // their tokens
	Details                  [][]rueidis.RedisMessage
	Held                     int64
	Holders                  []string // of those who share it
	TTLs                     []int64  // theirs
}

// Inspect is lock_inspect.
func (l RawLock) Inspect() Shown {
	GinkgoHelper()
	return ParseShown(l.Call("lock_inspect"))
}

// ParseShown takes a reply of lock_inspect apart.
func ParseShown(result rueidis.RedisResult) (s Shown) {
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
			s.Holder, err = value.ToString()
		case "fence":
			s.Fence, err = value.ToInt64()
		case "ttl_ms":
			s.TTL, err = value.ToInt64()
		case "waiting":
			s.Waiting, err = value.ToInt64()
		case "now_ms":
			s.Now, err = value.ToInt64()
		case "waiters":
			var list []rueidis.RedisMessage
			list, err = value.ToArray()
			s.Waiters = []string{}
			for _, one := range list {
				details, err := one.ToArray()
				Expect(err).NotTo(HaveOccurred())
				token, err := details[0].ToString()
				Expect(err).NotTo(HaveOccurred())
				s.Waiters, s.Details = append(s.Waiters, token), append(s.Details, details)
			}
		case "held":
			s.Held, err = value.ToInt64()
		case "holders":
			var list []rueidis.RedisMessage
			list, err = value.ToArray()
			for _, one := range list {
				details, err := one.ToArray()
				Expect(err).NotTo(HaveOccurred())
				token, err := details[0].ToString()
				Expect(err).NotTo(HaveOccurred())
				ttl, err := details[1].ToInt64()
				Expect(err).NotTo(HaveOccurred())
				s.Holders, s.TTLs = append(s.Holders, token), append(s.TTLs, ttl)
			}
		default:
			seen--
		}
		Expect(err).NotTo(HaveOccurred(), field)
	}
	Expect(seen).To(Equal(8), "the fields of lock_inspect")
	return s
}

// Int runs a command that replies with an integer.
func (l RawLock) Int(args ...string) int64 {
	GinkgoHelper()
	return AsInt(Redis(l.Client, args...))
}

// PTTL is the rest of a key's life, in milliseconds.
func (l RawLock) PTTL(key string) int64 {
	GinkgoHelper()
	return l.Int("PTTL", key)
}

// Unread counts the signals that nobody has popped.
func (l RawLock) Unread(client string) int64 {
	GinkgoHelper()
	return l.Int("LLEN", l.Signal(client))
}

// Existing are the keys of this lock that exist, signal lists included.
func (l RawLock) Existing() []string {
	GinkgoHelper()
	keys, err := Redis(l.Client, "KEYS", "*"+strings.TrimPrefix(l.Lock, "lock:")+"*").AsStrSlice()
	Expect(err).NotTo(HaveOccurred())
	return keys
}

// Fields are those of the state.
func (l RawLock) Fields() []string {
	GinkgoHelper()
	fields, err := Redis(l.Client, "HKEYS", l.State).AsStrSlice()
	Expect(err).NotTo(HaveOccurred())
	return fields
}

// Snapshot is all that the server stores of this lock.
func (l RawLock) Snapshot() map[string]string {
	GinkgoHelper()
	all := map[string]string{}
	for _, key := range l.Existing() {
		all[key] = AsText(Redis(l.Client, "DUMP", key)) + fmt.Sprint(l.Int("PEXPIRETIME", key))
	}
	return all
}

// Micros is the server's clock, in microseconds.
func (l RawLock) Micros() int64 {
	GinkgoHelper()
	return MicrosOf(Redis(l.Client, "TIME"))
}

// MicrosOf is a reply of TIME, in microseconds.
func MicrosOf(result rueidis.RedisResult) int64 {
	GinkgoHelper()
	time, err := result.AsIntSlice()
	Expect(err).NotTo(HaveOccurred())
	return time[0]*1_000_000 + time[1]
}

// Now is the server's clock, in milliseconds.
func (l RawLock) Now() int64 {
	GinkgoHelper()
	return l.Micros() / 1000
}

// Signalled is one element of a signal list.
type Signalled struct {
	Fence, Deadline int64
	Token           string
}

// ParseSignal takes an element of a signal list apart.
func ParseSignal(result rueidis.RedisResult) Signalled {
	GinkgoHelper()
	element := AsText(result)
	parts := strings.SplitN(element, " ", 3)
	Expect(parts).To(HaveLen(3), element)
	Expect(parts[:2]).To(HaveEach(MatchRegexp(`^[1-9][0-9]*$`)), element)
	fence, _ := strconv.ParseInt(parts[0], 10, 64)
	deadline, _ := strconv.ParseInt(parts[1], 10, 64)
	return Signalled{fence, deadline, parts[2]}
}

// Pop takes the oldest signal of a client.
func (l RawLock) Pop(client string) Signalled {
	GinkgoHelper()
	return ParseSignal(Redis(l.Client, "LPOP", l.Signal(client)))
}

// Pass releases the lock of one and lets the next claim it in the same breath.
func (l RawLock) Pass(from, to string) {
	GinkgoHelper()
	results := l.Pipeline(l.Command("lock_release", from), l.Command("lock_extend", to, Long))
	Expect(AsInt(results[0])).To(Equal(int64(1)), "%q did not hold", from)
	Expect(AsInt(results[1])).To(Equal(int64(1)), "the lock did not go from %q to %q", from, to)
}

// RunOut ends the holder's lease.
func (l RawLock) RunOut(ctx context.Context) {
	GinkgoHelper()
	Redis(l.Client, "PEXPIRE", l.Lock, "1")
	l.Gone(ctx, l.Lock)
}

// Gone returns when a key does not exist.
func (l RawLock) Gone(ctx context.Context, key string) {
	GinkgoHelper()
	Eventually(ctx, func() int64 { return l.Int("EXISTS", key) }).Should(BeZero())
}

// Past returns when the server's clock has passed this millisecond.
func (l RawLock) Past(ctx context.Context, ms int64) {
	GinkgoHelper()
	Eventually(ctx, l.Now).Should(BeNumerically(">", ms))
}

// Contended is a lock that "h" holds and for which these wait, in this order.
func (l RawLock) Contended(waiters ...string) {
	GinkgoHelper()
	Expect(l.Acquire("h", Long, 0)).To(Hold())
	for i, token := range waiters {
		Expect(l.Acquire(token, Long, Long)).To(Queued(i + 1))
	}
}

// Hold is the reply of lock_acquire to a holder.
func Hold() types.GomegaMatcher {
	return HaveExactElements(int64(1), BeNumerically(">", 0), BeNumerically(">=", -1), BeNumerically(">", 0))
}

// Queued is the reply to a waiter at this place.
func Queued(position int) types.GomegaMatcher {
	return HaveExactElements(int64(0), int64(position), BeNumerically(">", 0), BeNumerically(">", 0))
}

// Busy is the reply to a try that failed.
func Busy() types.GomegaMatcher {
	return HaveExactElements(int64(0), int64(0), BeNumerically(">=", -1), BeNumerically(">", 0))
}

// Within is a span that began as want and has been running for less than a spec takes.
func Within(want int64) types.GomegaMatcher {
	return And(BeNumerically("<=", want), BeNumerically(">", want-Soon.Milliseconds()), BeNumerically(">", 0))
}

// ParseCue is the deadline of a signal, also of one that grants nothing.
func ParseCue(signal string) int64 {
	GinkgoHelper()
	var fence, deadline int64
	_, err := fmt.Sscanf(signal, "%d %d", &fence, &deadline)
	Expect(err).NotTo(HaveOccurred(), signal)
	return deadline
}
