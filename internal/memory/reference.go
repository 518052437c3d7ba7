// Package memory is a server in plain Go: the functions of lua/lock.lua, and the keys that they use.
// It has no clock of its own and no connections. lua/model compares it with lock.lua, step by step.
package memory

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// As in lock.lua, milliseconds.
const (
	Claim     = 2_000 // of a handed-over lease, at most
	headCheck = 1_000
	Memory    = 600_000 // of the state, after the last use
	Silence   = 10_000  // a check-in is due by then
	listMax   = 1_000   // waiters

	TokenMax = 16_384 // bytes
	KeyMax   = 8_192
	leaseMax = 9_999_999_999_999
	waitMax  = 86_400_000
)

// Server is all that a server knows. It is not safe for concurrent use. A key's end is the last
// millisecond at which it is there; 0: it has no TTL.
type Server struct {
	Micros  int64 // its clock
	version string
	locks   map[string]*lock
	lists   map[string]*list // the signal lists
	strange map[string]bool  // keys of a type that is not theirs
}

type lock struct {
	lockKey, queueKey, stateKey string

	holder    string // "": free
	holderEnd int64  // of the lease
	line      []place
	lineEnd   int64
	numbers   map[string]int64 // of the state: fence, last, since
	entries   map[string]entry // of the state: by token
	stateEnd  int64
}

type place struct {
	token string
	score int64
}

type entry struct {
	called, wait, lease int64
	signal              string
}

type list struct {
	signals []signal
	end     int64
}

type signal struct {
	fence, deadline int64
	token           string
	other           string // if it is none, the whole element
}

// New returns an empty server, whose library says that it has this version.
func New(version string) *Server {
	return &Server{version: version, locks: map[string]*lock{}, lists: map[string]*list{}, strange: map[string]bool{}}
}

// at returns the lock with these keys, which begins free.
func (s *Server) at(keys []string) *lock {
	l := s.locks[keys[0]]
	if l == nil {
		l = &lock{lockKey: keys[0], queueKey: keys[1], stateKey: keys[2], numbers: map[string]int64{}, entries: map[string]entry{}}
		s.locks[keys[0]] = l
	}
	return l
}

func (s *Server) now() int64 { return s.Micros / 1000 }

// Failure is an error reply: its first word.
type Failure string

// call is one FCALL.
type call struct {
	*Server
	*lock
	token  string
	may    func(key string) bool
	unread map[string]int64 // lists of dead clients: the deadline of the signal that they never read

	known    bool // the state has a fence
	unblocks bool // the first waiter loses its place if it cannot be told
}

// Arguments of each function: how many keys and words it takes.
var Arguments = map[string]struct{ Keys, Args int }{
	"lock_acquire": {4, 3}, "lock_release": {3, 1}, "lock_extend": {3, 2}, "lock_reset": {3, 0},
	"lock_inspect": {3, 0}, "lock_version": {0, 0},
}

var wholeNumber = regexp.MustCompile(`^[0-9]{1,13}$`)

// Call is an FCALL. May tells which keys the caller may write besides its own: hand-over pushes to signal
// lists that the call did not declare. The reply is an int64, a string, a Failure, or a []any of these.
func (s *Server) Call(function string, keys, args []string, may func(string) bool) any {
	want := Arguments[function]
	if len(keys) != want.Keys || len(args) != want.Args || len(args) > 0 && (args[0] == "" || len(args[0]) > TokenMax) {
		return Failure("LOCKARG")
	}
	if slices.ContainsFunc(keys, func(key string) bool { return len(key) > KeyMax }) || len(slices.Compact(slices.Sorted(slices.Values(keys)))) < len(keys) {
		return Failure("LOCKARG")
	}
	var numbers [2]int64
	for i := 1; i < len(args); i++ {
		if !wholeNumber.MatchString(args[i]) {
			return Failure("LOCKARG")
		}
		numbers[i-1], _ = strconv.ParseInt(args[i], 10, 64)
		if numbers[i-1] > []int64{leaseMax, waitMax}[i-1] {
			return Failure("LOCKARG")
		}
	}
	if function == "lock_version" {
		return s.version
	}
	if slices.ContainsFunc(keys[:min(3, len(keys))], func(key string) bool { return s.strange[key] }) {
		return Failure("WRONGTYPE")
	}
	c := &call{Server: s, lock: s.at(keys), may: may, unread: map[string]int64{}}
	_, c.known = c.numbers["fence"]
	if len(args) > 0 {
		c.token = args[0]
	}
	defer c.forgetEmpty()
	switch function {
	case "lock_acquire":
		return c.acquire(keys[3], numbers[0], numbers[1])
	case "lock_release":
		return c.release()
	case "lock_extend":
		return c.extend(numbers[0])
	case "lock_reset":
		return c.reset()
	default:
		return c.inspect()
	}
}

func (c *call) acquire(signal string, lease, wait int64) any {
	if c.holder == c.token {
		if c.numbers["fence"] == 0 {
			c.raiseFence()
		}
		return c.hold(lease)
	}
	// The signal list counts only for who may have to wait.
	if wait > 0 && (c.holder != "" || len(c.line) > 0) && c.strange[signal] {
		return Failure("WRONGTYPE")
	}
	left := c.leaseLeft()
	if c.holder == "" {
		next, given := c.handOver()
		if next == "" || next == c.token {
			c.leave()
			c.raiseFence()
			return c.hold(lease)
		}
		left = given
	}
	if wait == 0 {
		c.leave()
		return []any{int64(0), int64(0), left, c.now()}
	}
	position, fresh := c.enqueue(signal, lease, wait)
	checkIn := min(position*headCheck, wait/3)
	if position == 1 && left >= 0 {
		checkIn = min(checkIn, left+1)
	}
	if fresh || wait > Memory {
		if left < 0 {
			c.stateEnd = 0
		} else {
			c.keepState(max(left, wait))
		}
	}
	return []any{int64(0), position, max(1, checkIn), c.now()}
}

func (c *call) release() int64 {
	if c.holder == c.token {
		c.giveUp()
		return 1
	}
	left := c.leave()
	if c.holder == "" {
		c.giveUp()
	}
	if left {
		return 2
	}
	return 0
}

func (c *call) extend(lease int64) int64 {
	if c.holder != c.token {
		return 0
	}
	c.hold(lease)
	return 1
}

func (c *call) reset() (taken int64) {
	if c.holder != "" {
		taken = 1
	}
	c.unblocks = taken == 0
	c.giveUp()
	return taken
}

func (c *call) inspect() any {
	waiters := []any{}
	waiting := int64(len(c.line))
	for _, p := range c.line[:min(len(c.line), listMax)] {
		e := c.entryOf(p.token)
		if c.lapsed(e) {
			waiting--
			continue
		}
		waiters = append(waiters, []any{
			p.token, max(0, c.now()-p.score/1000), min(e.called+e.wait-c.now(), waitMax), e.lease, e.signal,
		})
	}
	ttl := int64(-2)
	if c.holder != "" {
		ttl = c.leaseLeft()
	}
	return []any{
		"holder", c.holder, "fence", c.numbers["fence"], "ttl_ms", ttl,
		"waiting", waiting, "waiters", waiters, "now_ms", c.now(),
	}
}

// leaseLeft is -1 for a lease that never expires.
func (c *call) leaseLeft() int64 {
	if c.holderEnd == 0 {
		return -1
	}
	return c.holderEnd - c.now()
}

// entryOf is what is known of a waiter. If that was lost, it has a claim's time from when the state began.
func (c *call) entryOf(token string) entry {
	if e, ok := c.entries[token]; ok {
		return e
	}
	since, ok := c.numbers["since"]
	if !ok {
		since = c.now()
	}
	return entry{called: since, wait: Claim, lease: Claim}
}

func (c *call) lapsed(e entry) bool { return c.now() > e.called+e.wait }

// silent: it is so late for its check-in as a waiter that was handed the lock may be.
func (c *call) silent(e entry) bool { return c.now() > e.called+min(e.wait/3, Silence)+Claim }

// canTell: the server lets this caller push to the list, and it is a signal list of the lock or prefix, by its name and
// by its oldest element.
func (c *call) canTell(list string) bool {
	prefix, _, named := strings.Cut(list, "-signal:")
	ours := named && strings.HasPrefix(c.lockKey, prefix+":")
	_, rest, _ := strings.Cut(c.lockKey, "{")
	if tag, _, closed := strings.Cut(rest, "}"); closed && tag != "" && strings.Contains(list, "{"+tag+"}") {
		ours = true
	}
	l := c.lists[list]
	return ours && !c.strange[list] && c.may(list) && (l == nil || l.signals[0].other == "")
}

// first returns the first live waiter, "" if there is none. The dead before it lose their places.
func (c *call) first() string {
	for len(c.line) > 0 {
		token := c.line[0].token
		e := c.entryOf(token)
		deadline, dead := c.unread[e.signal]
		dead = dead && e.called <= deadline && token != c.token
		if !dead && !c.lapsed(e) {
			return token
		}
		c.remove(token)
	}
	return ""
}

func (c *call) remove(token string) bool {
	i := slices.IndexFunc(c.line, func(p place) bool { return p.token == token })
	if i < 0 {
		return false
	}
	c.line = slices.Delete(c.line, i, i+1)
	delete(c.entries, token)
	return true
}

func (c *call) leave() bool { return c.remove(c.token) }

func (c *call) nextFence() int64 { return max(c.numbers["fence"]+1, c.Micros) }

func (c *call) raiseFence() { c.numbers["fence"] = c.nextFence() }

// hold gives the lock to the caller.
func (c *call) hold(lease int64) any {
	c.holder, c.holderEnd = c.token, 0
	if lease == 0 {
		c.stateEnd = 0
		return []any{int64(1), c.numbers["fence"], int64(-1), c.now()}
	}
	c.holderEnd = c.now() + lease
	c.keepState(lease)
	return []any{int64(1), c.numbers["fence"], lease, c.now()}
}

// keepState has the state live longer than the rest of a lease or a place, and never shorter than before.
func (c *call) keepState(rest int64) {
	end := c.now() + rest + Memory
	if c.known && c.stateEnd != 0 {
		c.stateEnd = max(c.stateEnd, end)
		return
	}
	c.stateEnd = end
	if len(c.line) > 0 {
		c.stateEnd = max(end, c.lineEnd+Memory)
	}
}

// handOver gives the lock to the first live waiter, but not to the caller. It returns the waiter that is
// next, and the lease that it was given, 0 if it was not.
func (c *call) handOver() (next string, lease int64) {
	for {
		token := c.first()
		if token == "" || token == c.token {
			return token, 0
		}
		e := c.entryOf(token)
		if !c.canTell(e.signal) {
			if !c.unblocks && !c.silent(e) {
				return token, 0
			}
			c.unblocks = false
			c.remove(token)
			continue
		}
		lease = Claim
		if e.lease > 0 {
			lease = min(lease, e.lease)
		}
		l := c.lists[e.signal]
		if l == nil {
			l = &list{}
			c.lists[e.signal] = l
		}
		l.end = c.now() + Claim + e.wait
		if len(l.signals) > 0 {
			if oldest := l.signals[0].deadline; oldest < c.now() && e.called <= oldest {
				c.unread[e.signal] = oldest
				continue
			} else if oldest < c.now() {
				l.signals = l.signals[1:]
			}
		}
		l.signals = append(l.signals, signal{fence: c.nextFence(), deadline: c.now() + lease, token: token})
		c.raiseFence()
		c.remove(token)
		c.holder, c.holderEnd = token, c.now()+lease
		c.keepState(max(e.lease, e.wait))
		return token, lease
	}
}

// giveUp hands the lock on, or frees it.
func (c *call) giveUp() {
	next, given := c.handOver()
	if given > 0 {
		return
	}
	c.holder = ""
	if next == "" {
		c.stateEnd = c.now() + Memory
	} else {
		c.keepState(1)
	}
}

// enqueue gives the caller a place, or has it keep the one that it has. It returns the position, and
// whether the state is a new hash.
func (c *call) enqueue(signal string, lease, wait int64) (position int64, fresh bool) {
	end := c.now() + wait
	last, ok := c.numbers["last"]
	if n := len(c.line); n > 0 && !ok {
		last = c.line[n-1].score
	}
	isMe := func(p place) bool { return p.token == c.token }
	at := slices.IndexFunc(c.line, isMe)
	if at >= 0 {
		mine, ok := c.entries[c.token]
		if c.holder != "" {
			c.first()
		}
		if ok && c.lapsed(mine) {
			c.remove(c.token)
		}
		at = slices.IndexFunc(c.line, isMe)
	}
	alone := len(c.line) == 0
	if at < 0 {
		last = max(last+1, c.Micros)
		at = len(c.line)
		c.line = append(c.line, place{c.token, last})
	}
	fresh = !c.known
	if alone {
		c.lineEnd = end
		if len(c.numbers)+len(c.entries) > 3 { // of a queue that was lost
			fresh = true
			c.known = false
			c.stateEnd = 0
			c.numbers = map[string]int64{"fence": c.numbers["fence"]}
			clear(c.entries)
		}
	} else {
		later(&c.lineEnd, end)
	}
	if _, known := c.numbers["since"]; alone || fresh && !known {
		c.numbers["since"] = c.now()
	}
	c.numbers["last"] = last
	c.entries[c.token] = entry{c.now(), wait, lease, signal}
	return int64(at) + 1, fresh
}

func later(end *int64, to int64) {
	if *end != 0 {
		*end = max(*end, to)
	}
}

// Pop takes the oldest signal, as BLPOP does.
func (s *Server) Pop(name string) any {
	l := s.lists[name]
	switch {
	case s.strange[name]:
		return Failure("WRONGTYPE")
	case l == nil:
		return nil
	}
	oldest := l.signals[0].String()
	l.signals = l.signals[1:]
	s.forgetEmpty()
	return oldest
}

func (s signal) String() string {
	if s.other != "" {
		return s.other
	}
	return strconv.FormatInt(s.fence, 10) + " " + strconv.FormatInt(s.deadline, 10) + " " + s.token
}

// Delete removes a key.
func (s *Server) Delete(name string) {
	delete(s.strange, name)
	delete(s.lists, name)
	for _, l := range s.locks {
		switch name {
		case l.lockKey:
			l.holder = ""
		case l.queueKey:
			l.line = nil
		case l.stateKey:
			clear(l.numbers)
			clear(l.entries)
		}
	}
	s.forgetEmpty()
}

// Stuff appends to a list what is no signal.
func (s *Server) Stuff(name, element string) {
	l := s.lists[name]
	if l == nil {
		l = &list{}
		s.lists[name] = l
	}
	l.signals = append(l.signals, signal{other: element})
}

// Spoil replaces a key by one of another type.
func (s *Server) Spoil(name string) {
	s.Delete(name)
	s.strange[name] = true
}

// SetClock also lets what has run out vanish.
func (s *Server) SetClock(micros int64) {
	s.Micros = micros
	over := func(end int64) bool { return end != 0 && s.now() > end }
	for _, l := range s.locks {
		if over(l.holderEnd) {
			s.Delete(l.lockKey)
		}
		if over(l.lineEnd) {
			s.Delete(l.queueKey)
		}
		if over(l.stateEnd) {
			s.Delete(l.stateKey)
		}
	}
	for name, l := range s.lists {
		if over(l.end) {
			delete(s.lists, name)
		}
	}
}

// forgetEmpty is what Redis does: a key without content is none, nor has it an end.
func (s *Server) forgetEmpty() {
	for _, l := range s.locks {
		if l.holder == "" {
			l.holderEnd = 0
		}
		if len(l.line) == 0 {
			l.lineEnd = 0
		}
		if len(l.numbers)+len(l.entries) == 0 {
			l.stateEnd = 0
		}
	}
	maps.DeleteFunc(s.lists, func(_ string, l *list) bool { return len(l.signals) == 0 })
}

// Clone copies all that the server knows.
func (s *Server) Clone() *Server {
	c := New(s.version)
	c.Micros = s.Micros
	c.strange = maps.Clone(s.strange)
	for name, l := range s.locks {
		twin := *l
		twin.line, twin.numbers, twin.entries = slices.Clone(l.line), maps.Clone(l.numbers), maps.Clone(l.entries)
		c.locks[name] = &twin
	}
	for name, l := range s.lists {
		c.lists[name] = &list{slices.Clone(l.signals), l.end}
	}
	return c
}

// Key is a key of Redis, its content as text: of a zset and a hash two items each, members with scores
// and fields with values.
type Key struct {
	Name, Kind string
	End        int64
	Items      []string
}

// Equal compares all of two keys.
func (k Key) Equal(other Key) bool {
	return k.Name == other.Name && k.Kind == other.Kind && k.End == other.End && slices.Equal(k.Items, other.Items)
}

// Sort brings the fields of a hash in order.
func (k *Key) Sort() {
	if k.Kind != "hash" {
		return
	}
	pairs := slices.SortedFunc(slices.Chunk(k.Items, 2), slices.Compare)
	k.Items = slices.Concat(pairs...)
}

// Keys is all that there is, in the order of the names.
func (s *Server) Keys() []Key {
	text := func(n int64) string { return strconv.FormatInt(n, 10) }
	var all []Key
	for _, l := range s.locks {
		if l.holder != "" {
			all = append(all, Key{l.lockKey, "string", l.holderEnd, []string{l.holder}})
		}
		queue := Key{l.queueKey, "zset", l.lineEnd, nil}
		for _, p := range l.line {
			queue.Items = append(queue.Items, p.token, text(p.score))
		}
		state := Key{l.stateKey, "hash", l.stateEnd, nil}
		for name, n := range l.numbers {
			state.Items = append(state.Items, name, text(n))
		}
		for token, e := range l.entries {
			state.Items = append(state.Items, "@"+token,
				text(e.called)+" "+text(e.wait)+" "+text(e.lease)+" "+e.signal)
		}
		state.Sort()
		for _, k := range []Key{queue, state} {
			if len(k.Items) > 0 {
				all = append(all, k)
			}
		}
	}
	for name, l := range s.lists {
		k := Key{name, "list", l.end, nil}
		for _, signal := range l.signals {
			k.Items = append(k.Items, signal.String())
		}
		all = append(all, k)
	}
	for name := range s.strange {
		all = append(all, Key{name, "set", 0, []string{"strange"}})
	}
	slices.SortFunc(all, func(a, b Key) int { return strings.Compare(a.Name, b.Name) })
	return all
}
