package model

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"pgregory.net/rapid"

	"github.com/seed-ee05a192/redislock/internal/memory"
)

// What is checked of the clients, whatever the reference says.
const (
	exclusion  = "two clients act at once"
	ownLease   = "a client acts outside a lease of its own"
	growing    = "a fencing token does not grow"
	inOrder    = "not first come, first served"
	living     = "who has left or lapsed is given the lock"
	handedOver = "the lock is free while a live waiter waits"
	startShort = "a handed-over lease does not start short"
	knowing    = "a client holds the lock and will never know"
	unblocking = "a reset leaves what keeps the lock free"
	served     = "a live waiter is never served"
	nothing    = "something is left behind"
)

// mistakes are what a client can do wrong; none is made but in the test of the tests.
type mistakes struct {
	believesStaleSignals, believesOlderSignals, countsFromTheReply, leavesSilently, neverChecksIn bool
}

// clients is a run in which simulated clients share a lock. They follow the rules of a client, over a
// network that delays and loses, and what they believe is compared with the truth.
//
// Time: elapsed is that of all clients, the server's clock may step. Step numbers order what happens
// on the server.
type clients struct {
	*world
	mistakes
	keys3   []string
	elapsed int64 // µs
	all     []*client
	waits   []*wait
	step    int64
	fault   int64 // the step after which what a client believed before may be wrong
	back    int64 // µs that the server's clock was put back
	putBack int64 // the step of the last time
	quiet   bool  // nothing gets lost any more

	// What a witness on the server knows.
	line      []*wait // in the order in which they queued
	lastFence int64
	lostFence bool            // the server does not remember it
	granted   map[int64]int64 // the step of each grant, by its fence
}

type client struct {
	id   int
	dead bool
	// hand is what it was sent and has not looked at: the signals that it popped.
	hand []string
}

// wait is one wait for the lock, and the hold that it may become.
type wait struct {
	*client
	token, list string
	lease, wait int64

	stage   stage
	request *request // under way, one at a time
	undone  bool     // over, and the server knows
	due     int64    // elapsed: to check in
	seen    int64    // what the server's clock showed, ms
	seenAt  int64    // after this
	seenIn  int64    // the step
	until   int64    // holding: believes so until then
	fence   int64
	asOf    int64 // the step that made it believe so

	// What a witness on the server knows.
	called    int64 // ms
	unsure    bool  // an accident may have cost it its place, or got it back
	grantedAs int64 // the fence
}

type stage int

const (
	waiting stage = iota
	holding
	over
)

type request struct {
	function string
	lease    int64
	sent     int64
	served   int64 // the step
	reply    any
}

const never = math.MaxInt64

func newClients(t *rapid.T, srv *realServer, compared bool, m mistakes) *clients {
	s := &clients{world: newWorld(t, srv, compared), mistakes: m, keys3: locks[0], granted: map[int64]int64{}}
	for range 3 {
		s.all = append(s.all, &client{id: len(s.all) + 1})
	}
	return s
}

// actions are what can happen; check runs after each.
func (s *clients) actions() map[string]func(*rapid.T) {
	saved := s.snapshot()
	mine := func(label string, ok func(w *wait) bool) *wait {
		var list []*wait
		for _, w := range s.waits {
			if !w.dead && w.request == nil && ok(w) {
				list = append(list, w)
			}
		}
		if len(list) == 0 {
			s.SkipNow()
		}
		return pick(s.T, label, list)
	}
	arrive := func(t *rapid.T, wait int64) {
		if len(s.waits)-s.count(over) > 6 {
			t.SkipNow()
		}
		w := s.arrive(pick(t, "client", s.living()), one(t, "lease", int64(0), 500, 2000, 10_000, 10_000, 30_000), wait)
		s.send(w, "lock_acquire", w.lease)
	}
	return map[string]func(*rapid.T){
		"arrive":       func(t *rapid.T) { arrive(t, one(t, "wait", int64(3_000), 30_000)) },
		"arrive again": func(t *rapid.T) { arrive(t, one(t, "wait", int64(3_000), 30_000)) },
		"try":          func(t *rapid.T) { arrive(t, 0) },
		"check in": func(*rapid.T) {
			w := mine("waiter", func(w *wait) bool { return w.stage == waiting })
			if s.neverChecksIn {
				s.SkipNow()
			}
			s.send(w, "lock_acquire", w.lease)
		},
		"leave": func(*rapid.T) {
			s.leave(mine("waiter", func(w *wait) bool { return w.stage == waiting }))
		},
		"release": func(*rapid.T) {
			s.release(mine("holder", func(w *wait) bool { return w.stage == holding }))
		},
		"release it": func(*rapid.T) {
			s.release(mine("holder", func(w *wait) bool { return w.stage == holding }))
		},
		"extend": func(t *rapid.T) {
			w := mine("holder", func(w *wait) bool { return w.stage == holding })
			s.extend(w, one(t, "lease", int64(0), 500, 2000, 10_000))
		},
		"network": func(t *rapid.T) {
			var list []*wait
			for _, w := range s.waits {
				if w.request != nil {
					list = append(list, w)
				}
			}
			if len(list) == 0 {
				t.SkipNow()
			}
			s.move(pick(t, "request of", list))
		},
		"signal": func(t *rapid.T) {
			lists := s.heard()
			if len(lists) == 0 {
				t.SkipNow()
			}
			list := one(t, "list", lists...)
			c := s.owner(list)
			popped, ok := s.pop(list)
			if !ok {
				return
			}
			switch one(t, "it is", "read", "read", "read", "delayed", "lost") {
			case "read":
				s.read(c, popped)
			case "delayed":
				c.hand = append(c.hand, popped)
			}
		},
		"delayed signal": func(t *rapid.T) {
			var list []*client
			for _, c := range s.living() {
				if len(c.hand) > 0 {
					list = append(list, c)
				}
			}
			if len(list) == 0 {
				t.SkipNow()
			}
			c := pick(t, "client", list)
			first := c.hand[0]
			c.hand = c.hand[1:]
			s.read(c, first)
		},
		"later":      func(*rapid.T) { s.later() },
		"much later": func(*rapid.T) { s.later() },
		"accident": func(t *rapid.T) {
			switch one(t, "accident", "crash", "crash", "back", "reset", "delete", "delete", "save", "fail over", "ahead", "load") {
			case "crash":
				s.crash(pick(t, "client", s.living()))
			case "back":
				s.stepClock(-one(t, "by", int64(1), 1_000_000, 2_000_000, 60_000_000))
			case "ahead":
				s.stepClock(one(t, "by", int64(1), 1_000_000, 2_000_000, 60_000_000))
			case "reset":
				s.reset()
			case "delete":
				s.delete(one(t, "key", append(slices.Clone(s.keys3), s.heard()...)...))
			case "save":
				saved = s.snapshot()
			case "fail over":
				s.disturb()
				s.failOver(saved)
				for _, w := range s.waits {
					w.unsure = true
				}
			case "load":
				s.reload()
			}
		},
		"": func(*rapid.T) { s.check() },
	}
}

// pick draws one of a list by its name.
func pick[V fmt.Stringer](t *rapid.T, label string, list []V) V {
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = v.String()
	}
	return list[slices.Index(names, one(t, label, names...))]
}

func (c *client) String() string { return fmt.Sprint("client ", c.id) }

func (w *wait) String() string { return w.token }

func (s *clients) arrive(c *client, lease, waitFor int64) *wait {
	w := &wait{client: c, token: fmt.Sprintf("t%d", len(s.waits)+1), lease: lease, wait: waitFor}
	w.list = fmt.Sprintf("lock-signal:{x}:%d", c.id)
	if c.id%3 == 0 { // has a list for each wait
		w.list += "/" + w.token
	}
	s.waits = append(s.waits, w)
	return w
}

func (s *clients) living() []*client {
	return slices.DeleteFunc(slices.Clone(s.all), func(c *client) bool { return c.dead })
}

func (s *clients) count(at stage) (n int) {
	for _, w := range s.waits {
		if w.stage == at {
			n++
		}
	}
	return n
}

// heard are the lists with signals that somebody still looks at.
func (s *clients) heard() (lists []string) {
	for _, k := range s.keys {
		if c := s.owner(k.Name); c != nil && !c.dead {
			lists = append(lists, k.Name)
		}
	}
	return lists
}

func (s *clients) owner(list string) *client {
	for _, w := range s.waits {
		if w.list == list {
			return w.client
		}
	}
	return nil
}

func (s *clients) byToken(token string) *wait {
	for _, w := range s.waits {
		if w.token == token {
			return w
		}
	}
	return nil
}

// send puts a request on its way. Mostly it is answered at once.
func (s *clients) send(w *wait, function string, lease int64) {
	w.request = &request{function: function, lease: lease, sent: s.elapsed}
	if s.quiet || one(s.T, "answered at once", true, true, true, false) {
		s.serve(w)
		s.deliver(w)
	}
}

// move is what the network does with a request.
func (s *clients) move(w *wait) {
	r := w.request
	lost := !s.quiet && one(s.T, "lost", false, false, false, true)
	switch {
	case lost:
		s.lose(w)
	case r.served == 0:
		s.serve(w)
	case w.dead:
		w.request = nil
	default:
		s.deliver(w)
	}
}

// lose is a connection that breaks, before or after the server had the request.
func (s *clients) lose(w *wait) {
	r := w.request
	w.request = nil
	switch {
	case w.dead:
	case w.stage == over:
		s.undo(w)
	case r.function == "lock_acquire":
		w.due = s.elapsed
	}
}

func (s *clients) leave(w *wait) {
	w.stage = over
	if s.leavesSilently {
		w.undone = true
		return
	}
	s.undo(w)
}

func (s *clients) release(w *wait) {
	w.stage, w.until = over, 0
	s.undo(w)
}

// undo leaves the queue, or gives back what was granted.
func (s *clients) undo(w *wait) {
	w.undone = false
	s.send(w, "lock_release", 0)
}

func (s *clients) extend(w *wait, lease int64) {
	if lease > 0 {
		// It is not known when the server will see the shorter lease.
		w.until = min(w.until, s.elapsed+lease*millisecond)
	}
	s.send(w, "lock_extend", lease)
}

// deliver brings a reply.
func (s *clients) deliver(w *wait) {
	r := w.request
	w.request = nil
	if w.stage == over {
		if r.function == "lock_release" {
			w.undone = true
		} else if !s.leavesSilently {
			s.undo(w)
		}
		return
	}
	from := r.sent
	if s.countsFromTheReply {
		from = s.elapsed
	}
	switch reply := r.reply.(type) {
	case []any: // of lock_acquire
		number := func(i int) int64 { n, _ := reply[i].(int64); return n }
		if number(0) == 1 {
			s.believe(w, number(1), end(from, number(2)), r.served)
			return
		}
		w.seen, w.seenAt, w.seenIn = number(3), r.sent, r.served
		w.due = s.elapsed + number(2)*millisecond
		w.stage = waiting
		if w.wait == 0 {
			w.stage, w.undone = over, true
		}
	case int64: // of lock_extend
		if reply == 1 {
			lease := r.lease
			if lease == 0 {
				lease = -1
			}
			w.until, w.asOf = end(from, lease), r.served
			return
		}
		w.stage, w.undone = over, true
	}
}

// end is that of a lease, -1: it has none.
func end(from, lease int64) int64 {
	if lease < 0 {
		return never
	}
	return from + lease*millisecond
}

// believe is for what may be a grant.
func (s *clients) believe(w *wait, fence, until, asOf int64) {
	if until <= s.elapsed { // came too late
		w.stage, w.due = waiting, s.elapsed
		return
	}
	w.stage, w.fence, w.until, w.asOf = holding, fence, until, asOf
}

// read is a client that looks at a signal.
func (s *clients) read(c *client, text string) {
	words := strings.SplitN(text, " ", 3)
	fence, _ := strconv.ParseInt(words[0], 10, 64)
	deadline, _ := strconv.ParseInt(words[1], 10, 64)
	w := s.byToken(words[2])
	switch {
	case w == nil || w.client != c:
		s.fail(living, "the signal %q came to client %d", text, c.id)
	case w.stage == holding:
	case w.request != nil: // what is said last counts
		if w.stage == waiting {
			c.hand = append(c.hand, text)
		}
	case w.stage == over:
		if !s.leavesSilently {
			s.undo(w) // it is passed on
		}
	case s.believesStaleSignals:
		s.believe(w, fence, s.elapsed+w.short()*millisecond, w.seenIn)
	case w.seenIn == 0:
		w.due = s.elapsed
	default:
		until := w.seenAt + (deadline-w.seen)*millisecond - millisecond
		// Of a grant that is yet to come: the server's clock has jumped. Of one before the reply that said
		// that it waits: it was taken back.
		older := deadline-w.short() < w.seen && !s.believesOlderSignals
		if older || until-w.short()*millisecond > s.elapsed {
			w.due = s.elapsed
			return
		}
		asOf := w.seenIn
		if s.granted[fence] < s.putBack && s.putBack < w.seenIn {
			asOf = 0 // nobody can tell that it is older than the reply
		}
		s.believe(w, fence, until, asOf)
	}
}

// short is the lease that a waiter is handed.
func (w *wait) short() int64 {
	if w.lease == 0 {
		return memory.Claim
	}
	return min(w.lease, memory.Claim)
}

// crash is the end of a client. Another one takes its place.
func (s *clients) crash(c *client) {
	c.dead = true
	s.all = append(s.all, &client{id: len(s.all) + 1})
	for _, w := range s.waits {
		if w.client == c {
			w.stage = over
		}
	}
}

// stepClock sets the server's clock. Back is safe. Put forward, leases end sooner than their holders think.
func (s *clients) stepClock(by int64) {
	for _, w := range s.line {
		if s.lapsed(w) {
			w.unsure = true
		}
	}
	if by > 0 {
		s.disturb()
	} else {
		s.back -= by
		s.step++
		s.putBack = s.step
	}
	s.pass(s.micros + by)
}

func (s *clients) delete(name string) {
	if name == s.keys3[0] {
		s.disturb()
	}
	s.del(name)
	switch name {
	case s.keys3[1]:
		s.line = nil
	case s.keys3[2]:
		for _, w := range s.line {
			w.unsure = true
		}
	}
}

// disturb is for what takes a lock away from its holder, who cannot know it yet: what a client believed
// before is not checked any more. Grants before and after it are told apart by the millisecond.
func (s *clients) disturb() {
	s.goOn(millisecond)
	s.step++
	s.fault = s.step
	s.step++
}

func (s *clients) reset() {
	s.disturb()
	before, _ := s.holder()
	first := func() string {
		if holder, _ := s.holder(); holder != "" || len(s.key(s.keys3[1]).Items) == 0 {
			return ""
		}
		return s.key(s.keys3[1]).Items[0]
	}
	was := first()
	s.onServer(nil, "lock_reset")
	if before == "" && was != "" && first() == was {
		s.fail(unblocking, "%s", was)
	}
	for _, w := range s.line {
		if w.token == was && !slices.Contains(s.key(s.keys3[1]).Items, was) {
			w.unsure = true // it has to queue anew
		}
	}
}

func (s *clients) goOn(by int64) {
	by = max(by, 0)
	s.elapsed += by
	s.pass(s.micros + by)
}

func (s *clients) later() {
	var all []int64 // from now
	for _, at := range s.moments() {
		all = append(all, at*millisecond-s.micros)
	}
	for _, w := range s.waits {
		if w.stage == waiting && !w.dead {
			all = append(all, w.due-s.elapsed)
		} else if w.stage == holding && w.until != never {
			all = append(all, w.until-s.elapsed)
		}
	}
	all = slices.DeleteFunc(all, func(by int64) bool { return by < 0 })
	slices.Sort(all)
	if len(all) == 0 || !one(s.T, "until something happens", true, true, false) {
		s.goOn(one(s.T, "passes", int64(1), 1000, 333_000, 1_000_000, 2_000_000))
		return
	}
	by := all[0]
	if !one(s.T, "the next", true, true, false) {
		by = one(s.T, "by", all...)
	}
	s.goOn(by + one(s.T, "and", int64(0), -1, -1000, 1000))
}

func (s *clients) key(name string) memory.Key {
	for _, k := range s.keys {
		if k.Name == name {
			return k
		}
	}
	return memory.Key{}
}

func (s *clients) holder() (token string, end int64) {
	if k := s.key(s.keys3[0]); k.Items != nil {
		return k.Items[0], k.End
	}
	return "", 0
}

// fenceOf is what the server remembers.
func (s *clients) fenceOf() int64 {
	state := s.key(s.keys3[2])
	for i := 0; i < len(state.Items); i += 2 {
		if state.Items[i] == "fence" {
			n, _ := strconv.ParseInt(state.Items[i+1], 10, 64)
			return n
		}
	}
	return 0
}

// lapsed: it has not called in time.
func (s *clients) lapsed(w *wait) bool { return s.now() > w.called+w.wait }

// silent: a signal to its client lies unread past the deadline.
func (s *clients) silent(w *wait) bool {
	for _, text := range s.key(w.list).Items {
		words := strings.Split(text, " ")
		if deadline, _ := strconv.ParseInt(words[1], 10, 64); deadline < s.now() && w.called <= deadline {
			return true
		}
	}
	return false
}

// serve has the server work on the request of w.
func (s *clients) serve(w *wait) {
	s.step++
	r := w.request
	args := []string{w.token}
	switch r.function {
	case "lock_acquire":
		args = append(args, strconv.FormatInt(r.lease, 10), strconv.FormatInt(w.wait, 10))
	case "lock_extend":
		args = append(args, strconv.FormatInt(r.lease, 10))
	}
	r.served = s.step
	r.reply = s.onServer(w, r.function, args...)
}

// onServer is a call, and what a witness of it checks.
func (s *clients) onServer(w *wait, function string, args ...string) any {
	// Calls are never made in the same microsecond: so a fence that is made of the clock is new.
	s.elapsed++
	s.setClock(s.micros + 1)

	for _, v := range s.line {
		if v != w && s.silent(v) {
			v.unsure = true // perhaps it is dropped
		}
	}
	if s.fenceOf() < s.lastFence {
		s.lostFence = true
	}
	before, _ := s.holder()
	keys := s.keys3
	if function == "lock_acquire" {
		keys = append(slices.Clone(keys), w.list)
	}
	if function == "lock_release" || w != nil && s.lapsed(w) {
		s.drop(w)
	}
	reply := s.fcall(s.srv.client, function, keys, args...)
	if text, ok := reply.(memory.Failure); ok {
		s.fail("an error", "%s", text)
	}

	switch after, end := s.holder(); {
	case after == before || after == "":
	case w != nil && after == w.token:
		s.grant(w, w)
	default:
		to := s.byToken(after)
		if to == nil {
			s.fail(living, "nobody knows %q", after)
		}
		s.grant(to, w)
		if left := end - s.now(); end == 0 || left > to.short() {
			s.fail(startShort, "%s is handed a lease of %d ms", after, left)
		}
	}
	if function == "lock_acquire" {
		if parts := reply.([]any); parts[0] == int64(0) && parts[1] != int64(0) {
			w.called = s.now()
			if !slices.Contains(s.line, w) {
				s.line = append(s.line, w)
			}
		} else {
			s.drop(w)
		}
	}
	if after, _ := s.holder(); after == "" && function != "lock_extend" && !s.mute() {
		for _, v := range s.line {
			if !v.unsure && !s.lapsed(v) {
				s.fail(handedOver, "%s waits", v.token)
			}
		}
	}
	return reply
}

// mute: somebody is in the queue who perhaps cannot be told.
func (s *clients) mute() bool {
	queue := s.key(s.keys3[1]).Items
	return slices.ContainsFunc(s.waits, func(w *wait) bool { return w.unsure && slices.Contains(queue, w.token) })
}

func (s *clients) drop(w *wait) {
	s.line = slices.DeleteFunc(s.line, func(v *wait) bool { return v == w })
}

// grant is what the server's witness sees: the lock is given to w, in a call of by.
func (s *clients) grant(w, by *wait) {
	fence := s.fenceOf()
	if fence <= s.lastFence && (!s.lostFence || s.micros > s.lastFence) {
		s.fail(growing, "%s gets %d after %d", w.token, fence, s.lastFence)
	}
	if fence > s.lastFence {
		s.lastFence, s.lostFence = fence, false
	}
	w.grantedAs = fence
	s.granted[fence] = s.step
	if w != by && !w.unsure && (!slices.Contains(s.line, w) || s.lapsed(w)) {
		s.fail(living, "to %s", w.token)
	}
	for _, v := range s.line {
		if v == w {
			break
		}
		if !v.unsure && !w.unsure && !s.lapsed(v) {
			s.fail(inOrder, "%s is given the lock before %s", w.token, v.token)
		}
	}
	s.drop(w)
}

// check compares what the clients believe with what is.
func (s *clients) check() {
	holder, end := s.holder()
	var acting []*wait
	for _, w := range s.waits {
		if w.stage == holding && !w.dead && s.elapsed < w.until && w.asOf > s.fault {
			acting = append(acting, w)
		}
	}
	if len(acting) > 1 {
		s.fail(exclusion, "%s and %s", acting[0].token, acting[1].token)
	}
	for _, w := range acting {
		// A lease of so many ms ends with the last microsecond of its last millisecond.
		if holder != w.token || end != 0 && w.until-s.elapsed > (end+1)*millisecond-s.micros {
			s.fail(ownLease, "%s until %d µs from now, but %q has the lock until %d", w.token, w.until-s.elapsed, holder, end)
		}
		if w.fence < w.grantedAs && !w.unsure && s.back == 0 {
			s.fail(growing, "%s has %d and was granted %d", w.token, w.fence, w.grantedAs)
		}
	}
	if w := s.byToken(holder); w != nil && !w.dead && !w.unsure && w.stage == over && w.undone && !s.told(w) {
		s.fail(knowing, "%s", holder)
	}
	for _, k := range s.keys {
		if k.End == 0 && (k.Name != s.keys3[0] && k.Name != s.keys3[2] || holder != "" && end != 0 && s.fault == 0) {
			s.fail(nothing, "%s has no TTL", k.Name)
		}
	}
}

// told: a signal is on its way.
func (s *clients) told(w *wait) bool {
	all := slices.Concat(w.hand, s.key(w.list).Items)
	return slices.ContainsFunc(all, func(text string) bool { return strings.HasSuffix(text, " "+w.token) })
}

// drain is the end of a run: no more accidents, nothing gets lost, and who holds releases. Everybody who
// lives and waits is served; then nothing is left behind.
func (s *clients) drain() {
	s.quiet = true
	last := s.arrive(&client{id: len(s.all) + 1}, 10_000, 30_000)
	s.all = append(s.all, last.client)
	s.send(last, "lock_acquire", last.lease)
	// The places of the dead end, though later by what the clock was put back.
	for end := s.elapsed + s.back + 120_000*millisecond; s.work(); {
		s.check()
		if s.elapsed > end {
			s.fail(served, "%d wait", s.count(waiting))
		}
	}
	s.check()
	longest := (30_000+memory.Claim+1)*millisecond + s.back // until the last place of a dead client has lapsed
	s.goOn(longest)
	for _, k := range s.keys {
		if k.Name != s.keys3[2] || k.End == 0 {
			s.fail(nothing, "%s, until %d", k.Name, k.End)
		}
	}
	s.goOn(longest + memory.Memory*millisecond)
	if len(s.keys) > 0 {
		s.fail(nothing, "%s", s.keys[0].Name)
	}
}

// work is a round of the clients' work. It returns whether something is left to be done.
func (s *clients) work() (busy bool) {
	if token, end := s.holder(); token != "" && (end == 0 || end > s.now()+memory.Claim) {
		if w := s.byToken(token); w == nil || w.dead || w.stage == over && w.undone {
			s.reset() // nobody knows of a lease this long: an operator's business
		}
	}
	for _, list := range s.heard() {
		if popped, ok := s.pop(list); ok {
			busy = true
			s.read(s.owner(list), popped)
		}
	}
	for _, c := range s.living() {
		hand := c.hand
		c.hand = nil
		for _, text := range hand {
			busy = true
			s.read(c, text)
		}
	}
	for _, w := range s.waits {
		switch {
		case w.request != nil:
			busy = true
			s.move(w)
		case w.dead:
		case w.stage == holding:
			busy = true
			s.check()
			s.release(w)
		case w.stage == waiting && w.due <= s.elapsed && !s.neverChecksIn:
			busy = true
			s.send(w, "lock_acquire", w.lease)
		}
	}
	if busy || s.count(waiting) == 0 {
		return busy
	}
	next := int64(1_000_000)
	for _, w := range s.waits {
		if w.stage == waiting && w.due > s.elapsed {
			next = min(next, w.due-s.elapsed)
		}
	}
	s.goOn(next)
	return true
}
