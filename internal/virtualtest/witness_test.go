package virtualtest

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/memory"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

// What is checked.
const (
	exclusion  = "two clients act at once"
	ownLease   = "a client acts outside a lease of its own"
	together   = "a lock is held together otherwise than asked for"
	othersEnd  = "a lease ends by somebody else's call"
	growing    = "a fencing token does not grow"
	inOrder    = "not first come, first served"
	living     = "who has left or lapsed is given the lock"
	handedOver = "the lock is free while a live waiter waits"
	startShort = "a handed-over lease does not start short"
	knowing    = "a client holds the lock and will never know"
	served     = "a live waiter is never served"
	nothing    = "something is left behind"

	tooLate   = "Context does not end ahead of the lease"
	checkIn   = "the foremost waiter does not check in"
	forNought = "a lock is lost although nothing happened"
	verdicts  = "an error does not mean what it says"
	closes    = "Close does not do what it says"
	leftovers = "something is left in a client"
)

// lock is what a witness on the server knows of one lock.
type lock struct {
	name      string
	keys      wire.Keys
	line      []*wait // in the order in which they queued
	lastFence int64
	lostFence bool                   // the server does not remember it
	granted   map[grant]int64        // the step of each
	left      map[*process]time.Time // when one of its waits got the lock, or left the line
	fault     int64                  // the step after which what a client believed before may be wrong
	faultAt   time.Time
	holds     map[*hold]bool // of clients that believe, or believed until just now
	expiry    *time.Timer    // looks when the lease has run out
}

// grant is one of a lock. Those who hold it together have one fence.
type grant struct {
	token string
	fence int64
}

// wait is one wait for a lock, by its token, and the hold that it may become.
type wait struct {
	token   string
	lock    *lock
	p       *process
	own     bool // the caller's token
	lease   int64
	place   int64 // how long it is kept
	holders int   // how many it allows, itself included; 0: any number
	told    *told // of the last who used it
	users   int   // goroutines that wait or hold with it
	working *hold // Do's fn runs
	over    time.Time
	// excused: it may be in the queue, or hold the lock, and nobody can know: a call that its client had
	// given up came late, or an error that does not pass kept the client from leaving.
	excused bool

	queuedAt time.Time
	aware    bool // its client was told of a place when the wait was over
	// forged: the lock, the state or the last writes were lost, so the next call with a token of the caller's
	// may be a grant, which another process that has it may give back.
	forged    bool
	called    int64     // server time, ms
	calledAt  time.Time // ours
	unsure    bool      // an accident may have cost it its place, or got it back
	grantedAs int64     // the fence
	heldUntil time.Time // as far as is known, the end of its lease on the server
	released  time.Time // by a call, at this moment
}

// told is what one call of Acquire, TryAcquire or Do was told, and the Lock that it gives. The ctx of its
// calls carries it.
type told struct {
	p      *process
	user   string
	own    bool  // a token of the caller's
	wait   *wait // nil: nothing was sent yet
	held   int64 // the step in which the last such answer was given
	asked  int64 // the step of the first answer
	queued int64
	busyAt time.Time     // when it was told so first
	slow   time.Duration // the slowest answer
	fatal  bool          // it was told an error that does not pass
	given  time.Time     // back, by its user
}

type toldKey struct{}

// hold is a Lock, from when its user has it.
type hold struct {
	*redislock.Lock
	p       *process
	lock    *lock
	wait    *wait
	told    *told
	since   time.Time
	short   time.Duration // the shortest lease that it may have
	long    time.Duration // and the longest
	renews  bool
	limited bool // by a maximum hold
	endless bool // asked for a lease that never expires, and for no other
	given   bool // back, by its user
}

// view is the state on the server.
type view struct {
	all    []memory.Key
	byName map[string]*memory.Key
}

func newLock(w *world, name string) *lock {
	l := &lock{name: name, left: map[*process]time.Time{}, granted: map[grant]int64{}, holds: map[*hold]bool{}, keys: wire.Keys{
		Name: name, Lock: "lock:" + name, Queue: "lock-queue:" + name, State: "lock-state:" + name, Tagged: name,
	}}
	l.expiry = time.AfterFunc(time.Hour, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tick()
		w.check(l)
	})
	return l
}

// enter waits for the turn of a call: no two are made in the same microsecond, so a fence that is made of
// the clock is new. It returns with mu.
func (w *world) enter(apart time.Duration) {
	w.mu.Lock()
	w.turn = w.turn.Add(apart)
	if now := time.Now(); w.turn.Before(now) {
		w.turn = now
	} else {
		later := w.turn.Sub(now)
		w.mu.Unlock()
		time.Sleep(later)
		w.mu.Lock()
	}
	w.tick()
}

// tick has the server's clock run on. It needs mu.
func (w *world) tick() {
	now := time.Now()
	w.shared.StepClock(time.Duration(float64(now.Sub(w.ticked)) * w.rate))
	w.ticked = now
	w.stale = true
}

// look returns the present state on the server. It needs mu.
func (w *world) look() view {
	if w.stale {
		w.stale = false
		w.shared.Do(func(s *memory.Server) { w.now = view{all: s.Keys(), byName: map[string]*memory.Key{}} })
		for i, k := range w.now.all {
			w.now.byName[k.Name] = &w.now.all[i]
		}
	}
	return w.now
}

// ms is the server's clock. It needs mu.
func (w *world) micros() (now int64) {
	w.shared.Do(func(s *memory.Server) { now = s.Micros })
	return now
}

func (w *world) ms() int64 { return w.micros() / 1000 }

func (v view) items(key string) []string {
	if k := v.byName[key]; k != nil {
		return k.Items
	}
	return nil
}

// holders are who hold the lock on the server, each with the last millisecond of its lease, 0: never. It needs mu.
func (w *world) holders(l *lock) map[string]int64 {
	ends := map[string]int64{}
	k := w.look().byName[l.keys.Lock]
	switch {
	case k == nil:
	case k.Kind == "string":
		ends[k.Items[0]] = k.End
	default:
		now := w.ms()
		for pair := range slices.Chunk(k.Items, 2) {
			end, err := strconv.ParseInt(pair[1], 10, 64)
			switch {
			case err != nil || end >= 1<<53:
				ends[pair[0]] = 0
			case end > now:
				ends[pair[0]] = end - 1
			}
		}
	}
	return ends
}

// mayJoin: x can have the lock beside this many who have it already.
func (w *world) mayJoin(x *wait, holders map[string]int64) bool {
	for token := range holders {
		if y := w.waits[token]; x.holders == 1 || y != nil && y.holders == 1 {
			return false
		}
	}
	return x.holders <= 1 || len(holders) < x.holders
}

// fence is what the server remembers.
func (v view) fence(l *lock) int64 {
	state := v.items(l.keys.State)
	for i := 0; i < len(state); i += 2 {
		if state[i] == "fence" {
			n, _ := strconv.ParseInt(strings.TrimSuffix(state[i+1], " shared"), 10, 64)
			return n
		}
	}
	return 0
}

// queued tells whether the server has this token in its queue.
func (v view) queued(l *lock, token string) bool {
	queue := v.items(l.keys.Queue)
	for i := 0; i < len(queue); i += 2 {
		if queue[i] == token {
			return true
		}
	}
	return false
}

// lapsed: it has not called in time.
func (w *world) lapsed(x *wait) bool { return w.ms() > x.called+x.place }

// isSilent: a signal to its client lies unread past the deadline.
func (w *world) isSilent(x *wait) bool {
	now := w.ms()
	for _, text := range w.look().items(x.p.list) {
		words := strings.SplitN(text, " ", 3)
		if deadline, _ := strconv.ParseInt(words[1], 10, 64); deadline < now && x.called <= deadline {
			return true
		}
	}
	return false
}

// short is the lease that a waiter is handed, ms.
func (x *wait) short() int64 {
	if x.lease == 0 {
		return memory.Claim
	}
	return min(x.lease, memory.Claim)
}

// waitOf needs mu.
func (w *world) waitOf(c *call) *wait {
	x := w.waits[c.token]
	if x == nil {
		x = &wait{token: c.token, lock: w.locks[c.keys.Name], p: c.p}
		w.waits[c.token] = x
	}
	return x
}

// serve has the server work on a call.
func (w *world) serve(c *call, work func()) {
	apart := 2 * time.Microsecond
	if c.function == "lock_reset" {
		apart = 3 * time.Millisecond
	}
	w.enter(apart)
	defer w.mu.Unlock()
	w.step++
	c.served = w.step
	if c.keys.Name == "" {
		work()
		w.stale = true
		if c.function != "BLPOP" {
			w.notes("process %d: %s", c.p.id, c.function)
		}
		return
	}
	l := w.locks[c.keys.Name]
	if c.function == "lock_reset" {
		w.disturb(l)
		c.served = w.step
		w.onServer(l, nil, c, work)
		return
	}
	x := w.waitOf(c)
	if c.givenUp && (x.users == 0 || !x.released.IsZero()) {
		x.excused = true
	}
	if c.function == "lock_acquire" {
		if c.p != x.p && !x.own {
			w.fail(living, "process %d calls for %s", c.p.id, c.token)
		}
	}
	w.onServer(l, x, c, work)
}

// ms is a time in the library's unit, 0: never.
func ms(d time.Duration) int64 {
	if d == wire.Never {
		return 0
	}
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

// onServer is a call, and what a witness of it checks. It needs mu.
func (w *world) onServer(l *lock, x *wait, c *call, work func()) {
	before := w.look()
	for _, v := range l.line {
		if v != x && w.isSilent(v) {
			v.unsure = true // perhaps it is dropped
		}
	}
	if before.fence(l) < l.lastFence {
		l.lostFence = true
	}
	lapsed := x != nil && w.lapsed(x)
	if x != nil && (c.function == "lock_release" || lapsed) {
		l.drop(x)
	}
	held := w.holders(l)
	if _, mine := held[c.token]; mine && c.function == "lock_release" {
		x.released = time.Now()
		if h := x.working; h != nil && !h.given && h.Fence() == x.grantedAs {
			if deadline, finite := h.Deadline(); !finite || time.Now().Before(deadline) {
				w.fail(closes, "%s is given back while fn runs", c.token)
			}
		}
	}

	if c.function == "lock_acquire" {
		x.p, x.place, x.lease, x.holders = c.p, ms(c.wait), ms(c.lease), c.holders
	}
	work()
	w.stale = true
	holds := w.holders(l)
	w.notes("process %d: %s %s %v %v %d: held by %v, now %d", c.p.id, c.function, c.token, c.lease, c.wait, c.holders, holds, w.ms())
	w.changed(l, x, c, before.items(l.keys.Queue), lapsed, held, holds)
	if c.function == "lock_acquire" {
		if w.look().queued(l, x.token) {
			x.called, x.calledAt = w.ms(), time.Now()
			if !slices.Contains(l.line, x) {
				l.line = append(l.line, x)
				x.queuedAt = x.calledAt
			}
		} else {
			l.drop(x)
		}
	}
	if c.function != "lock_extend" && !w.isMute(l) {
		for _, v := range l.line {
			if v.unsure || w.lapsed(v) {
				continue
			}
			if w.mayJoin(v, holds) {
				w.fail(handedOver, "%s waits", v.token)
			}
			break
		}
	}
	w.check(l)
}

// changed judges who holds the lock after a call, and who did before. It needs mu.
func (w *world) changed(l *lock, x *wait, c *call, queue []string, lapsed bool, held, holds map[string]int64) {
	for token, end := range held {
		switch now, still := holds[token]; {
		case token == c.token && c.function != "lock_acquire", c.function == "lock_reset":
		case still && token != c.token && now != end:
			w.fail(othersEnd, "that of %s, from %d to %d", token, end, now)
		case !still:
			w.fail(othersEnd, "%s has lost the lock", token)
		}
		if from := w.waits[token]; from != nil {
			from.heldUntil = time.Now()
		}
	}
	if c.function == "lock_reset" {
		held = nil
	}
	beside := maps.Clone(holds) // the holders when the next one got the lock
	maps.DeleteFunc(beside, func(token string, _ int64) bool { _, had := held[token]; return !had })
	// The order of the grants is that of the queue; a caller that is not in it, or had lapsed, comes last.
	place := func(token string) int {
		if i := slices.Index(queue, token); i >= 0 && (x == nil || token != x.token || !lapsed) {
			return i
		}
		return len(queue)
	}
	given := slices.DeleteFunc(slices.Collect(maps.Keys(holds)), func(token string) bool { _, had := beside[token]; return had })
	slices.SortFunc(given, func(a, b string) int { return place(a) - place(b) })
	for _, token := range given {
		to := w.waits[token]
		if to == nil {
			w.fail(living, "nobody knows %q", token)
			return
		}
		w.grant(l, to, x, beside)
		beside[token] = 0
		end := holds[token]
		if left := end - w.ms(); to != x && (end == 0 || left > to.short()) {
			w.fail(startShort, "%s is handed a lease of %d ms", token, left)
		}
	}
	for token, end := range holds {
		if to := w.waits[token]; to != nil {
			to.heldUntil = time.Now().Add(w.left(end))
			if end == 0 && to.lease != 0 {
				w.fail(nothing, "the lease of %s never ends", token)
			}
		}
	}
}

// isMute: somebody is in the queue who perhaps cannot be told.
func (w *world) isMute(l *lock) bool {
	v := w.look()
	queue := v.items(l.keys.Queue)
	for i := 0; i < len(queue); i += 2 {
		if x := w.waits[queue[i]]; x != nil && x.unsure {
			return true
		}
	}
	return false
}

func (l *lock) drop(x *wait) {
	l.left[x.p] = time.Now()
	l.line = slices.DeleteFunc(l.line, func(v *wait) bool { return v == x })
}

// grant judges a grant to x, in a call of by, beside the present holders. It needs mu.
func (w *world) grant(l *lock, x, by *wait, beside map[string]int64) {
	fence := w.look().fence(l)
	switch joins := len(beside) > 0; {
	case !w.mayJoin(x, beside) && (by == nil || !by.unsure):
		w.fail(together, "%s allows %d and gets it beside %v", x.token, x.holders, slices.Collect(maps.Keys(beside)))
	case joins && fence != l.lastFence && !l.lostFence:
		w.fail(together, "%s gets the fence %d, the others have %d", x.token, fence, l.lastFence)
	case !joins && fence <= l.lastFence && (!l.lostFence || w.micros() > l.lastFence):
		w.fail(growing, "%s gets %d after %d", x.token, fence, l.lastFence)
	}
	if fence > l.lastFence {
		l.lastFence, l.lostFence = fence, false
	}
	x.grantedAs = fence
	if g := (grant{x.token, fence}); l.granted[g] == 0 {
		l.granted[g] = w.step
	}
	if x != by && !x.unsure && (!slices.Contains(l.line, x) || w.lapsed(x)) {
		w.fail(living, "to %s", x.token)
	}
	for _, v := range l.line {
		if v == x {
			break
		}
		if !v.unsure && !x.unsure && !w.lapsed(v) {
			w.fail(inOrder, "%s is given the lock before %s", x.token, v.token)
		}
	}
	l.drop(x)
}

// disturb is for what takes a lock away from its holder, who cannot know it yet: what a client believed
// before is not checked any more. It needs mu, taken by enter with some milliseconds apart: the client
// tells by the millisecond what was before it.
func (w *world) disturb(l *lock) {
	w.step++
	l.fault, l.faultAt = w.step, time.Now()
	for _, x := range w.waits { // those whose answer is under way, too
		x.forged = x.forged || x.own && x.lock == l
	}
	w.step++
}

// answered notes what a client was told.
func (w *world) answered(c *call, err error, held bool, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return
	}
	t := c.told
	if t == nil {
		t = &told{user: "nobody"}
	}
	w.notes("process %d: %s %s (%s) answered: "+format, append([]any{c.p.id, c.function, c.token, t.user}, args...)...)
	t.slow = max(t.slow, time.Since(c.sent))
	switch {
	case held:
		t.held = max(t.held, c.served)
	case c.function == "lock_acquire":
		if t.wait != nil && t.wait.users == 0 {
			t.wait.aware = true
		}
		if t.asked == 0 {
			t.asked = c.served
		}
		t.queued = max(t.queued, c.served)
		if t.busyAt.IsZero() {
			t.busyAt = time.Now()
		}
	}
}

// lost notes that a client does not know what became of its call.
func (w *world) lost(c *call, what string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.givenUp = true
	if c.function != "BLPOP" {
		w.notes("process %d: %s %s: the %s is lost: %v", c.p.id, c.function, c.token, what, err)
	}
}

// refuse notes an error of the server.
func (w *world) refuse(c *call, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes("process %d: %s %s: %v", c.p.id, c.function, c.token, err)
	if wire.Passes(err) {
		return
	}
	if c.told != nil {
		c.told.fatal = true
	}
	if c.token != "" {
		w.waitOf(c).excused = true
		return
	}
	for _, x := range w.waits { // its signals: all of its waits end
		if x.p == c.p && x.told != nil {
			x.told.fatal = true
		}
	}
}

// isCurrent: nothing has made a hold's belief wrong since. It needs mu.
func (w *world) isCurrent(h *hold) bool {
	granted := h.lock.granted[grant{h.Token(), h.Fence()}]
	told := h.told
	if granted < w.putBack && told.held < granted && (w.putBy < unseen || told.asked > w.putBack) {
		return false // nobody can tell that the signal is older than an answer
	}
	answer := max(told.queued, told.held)
	return max(answer, granted) > h.lock.fault && answer > w.jump && !h.wait.forged
}

// left is how long it is until the end of a lease, by our clock. It needs mu.
func (w *world) left(end int64) time.Duration {
	if end == 0 {
		return wire.Never
	}
	// A lease ends with the last microsecond of its last millisecond.
	return time.Duration(float64((end+1)*1000-w.micros()) * float64(time.Microsecond) / (1 + w.rate))
}

// check compares what the clients believe with what is. It needs mu.
func (w *world) check(l *lock) {
	v := w.look()
	holders := w.holders(l)
	now := time.Now()
	next := wire.Never
	for _, end := range holders {
		next = min(next, w.left(end))
	}
	if next != wire.Never {
		l.expiry.Reset(next + time.Microsecond)
	}
	var acting *hold
	for h := range l.holds {
		if h.Context().Err() != nil || h.p.ctx.Err() != nil {
			continue
		}
		deadline, finite := h.Deadline()
		if finite && !now.Before(deadline) {
			w.fail(tooLate, "%s: %v after its Deadline", h.Token(), now.Sub(deadline))
		}
		if !w.isCurrent(h) {
			continue
		}
		if acting != nil && acting.Token() != h.Token() && (acting.wait.holders == 1 || h.wait.holders == 1) {
			w.fail(exclusion, "%s and %s", acting.Token(), h.Token())
		}
		acting = h
		tolerance := time.Duration(w.maxRate * float64(h.long+12*time.Second))
		end, holds := holders[h.Token()]
		left := w.left(end)
		switch {
		case !holds:
			w.fail(ownLease, "%s acts, but %v hold the lock", h.Token(), holders)
		case end != 0 && !finite:
			w.fail(ownLease, "%s has no Deadline, but the lease ends in %v", h.Token(), left)
		case end != 0 && deadline.Sub(now) > left+tolerance:
			w.fail(ownLease, "the Deadline of %s is in %v, the end of the lease in %v", h.Token(), deadline.Sub(now), left)
		case h.Fence() < h.wait.grantedAs && !h.wait.unsure && w.back == 0 && l.granted[grant{h.Token(), h.Fence()}] > l.fault:
			w.fail(growing, "%s has %d and was granted %d", h.Token(), h.Fence(), h.wait.grantedAs)
		}
	}
	for _, k := range v.all {
		if k.End == 0 && k.Name == l.keys.Queue {
			w.fail(nothing, "%s has no TTL", k.Name)
		}
	}
}
