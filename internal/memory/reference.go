// Package memory is a server in plain Go: the functions of lua/lock.lua and their keys. It has no clock
// and no connections. lua/model compares it with lock.lua, step by step.
package memory

import (
	"cmp"
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
	listMax   = 1_000   // waiters, and co-holders of a lock
	letInMax  = 100     // waiters to whom a call gives a share

	TokenMax = 16_384 // bytes
	KeyMax   = 8_192
	leaseMax = 9_999_999_999_999
	waitMax  = 86_400_000

	// HoldersMax is the limit of HOLDERS.
	HoldersMax = 9_999_999_999_999
)

const (
	anyNumber int64 = 0 // HOLDERS of a caller that shares with any number
	alone     int64 = 1

	never = 1 << 53 // the score of a share that does not expire
)

// Server is the state of a server. It is not safe for concurrent use. A key's end is its last millisecond;
// 0: it has no TTL.
type Server struct {
	Micros  int64 // its clock
	version string
	locks   map[string]*lock
	lists   map[string]*list // the signal lists
	strange map[string]bool  // keys of a wrong type
}

type lock struct {
	lockKey, queueKey, stateKey string

	holder    string           // of a lock held alone; "": nobody
	holderEnd int64            // of that lease
	shares    map[string]int64 // the co-holders with the end of each lease; some may have run out
	together  bool             // a sharer got the last fence
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
	holders             int64
}

type list struct {
	signals []signal
	end     int64
}

type signal struct {
	fence, deadline int64
	token           string
	other           string // not a signal: the whole element
}

// New returns an empty server. Its lock_version is this version.
func New(version string) *Server {
	return &Server{version: version, locks: map[string]*lock{}, lists: map[string]*list{}, strange: map[string]bool{}}
}

// at returns the lock with these keys. A new lock is free.
func (s *Server) at(keys []string) *lock {
	l := s.locks[keys[0]]
	if l == nil {
		l = &lock{lockKey: keys[0], queueKey: keys[1], stateKey: keys[2],
			shares: map[string]int64{}, numbers: map[string]int64{}, entries: map[string]entry{}}
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
	unread map[string]int64 // lists of dead clients: the deadline of the unread signal

	known    bool  // the state has a fence
	given    int   // how many were let in
	span     int64 // the longest lease or place of the waiters that were let in
	unblocks bool  // the first waiter loses its place if it cannot be told
}

// Arguments is the number of keys and arguments of each function. lock_acquire takes one more argument, HOLDERS.
var Arguments = map[string]struct{ Keys, Args int }{
	"lock_acquire": {4, 3}, "lock_release": {3, 1}, "lock_extend": {3, 2}, "lock_reset": {3, 0},
	"lock_inspect": {3, 0}, "lock_version": {0, 0},
}

var wholeNumber = regexp.MustCompile(`^[0-9]{1,13}$`)

// Call is an FCALL. may tells which undeclared keys the caller may write: a hand-over pushes to the signal
// lists of others. The reply is an int64, a string, a Failure, or a []any of these.
func (s *Server) Call(function string, keys, args []string, may func(string) bool) any {
	want := Arguments[function]
	if function == "lock_acquire" {
		if len(args) == want.Args {
			args = append(slices.Clone(args), "1")
		}
		want.Args++
	}
	if len(keys) != want.Keys || len(args) != want.Args || len(args) > 0 && (args[0] == "" || len(args[0]) > TokenMax) {
		return Failure("LOCKARG")
	}
	if slices.ContainsFunc(keys, func(key string) bool { return len(key) > KeyMax }) || len(slices.Compact(slices.Sorted(slices.Values(keys)))) < len(keys) {
		return Failure("LOCKARG")
	}
	var numbers [3]int64
	for i := 1; i < len(args); i++ {
		if !wholeNumber.MatchString(args[i]) {
			return Failure("LOCKARG")
		}
		numbers[i-1], _ = strconv.ParseInt(args[i], 10, 64)
		if numbers[i-1] > []int64{leaseMax, waitMax, HoldersMax}[i-1] {
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
	s.DropEnded()
	if len(args) > 0 {
		c.token = args[0]
	}
	defer c.forgetEmpty()
	switch function {
	case "lock_acquire":
		return c.acquire(keys[3], numbers[0], numbers[1], numbers[2])
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

func (c *call) acquire(signal string, lease, wait, holders int64) any {
	if c.holds(c.token) {
		if c.numbers["fence"] == 0 {
			c.raiseFence(c.holder == "")
		}
		c.hold(lease)
		c.letIn()
		c.keepState(max(lease, c.span))
		return c.held(lease)
	}
	// Only a caller that may have to wait needs the signal list.
	if wait > 0 && (!c.fits(holders) || len(c.line) > 0) && c.strange[signal] {
		return Failure("WRONGTYPE")
	}
	next, due := c.letInAhead(holders)
	if (next == "" || next == c.token) && c.fits(holders) {
		c.leave()
		c.raiseFenceIfFirst(holders)
		if holders != alone {
			c.shares[c.token] = 0
		} else {
			c.holder = c.token
		}
		c.hold(lease)
		c.letIn()
		c.keepState(max(lease, c.span))
		return c.held(lease)
	}
	if wait == 0 && c.leave() && len(c.shares) > 0 {
		c.letIn()
	}
	left := c.leaseLeft()
	if c.span > 0 {
		c.keepState(c.span)
	}
	if wait == 0 {
		return []any{int64(0), int64(0), left, c.now()}
	}
	position, fresh := c.enqueue(signal, lease, wait, holders)
	checkIn := min(position*headCheck, wait/3)
	if position == 1 {
		if room := c.roomIn(holders); room >= 0 {
			checkIn = min(checkIn, room+1)
		}
	}
	if position == 2 && due > 0 {
		checkIn = min(checkIn, due)
	}
	if fresh || wait > Memory { // the state outlives a shorter wait anyway
		c.keepState(max(left, wait))
	}
	return []any{int64(0), position, max(1, checkIn), c.now()}
}

func (c *call) release() int64 {
	if c.holds(c.token) {
		c.giveUp()
		return 1
	}
	left := c.leave()
	if c.holder == "" && len(c.shares) == 0 {
		c.giveUp()
	} else if c.letIn(); c.span > 0 {
		c.keepState(c.span)
	}
	if left {
		return 2
	}
	return 0
}

func (c *call) extend(lease int64) (held int64) {
	if c.holds(c.token) {
		c.hold(lease)
		held = 1
	}
	if len(c.shares) > 0 { // the next acquire takes a free lock
		c.token = "" // a waiter like any other
		c.letIn()
	}
	if held == 1 || c.span > 0 {
		c.keepState(max(lease*held, c.span))
	}
	return held
}

func (c *call) reset() (taken int64) {
	if c.isHeld() {
		taken = 1
	}
	c.unblocks = taken == 0
	clear(c.shares)
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
			p.token, max(0, c.now()-p.score/1000), min(e.called+e.wait-c.now(), waitMax), e.lease, e.signal, e.holders,
		})
	}
	holder, held, ttl := c.holder, int64(0), int64(-2)
	if holder != "" {
		held = 1
	}
	holders := []any{}
	for _, token := range c.inOrder() {
		if !c.over(c.shares[token]) {
			holder, held = token, held+1
			if held <= listMax {
				holders = append(holders, []any{token, c.shareLeft(token)})
			}
		}
	}
	if c.holder != "" {
		ttl = c.leaseLeft()
	} else if held > 0 {
		ttl = c.shareLeft(holder)
	}
	return []any{
		"holder", holder, "fence", c.numbers["fence"], "ttl_ms", ttl,
		"waiting", waiting, "waiters", waiters, "now_ms", c.now(), "held", held, "holders", holders,
	}
}

// over: a share with this end has run out.
func (s *Server) over(end int64) bool { return end != 0 && s.now() >= end }

// left is the rest of a lease with this end; -1: it never expires.
func (c *call) left(end int64) int64 {
	if end == 0 {
		return -1
	}
	return end - c.now()
}

// DropEnded drops ended shares. They do not count, but would count again after the clock is put back.
func (s *Server) DropEnded() {
	for _, l := range s.locks {
		maps.DeleteFunc(l.shares, func(_ string, end int64) bool { return s.over(end) })
	}
}

// endOfShare is the first millisecond after the share. The end of a key is its last millisecond.
func endOfShare(end int64) int64 {
	if end == 0 {
		return 0
	}
	return end + 1
}

// shareLeft is the rest of a share; -1: it never expires.
func (c *call) shareLeft(token string) int64 {
	if c.shares[token] == 0 {
		return -1
	}
	return c.shares[token] - 1 - c.now()
}

func (c *call) isHeld() bool { return c.holder != "" || len(c.shares) > 0 }

func (c *call) holds(token string) bool {
	_, shares := c.shares[token]
	return shares || c.holder == token
}

// fits: the lock fits a caller or waiter with this HOLDERS.
func (c *call) fits(holders int64) bool {
	if holders == alone || c.holder != "" {
		return !c.isHeld()
	}
	return holders == anyNumber || int64(len(c.shares)) < holders
}

// lockEnd is when the lock is free if nobody calls: at the end of the longest lease.
func (l *lock) lockEnd() int64 {
	end := l.holderEnd
	for _, e := range l.shares {
		if e == 0 {
			return 0
		}
		end = max(end, e)
	}
	return end
}

// inOrder returns the co-holders, the longest lease last.
func (l *lock) inOrder() []string {
	return slices.SortedFunc(maps.Keys(l.shares), func(a, b string) int {
		return cmp.Or(cmp.Compare(score(l.shares[a]), score(l.shares[b])), strings.Compare(a, b))
	})
}

// score is the end of a lease in the set of the co-holders.
func score(end int64) int64 {
	if end == 0 {
		return never
	}
	return end
}

// leaseLeft is how long the lock is held if nobody calls, -1: for ever.
func (c *call) leaseLeft() int64 {
	if !c.isHeld() {
		return 0
	}
	return c.left(c.lockEnd())
}

// roomIn is the time until enough leases have run out for a waiter with this HOLDERS; -1: for ever.
func (c *call) roomIn(holders int64) int64 {
	switch {
	case c.fits(holders):
		return 0
	case holders == alone || c.holder != "":
		return c.leaseLeft()
	}
	leases := c.inOrder()
	return c.shareLeft(leases[int64(len(leases))-holders])
}

// entryOf is the entry of a waiter. If it is lost, the waiter has Claim from the start of the state.
func (c *call) entryOf(token string) entry {
	if e, ok := c.entries[token]; ok {
		return e
	}
	since, ok := c.numbers["since"]
	if !ok {
		since = c.now()
	}
	return entry{called: since, wait: Claim, lease: Claim, holders: alone}
}

func (c *call) lapsed(e entry) bool { return c.now() > e.called+e.wait }

// silent: the waiter is Claim late for its check-in.
func (c *call) silent(e entry) bool { return c.now() > e.called+min(e.wait/3, Silence)+Claim }

// canTell: the server lets this caller push to the list, and the list is a signal list of the lock or prefix
// by its name and its oldest element.
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

// first returns the first live waiter, or "". The dead before it lose their places.
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

func (c *call) raiseFence(together bool) { c.numbers["fence"], c.together = c.nextFence(), together }

// raiseFenceIfFirst: co-holders have the same fence.
func (c *call) raiseFenceIfFirst(holders int64) {
	if !c.isHeld() || c.numbers["fence"] == 0 {
		c.raiseFence(holders != alone)
	}
}

// hold sets the lease of the caller, which holds the lock.
func (c *call) hold(lease int64) {
	end := int64(0)
	if lease != 0 {
		end = c.now() + lease
	}
	if _, shares := c.shares[c.token]; shares {
		c.shares[c.token] = endOfShare(end)
	} else {
		c.holderEnd = end
	}
}

// keepState makes the state outlive every lease, and a place or lease of span ms. Its time only grows while the
// lock is in use; a state without one also outlives the queue.
func (c *call) keepState(span int64) {
	end := c.now() + span
	if c.isHeld() {
		if c.lockEnd() == 0 {
			c.stateEnd = 0
			return
		}
		end = max(end, c.lockEnd())
	}
	if c.known && c.stateEnd != 0 {
		end = max(end, c.stateEnd-Memory)
	} else if len(c.line) > 0 {
		end = max(end, c.lineEnd)
	}
	c.stateEnd, c.known = end+Memory, true
}

// held is the reply to a caller that holds the lock.
func (c *call) held(lease int64) any {
	if lease == 0 {
		lease = -1
	}
	return []any{int64(1), c.numbers["fence"], lease, c.now()}
}

// letIn gives the lock to the first waiters that it fits, up to the caller. It returns the first that still
// waits.
func (c *call) letIn() (next string) {
	for c.holder == "" {
		token := c.first()
		if token == "" || token == c.token || c.given == letInMax {
			return token
		}
		e := c.entryOf(token)
		if !c.fits(e.holders) {
			return token
		}
		lease := int64(Claim)
		if e.lease > 0 {
			lease = min(lease, e.lease)
		}
		fence := c.numbers["fence"]
		if !c.isHeld() || fence == 0 {
			fence = c.nextFence()
		}
		switch c.tell(token, e, signal{fence: fence, deadline: c.now() + lease, token: token}) {
		case mute:
			return token
		case gone:
			continue
		}
		c.numbers["fence"], c.together = fence, e.holders != alone
		c.remove(token)
		c.given++
		end := c.now() + lease
		if e.holders == alone {
			c.holder, c.holderEnd = token, end
		} else {
			c.shares[token] = endOfShare(end)
		}
		c.span = max(c.span, e.lease, e.wait)
	}
	return ""
}

// The result of telling a waiter.
const (
	told = iota
	mute // it cannot be told, and keeps its place
	gone // it is dead, or blocks the lock
)

func (c *call) tell(token string, e entry, s signal) int {
	if !c.canTell(e.signal) {
		if !c.unblocks && !c.silent(e) {
			return mute
		}
		c.unblocks = false
		c.remove(token)
		return gone
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
			return gone
		} else if oldest < c.now() {
			l.signals = l.signals[1:]
		}
	}
	l.signals = append(l.signals, s)
	return told
}

// letInAhead also handles a dead waiter that is first, wants the lock alone, and keeps out a caller that would share
// it: after a silence, letInAhead tells it to call. It also returns in how many milliseconds to look at
// the waiter again, 0: never.
func (c *call) letInAhead(holders int64) (next string, due int64) {
	for {
		next = c.letIn()
		e := c.entryOf(next)
		if next == "" || next == c.token || holders == alone || e.holders != alone || len(c.shares) == 0 {
			return next, 0
		}
		due = e.called + Claim
		if l := c.lists[e.signal]; c.now() > due && l != nil && c.canTell(e.signal) {
			due = l.signals[0].deadline // an unread signal before its deadline is enough
		}
		if c.now() <= due {
			return next, due - c.now() + 1
		}
		switch c.tell(next, e, signal{deadline: c.now() + Claim, token: next}) {
		case told:
			return next, Claim + 1
		case mute:
			return next, 0
		}
	}
}

// giveUp ends the caller's hold, and hands the lock on.
func (c *call) giveUp() {
	delete(c.shares, c.token)
	c.holder, c.holderEnd = "", 0 // the lease that is over keeps no state alive
	c.letIn()
	if c.isHeld() || len(c.line) > 0 {
		c.keepState(max(1, c.span))
	} else {
		c.stateEnd = c.now() + Memory // nobody uses it
	}
}

// enqueue gives the caller a place, or keeps its place. It returns the position, and whether the state is a
// new hash.
func (c *call) enqueue(signal string, lease, wait, holders int64) (position int64, fresh bool) {
	end := c.now() + wait
	last, ok := c.numbers["last"]
	if n := len(c.line); n > 0 && !ok {
		last = c.line[n-1].score
	}
	isMe := func(p place) bool { return p.token == c.token }
	at := slices.IndexFunc(c.line, isMe)
	if at >= 0 {
		mine, ok := c.entries[c.token]
		if c.isHeld() {
			c.first()
		}
		if ok && c.lapsed(mine) {
			c.remove(c.token)
		}
		at = slices.IndexFunc(c.line, isMe)
	}
	only := len(c.line) == 0
	if at < 0 {
		last = max(last+1, c.Micros)
		at = len(c.line)
		c.line = append(c.line, place{c.token, last})
	}
	fresh = !c.known
	if only {
		c.lineEnd = end
		if len(c.numbers)+len(c.entries) > 3 { // of a queue that was lost
			fresh = true
			c.known = false
			c.stateEnd = 0
			c.numbers = map[string]int64{"fence": c.numbers["fence"]}
			c.together = len(c.shares) > 0
			clear(c.entries)
		}
	} else {
		later(&c.lineEnd, end)
	}
	if _, known := c.numbers["since"]; only || fresh && !known {
		c.numbers["since"] = c.now()
	}
	c.numbers["last"] = last
	c.entries[c.token] = entry{c.now(), wait, lease, signal, holders}
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
			clear(l.shares)
		case l.queueKey:
			l.line = nil
		case l.stateKey:
			clear(l.numbers)
			clear(l.entries)
		}
	}
	s.forgetEmpty()
}

// Stuff appends to a list an element that is not a signal.
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

// SetClock also removes expired keys.
func (s *Server) SetClock(micros int64) {
	s.Micros = micros
	over := func(end int64) bool { return end != 0 && s.now() > end }
	for _, l := range s.locks {
		if over(l.lockEnd()) {
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

// forgetEmpty is what Redis does: an empty key does not exist, and has no TTL.
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

// Clone copies the server.
func (s *Server) Clone() *Server {
	c := New(s.version)
	c.Micros = s.Micros
	c.strange = maps.Clone(s.strange)
	for name, l := range s.locks {
		twin := *l
		twin.shares = maps.Clone(l.shares)
		twin.line, twin.numbers, twin.entries = slices.Clone(l.line), maps.Clone(l.numbers), maps.Clone(l.entries)
		c.locks[name] = &twin
	}
	for name, l := range s.lists {
		c.lists[name] = &list{slices.Clone(l.signals), l.end}
	}
	return c
}

// Key is a key of Redis, with its content as text. A zset and a hash have two items each: members with scores,
// fields with values.
type Key struct {
	Name, Kind string
	End        int64
	Items      []string
}

// Equal compares two keys.
func (k Key) Equal(other Key) bool {
	return k.Name == other.Name && k.Kind == other.Kind && k.End == other.End && slices.Equal(k.Items, other.Items)
}

// Sort sorts the fields of a hash.
func (k *Key) Sort() {
	if k.Kind != "hash" {
		return
	}
	pairs := slices.SortedFunc(slices.Chunk(k.Items, 2), slices.Compare)
	k.Items = slices.Concat(pairs...)
}

// Keys returns all keys, by name.
func (s *Server) Keys() []Key {
	text := func(n int64) string { return strconv.FormatInt(n, 10) }
	var all []Key
	for _, l := range s.locks {
		if l.holder != "" {
			all = append(all, Key{l.lockKey, "string", l.holderEnd, []string{l.holder}})
		} else if len(l.shares) > 0 {
			together := Key{l.lockKey, "zset", l.lockEnd(), nil}
			for _, token := range l.inOrder() {
				if !s.over(l.shares[token]) { // DropEnded removes it later
					together.Items = append(together.Items, token, text(score(l.shares[token])))
				}
			}
			if len(together.Items) > 0 {
				all = append(all, together)
			}
		}
		queue := Key{l.queueKey, "zset", l.lineEnd, nil}
		for _, p := range l.line {
			queue.Items = append(queue.Items, p.token, text(p.score))
		}
		state := Key{l.stateKey, "hash", l.stateEnd, nil}
		for name, n := range l.numbers {
			state.Items = append(state.Items, name, text(n))
			if name == "fence" && l.together {
				state.Items[len(state.Items)-1] += " shared"
			}
		}
		for token, e := range l.entries {
			lease := text(e.lease)
			if e.holders != alone {
				lease += "/" + text(e.holders)
			}
			state.Items = append(state.Items, "@"+token, text(e.called)+" "+text(e.wait)+" "+lease+" "+e.signal)
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
