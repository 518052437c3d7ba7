package virtualtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/memory"
)

// accidents are the kinds of what may happen; each world has some of them.
var accidents = []string{
	"kill", "close", "silence", "silence all", "refuse", "loss", "slow", "missing", "loading", "fatal", "replicas",
	"back", "ahead", "rate", "reset", "delete lock", "delete queue", "delete state", "delete signals", "failover", "forever",
}

// unseen is how far the clock may be put back unseen: by no more than two round trips take.
const unseen = 7 * time.Second

const oneCall = 5 * time.Second // the longest that a client waits for an answer

var (
	errMissing = errors.New("ERR Function not found: the library is loaded again")
	errLoading = errors.New("LOADING, READONLY, UNBLOCKED or the like")
)

func (w *world) chance(in int) bool { return w.rnd.IntN(in) == 0 }

func (w *world) some(most time.Duration) time.Duration {
	return time.Duration(w.rnd.Int64N(int64(most)))
}

// nemesis has storms and calms take turns.
func (w *world) nemesis() {
	for !w.ending.Load() && w.over.Err() == nil {
		w.mu.Lock()
		w.calm = time.Time{}
		w.notes("a storm")
		if w.has("loss") {
			w.storm.lose, w.storm.late = w.rnd.Float64()/3, w.rnd.Float64()
		}
		end := time.Now().Add(w.some(stormFor))
		w.mu.Unlock()
		for time.Now().Before(end) && !w.ending.Load() && w.over.Err() == nil {
			w.mu.Lock()
			pause := w.some([]time.Duration{300 * time.Millisecond, 3 * time.Second}[w.rnd.IntN(2)])
			w.mu.Unlock()
			w.sleep(pause)
			if len(w.kinds) > 0 {
				w.mu.Lock()
				kind := w.kinds[w.rnd.IntN(len(w.kinds))]
				w.mu.Unlock()
				w.accident(kind)
			}
		}
		w.settle()
		w.mu.Lock()
		end = time.Now().Add(w.some(calmFor))
		w.mu.Unlock()
		for time.Now().Before(end) && !w.ending.Load() && w.over.Err() == nil {
			w.sleep(time.Second)
			w.judgeCalm()
		}
		w.operate()
	}
}

// settle ends a storm.
func (w *world) settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes("calm")
	w.calm = time.Now()
	w.storm = weather{delay: 5 * time.Millisecond}
	w.shared.SetReplicas(1)
	for _, p := range w.all {
		p.restore()
		p.fatal = 0
	}
}

// restore has the link work again. It needs mu.
func (p *process) restore() {
	if p.silent != nil {
		close(p.silent)
		p.silent = nil
	}
	p.refused = false
}

// after runs a step later, with mu, unless the storm is over.
func (w *world) after(d time.Duration, step func()) {
	time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.calm.IsZero() {
			step()
		}
	})
}

// replace is a new process in the place of one that ends.
func (w *world) replace() *process {
	slot := w.rnd.IntN(slots)
	old := w.slots[slot]
	w.slots[slot] = w.begin(slot)
	return old
}

func (w *world) accident(kind string) {
	w.steps.Add(1)
	w.enter(3 * time.Millisecond)
	defer w.mu.Unlock()
	p := w.slots[w.rnd.IntN(slots)]
	l := w.locks[w.names[w.rnd.IntN(len(w.names))]]
	span := w.some(12 * time.Second)
	w.notes("accident: %s (process %d, lock %s, %v)", kind, p.id, l.name, span)
	switch kind {
	case "kill":
		if w.chance(3) {
			old := w.replace()
			w.notes("process %d is killed", old.id)
			old.kill()
			w.running.Go(func() { w.close(old) })
		}
	case "close":
		if w.chance(3) {
			old := w.replace()
			w.running.Go(func() { w.close(old) })
		}
	case "silence", "silence all", "refuse":
		for _, q := range w.slots {
			if q == p || kind == "silence all" || kind == "refuse" && w.chance(2) {
				q.restore()
				if q.refused = kind == "refuse"; !q.refused {
					q.silent = make(chan struct{})
				}
				w.after(span, q.restore)
			}
		}
	case "slow":
		w.storm.delay = []time.Duration{time.Millisecond, 100 * time.Millisecond, 1500 * time.Millisecond}[w.rnd.IntN(3)]
	case "missing", "loading":
		w.storm.missing = errMissing
		if kind == "loading" {
			w.storm.missing = errLoading
		}
		w.after(span/4, func() { w.storm.missing = nil })
	case "fatal":
		if w.chance(4) {
			p.fatal++
		}
	case "replicas":
		w.shared.SetReplicas(w.rnd.IntN(2))
	case "back", "ahead":
		w.stepClock(kind == "back", w.some([]time.Duration{time.Millisecond, 3 * time.Second, time.Minute}[w.rnd.IntN(3)]))
	case "rate":
		w.rate = []float64{0, w.maxRate, -0.0005}[w.rnd.IntN(3)]
	case "reset":
		w.reset(l)
	case "delete lock", "delete queue", "delete state":
		w.delete(l, kind)
	case "delete signals":
		w.shared.Do(func(s *memory.Server) { s.Delete(p.list) })
		w.stale = true
	case "failover":
		if w.saved == nil || w.chance(2) {
			w.shared.Do(func(s *memory.Server) { w.saved = s.Clone() })
			return
		}
		w.failOver()
	}
}

// stepClock sets the server's clock. Back is safe. Put forward, leases end sooner than their holders think.
func (w *world) stepClock(back bool, by time.Duration) {
	w.doubtLapsed()
	if back {
		w.back += by
		w.excuseAll() // what a client has given up lasts longer than it can know
		w.step++
		w.putBack, w.putBy = w.step, by
		by = -by
	} else {
		for _, l := range w.locks {
			w.disturb(l)
			w.jump = l.fault
		}
	}
	w.shared.StepClock(by)
	w.stale = true
}

// excuseAll excuses all present holders and waiters.
func (w *world) excuseAll() {
	for _, x := range w.waits {
		x.excused = true
	}
}

// doubtLapsed is for a clock that is stepped: the places that lapsed before may be valid again.
func (w *world) doubtLapsed() {
	for _, l := range w.locks {
		for _, x := range l.line {
			if w.lapsed(x) {
				x.unsure = true
			}
		}
	}
}

// reset is an operator's.
func (w *world) reset(l *lock) {
	w.disturb(l)
	w.onServer(l, nil, &call{p: operator, function: "lock_reset"}, func() {
		w.shared.Do(func(s *memory.Server) {
			s.Call("lock_reset", []string{l.keys.Lock, l.keys.Queue, l.keys.State}, nil, func(string) bool { return true })
		})
	})
}

var operator = &process{ctx: context.Background()}

func (w *world) delete(l *lock, kind string) {
	key := l.keys.Lock
	switch kind {
	case "delete lock":
		w.disturb(l)
	case "delete queue":
		key = l.keys.Queue
		l.line = nil
	case "delete state":
		key = l.keys.State
		for _, x := range w.waits {
			x.forged = x.forged || x.own && x.lock == l
		}
		for _, x := range l.line {
			x.unsure = true
		}
	}
	w.shared.Do(func(s *memory.Server) { s.Delete(key) })
	w.stale = true
}

// failOver is to a replica that lacks the last writes.
func (w *world) failOver() {
	for _, l := range w.locks {
		w.disturb(l)
	}
	w.shared.Do(func(s *memory.Server) { *s = *w.saved.Clone() })
	w.stale = true
	w.tick()
	for _, x := range w.waits {
		x.unsure, x.forged = true, x.own
	}
}

// operate resets a lock that a dead holder has for long, as an operator would.
func (w *world) operate() {
	w.enter(3 * time.Millisecond)
	defer w.mu.Unlock()
	for _, l := range w.locks {
		for token, end := range w.holders(l) {
			x := w.waits[token]
			if x != nil && (x.users == 0 || x.p.ctx.Err() != nil) && (end == 0 || end > w.ms()+memory.Claim) {
				w.notes("an operator resets %s", l.name)
				w.reset(l)
				break
			}
		}
	}
}

// judgeEnd is for a Context that has ended just now. It needs mu.
func (w *world) judgeEnd(h *hold) {
	cause := context.Cause(h.Context())
	now := time.Now()
	deadline, finite := h.Deadline()
	if h.p.ctx.Err() != nil || !finite || !errors.Is(cause, redislock.ErrLost) {
		return
	}
	if notice := min(h.short/10, 500*time.Millisecond); !h.limited && deadline.Sub(now) < notice && w.isOver(cause) {
		w.fail(tooLate, "%s: Context ended %v ahead of its Deadline, and not %v", h.Token(), deadline.Sub(now), notice)
	}
	if h.endless && h.told.held > 0 && w.isOver(cause) {
		w.fail(forNought, "%s never expires: %v", h.Token(), cause)
	}
	quiet := min(h.long, 10*time.Second) + settled
	if h.renews && !h.limited && !w.calm.IsZero() && now.Sub(w.calm) > quiet && now.Sub(h.lock.faultAt) > quiet && now.Sub(h.since) < now.Sub(w.calm)-settled {
		w.fail(forNought, "%s: %v", h.Token(), cause)
	}
}

// isOver: the lease was not renewed in time.
func (w *world) isOver(cause error) bool {
	return cause != nil && !errors.Is(cause, redislock.ErrClosed) && !strings.Contains(cause.Error(), "taken away")
}

// judgeCalm looks at what can be wrong only while nothing is.
func (w *world) judgeCalm() {
	w.enter(2 * time.Microsecond)
	defer w.mu.Unlock()
	if w.calm.IsZero() || time.Since(w.calm) < settled {
		return
	}
	v := w.look()
	for _, l := range w.locks {
		for token := range w.holders(l) {
			w.judgeKnown(l, token)
		}
		queue := v.items(l.keys.Queue)
		for i := 0; i < len(queue); i += 2 {
			w.judgeKnown(l, queue[i])
		}
		for _, p := range w.slots {
			w.judgeCheckIn(l, p)
		}
	}
}

// judgeKnown: each holder of the lock, and each waiter in its queue, is a live or a dead user. It needs mu.
func (w *world) judgeKnown(l *lock, token string) {
	x := w.waits[token]
	if x == nil || x.users > 0 || x.excused || x.unsure || x.p.closing || time.Since(x.over) < time.Second {
		return
	}
	lapsedAt := x.calledAt.Add(time.Duration(x.place) * time.Millisecond)
	if w.lapsed(x) && (!x.aware || lapsedAt.Before(w.calm.Add(oneCall))) {
		return // the client gave up to tell
	}
	w.fail(knowing, "%s of %s is over since %v", token, l.name, time.Since(x.over))
}

// judgeCheckIn needs mu.
func (w *world) judgeCheckIn(l *lock, p *process) {
	var first *wait
	last := l.left[p]
	for _, x := range l.line {
		if x.p != p || x.users == 0 || p.closing {
			continue
		}
		if first == nil && !x.unsure {
			first = x
		}
		if x.calledAt.After(last) {
			last = x.calledAt
		}
	}
	if first != nil && time.Since(first.queuedAt) > 3*time.Second && time.Since(last) > 2100*time.Millisecond {
		w.fail(checkIn, "%s of process %d called %v ago", l.name, p.id, time.Since(last))
	}
}

// judgeClose is for a Close that has returned. It needs mu.
func (w *world) judgeClose(p *process, took time.Duration) {
	if took > 8*time.Second {
		w.fail(closes, "process %d: it took %v", p.id, took)
	}
	if p.waiting > 0 {
		w.fail(closes, "process %d: %d still wait", p.id, p.waiting)
	}
	for _, l := range w.locks {
		for h := range l.holds {
			if h.p == p && h.Context().Err() == nil {
				w.fail(closes, "the Context of %s lives", h.Token())
			}
		}
	}
}

// sizes are how many entries the maps of a Locker have.
func sizes(l *redislock.Locker) map[string]int {
	locker := reflect.ValueOf(l).Elem()
	hub, leavers := locker.FieldByName("hub").Elem(), locker.FieldByName("leavers").Elem()
	n := map[string]int{"held": locker.FieldByName("held").Len()}
	for _, name := range []string{"waiters", "lines", "listeners", "past", "order"} {
		n[name] = hub.FieldByName(name).Len()
	}
	n["leavers"], n["leaving"] = leavers.FieldByName("all").Len(), leavers.FieldByName("queue").Len()
	n["workers"] = int(leavers.FieldByName("workers").Int())
	return n
}

func (w *world) judgeSizes(p *process, allowed map[string]int) {
	for name, n := range sizes(p.locker) {
		if n > allowed[name] {
			w.failure(leftovers, "process %d, %s: %d", p.id, name, n)
		}
	}
}

// judgeIdle: nobody waits or holds, so the Lockers know nobody.
func (w *world) judgeIdle() {
	synctest.Wait()
	for _, p := range w.processes() {
		w.mu.Lock()
		closing := p.closing
		w.mu.Unlock()
		if !closing {
			w.judgeSizes(p, map[string]int{"past": 8192, "order": 8192, "listeners": 1})
		}
	}
}

// judgeClosed: no Locker has anything left.
func (w *world) judgeClosed() {
	for _, p := range w.processes() {
		w.judgeSizes(p, map[string]int{"past": 8192, "order": 8192})
	}
}

// judgeEmpty: on the server, there is only the state, and later nothing.
func (w *world) judgeEmpty() {
	if w.over.Err() != nil {
		return
	}
	left := func(d time.Duration, allowed func(memory.Key) bool) {
		w.sleep(d)
		w.enter(0)
		defer w.mu.Unlock()
		for _, k := range w.look().all {
			if !allowed(k) {
				w.fail(nothing, "%s, until %d, now %d", fmt.Sprint(k), k.End, w.ms())
			}
		}
	}
	longest := 3*time.Minute + w.back
	left(longest, func(k memory.Key) bool { return k.Kind == "hash" && k.End != 0 })
	left(longest+memory.Memory*time.Millisecond, func(memory.Key) bool { return false })
}
