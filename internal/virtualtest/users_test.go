package virtualtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

// user is a goroutine that takes locks and uses all their methods.
type user struct {
	w    *world
	slot int
	name string
	rnd  *rand.Rand

	// Of the present call.
	p     *process
	lock  *lock
	told  *told
	wants wants
}

// wants is what a call asks for.
type wants struct {
	lease    time.Duration // wire.Never
	renews   bool
	maxHold  time.Duration // wire.Never
	replicas int
	together []redislock.Option // with others
	options  []redislock.Option
}

var errWork = errors.New("the work failed")

func (u *user) one(in int) bool { return u.rnd.IntN(in) == 0 }

func pick[V any](u *user, of ...V) V { return of[u.rnd.IntN(len(of))] }

// some is a time up to that long.
func (u *user) some(most time.Duration) time.Duration {
	return time.Duration(u.rnd.Int64N(int64(most)))
}

func (u *user) run() {
	for !u.w.ending.Load() && u.w.over.Err() == nil {
		u.w.sleep(u.some(pick(u, 100*time.Millisecond, 3*time.Second)))
		u.w.mu.Lock()
		u.p = u.w.slots[u.slot]
		u.w.mu.Unlock()
		u.lock = u.w.locks[u.w.names[u.rnd.IntN(len(u.w.names))]]
		u.w.steps.Add(1)
		switch u.rnd.IntN(12) {
		case 0, 1, 2, 3:
			u.do()
		case 4, 5:
			u.acquire(true)
		case 6:
			u.relay()
		default:
			u.acquire(false)
		}
	}
}

// request draws what to ask for, and begins the call.
func (u *user) request() (context.Context, context.CancelFunc) {
	u.told = &told{p: u.p, user: u.name}
	r := wants{lease: u.w.leases[u.rnd.IntN(len(u.w.leases))], renews: !u.one(8), maxHold: wire.Never}
	r.options = append(r.options, redislock.WithLease(r.lease))
	if u.one(10) && u.w.has("forever") {
		r.lease = wire.Never
		r.options = append(r.options, redislock.WithoutExpiry())
	}
	if !r.renews {
		r.options = append(r.options, redislock.WithoutRenewal())
	}
	if u.one(8) {
		r.maxHold = pick(u, 3*time.Millisecond, 20*time.Millisecond, time.Second, 5*time.Second, 20*time.Second)
		r.options = append(r.options, redislock.WithMaxHold(r.maxHold))
	}
	if u.one(15) || r.maxHold < wire.Never && u.one(3) {
		r.replicas = 1
		r.options = append(r.options, redislock.WithReplicas(1, pick(u, 2*time.Millisecond, time.Second)))
	}
	if u.w.shares && !u.one(3) {
		r.together = append(r.together, pick(u, redislock.WithShared(), redislock.WithShared(), redislock.WithHolders(2), redislock.WithHolders(3)))
		r.options = append(r.options, r.together...)
	}
	u.wants = r
	ctx := context.WithValue(u.p.ctx, toldKey{}, u.told)
	switch u.rnd.IntN(6) {
	case 0:
		return context.WithTimeout(ctx, u.some(20*time.Second))
	case 1:
		return context.WithTimeout(ctx, u.some(200*time.Millisecond))
	case 2:
		u.wants.options = append(u.wants.options, redislock.WithWait(u.some(pick(u, time.Second, 20*time.Second))))
	}
	return context.WithCancel(ctx)
}

// waits notes that a call waits, until the function that it returns is called. With replicas it may also
// be about to release what it got.
func (u *user) waits() (over func()) {
	if u.wants.replicas > 0 {
		return func() {}
	}
	add := func(n int) {
		u.w.mu.Lock()
		defer u.w.mu.Unlock()
		u.p.waiting += n
	}
	add(1)
	return func() { add(-1) }
}

// acquire takes a lock, and gives it back, or not.
func (u *user) acquire(try bool) {
	ctx, cancel := u.request()
	defer cancel()
	start := time.Now()
	over := u.waits()
	var lock *redislock.Lock
	var err error
	if try {
		lock, err = u.p.locker.TryAcquire(ctx, u.lock.name, u.wants.options...)
	} else {
		lock, err = u.p.locker.Acquire(ctx, u.lock.name, u.wants.options...)
	}
	over()
	if err != nil {
		u.refused(err, start, try)
		return
	}
	h := u.hold(lock, false)
	u.work(h)
	switch {
	case u.p.ctx.Err() != nil: // killed
	case u.one(12) && u.wants.lease != wire.Never && (u.wants.maxHold != wire.Never || !u.wants.renews):
		<-lock.Context().Done()
		u.excuse(h)
	case u.one(15):
		lock.Detach()
		u.excuse(h)
	default:
		u.release(h)
	}
	u.done(h)
}

// do is the same with Do.
func (u *user) do() {
	ctx, cancel := u.request()
	defer cancel()
	start := time.Now()
	var h *hold
	var until time.Time
	failed := pick(u, nil, nil, errWork)
	err := u.p.locker.Do(ctx, u.lock.name, func(_ context.Context, lock *redislock.Lock) error {
		h = u.hold(lock, true)
		u.work(h)
		if u.one(15) && u.p.ctx.Err() == nil {
			u.release(h)
		}
		u.w.mu.Lock()
		h.wait.working = nil
		u.w.mu.Unlock()
		until = time.Now()
		return failed
	}, u.wants.options...)
	if h == nil {
		u.refused(err, start, false)
		return
	}
	u.w.mu.Lock()
	lost := errors.Is(context.Cause(h.Context()), redislock.ErrLost)
	switch {
	case u.p.ctx.Err() != nil:
	case failed != nil && !errors.Is(err, failed):
		u.w.fail(verdicts, "Do of %s returns %v, and not what fn returned", h.Token(), err)
	case lost && !errors.Is(err, redislock.ErrLost):
		u.w.fail(verdicts, "Do of %s returns %v, but its Context ended with %v", h.Token(), err, context.Cause(h.Context()))
	case err == nil && h.wait.heldUntil.Before(until) && !h.given && u.w.isCurrent(h):
		u.w.fail(verdicts, "Do of %s returns nil, but the lock was held until %v before", h.Token(), until.Sub(h.wait.heldUntil))
	}
	u.w.mu.Unlock()
	if errors.Is(err, redislock.ErrUnavailable) || err != nil && !errors.Is(err, errWork) {
		u.excuse(h) // perhaps it could not be given back
	}
	u.done(h)
}

// relay passes a lock on to another process by its token. And somebody who gives up with that token must
// not take the lock away.
func (u *user) relay() {
	ctx, cancel := u.request()
	defer cancel()
	u.wants.maxHold, u.wants.renews, u.wants.replicas = wire.Never, true, 0
	lease := pick(u, time.Second, 5*time.Second, 10*time.Second)
	u.wants.lease = lease
	token := fmt.Sprintf("relay-%s-%d", u.name, u.rnd.Uint64())
	options := append([]redislock.Option{redislock.WithLease(lease), redislock.WithToken(token)}, u.wants.together...)
	u.told.own = true
	start := time.Now()
	lock, err := u.p.locker.Acquire(ctx, u.lock.name, options...)
	if err != nil {
		u.refused(err, start, false)
		return
	}
	h := u.hold(lock, false)
	u.w.mu.Lock()
	other := u.w.slots[(u.slot+1)%slots]
	u.w.mu.Unlock()
	gaveUp := false
	for range u.rnd.IntN(4) {
		u.w.sleep(u.some(2 * time.Second))
		joined := &told{p: other, user: u.name, own: true}
		joining, end := context.WithTimeout(context.WithValue(other.ctx, toldKey{}, joined), u.some(pick(u, 10*time.Millisecond, time.Second)))
		if twin, err := other.locker.Acquire(joining, u.lock.name, options...); err == nil {
			twin.Detach()
		} else {
			gaveUp = true
		}
		end()
		u.w.mu.Lock()
		u.leave(joined)
		u.w.mu.Unlock()
	}
	// A token is not used again after a wait with it was given up: what undoes that may arrive late.
	if gaveUp || u.one(2) || u.p.ctx.Err() != nil {
		if u.p.ctx.Err() == nil {
			u.release(h)
		}
		u.done(h)
		return
	}
	lock.Detach()
	u.excuse(h)
	u.done(h)
	if !errors.Is(context.Cause(lock.Context()), context.Canceled) {
		return // it was lost, or Close gives it back
	}
	u.p = other
	u.told = &told{p: other, user: u.name, own: true}
	ctx, cancel = context.WithTimeout(context.WithValue(other.ctx, toldKey{}, u.told), time.Minute)
	defer cancel()
	start = time.Now()
	if lock, err = other.locker.Acquire(ctx, u.lock.name, options...); err != nil {
		u.refused(err, start, false)
		return
	}
	h = u.hold(lock, false)
	u.work(h)
	if u.p.ctx.Err() == nil {
		u.release(h)
	}
	u.done(h)
}

// hold has the judges watch a lock.
func (u *user) hold(lock *redislock.Lock, inDo bool) *hold {
	w := u.w
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &hold{
		Lock: lock, p: u.p, lock: u.lock, wait: u.told.wait, told: u.told, since: time.Now(),
		short: min(u.wants.lease, u.wants.maxHold, 2*time.Second), long: min(u.wants.lease, u.wants.maxHold), renews: u.wants.renews,
		limited: u.wants.maxHold != wire.Never,
	}
	if h.long == wire.Never {
		h.long, h.endless = 0, true
	}
	if inDo {
		h.wait.working = h
	}
	w.notes("%s has %s, fence %d", u.name, lock.Token(), lock.Fence())
	u.lock.holds[h] = true
	context.AfterFunc(lock.Context(), func() {
		w.steps.Add(1)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.notes("the Context of %s ends: %v", lock.Token(), context.Cause(lock.Context()))
		w.judgeEnd(h)
		delete(u.lock.holds, h)
	})
	w.tick()
	w.check(u.lock)
	return h
}

// work is what somebody does with a lock.
func (u *user) work(h *hold) {
	heeds := !u.one(4)
	for range u.rnd.IntN(4) {
		pause := time.After(u.some(pick(u, 20*time.Millisecond, 300*time.Millisecond, 3*time.Second, 12*time.Second)))
		ended := h.Context().Done()
		if !heeds {
			ended = nil
		}
		select {
		case <-pause:
		case <-ended:
			return
		case <-h.p.ctx.Done():
			return
		}
		if u.one(3) {
			u.extend(h, false)
		}
	}
}

func (u *user) extend(h *hold, mustFail bool) {
	lease := u.w.leases[u.rnd.IntN(len(u.w.leases))]
	if h.wait.own {
		lease = u.wants.lease // all who have the token ask for the same
	}
	u.w.steps.Add(1)
	u.w.mu.Lock()
	h.short, h.long, h.endless = min(h.short, lease), max(h.long, lease), false
	u.w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithValue(h.p.ctx, toldKey{}, h.told), u.some(pick(u, 5*time.Millisecond, 200*time.Millisecond, 5*time.Second)))
	defer cancel()
	ended := errors.Is(context.Cause(h.Context()), redislock.ErrLost)
	err := h.Extend(ctx, lease)
	u.w.note("%s extended %s by %v: %v", u.name, h.Token(), lease, err)
	switch {
	case err == nil && (ended || mustFail):
		u.w.failure(verdicts, "Extend of %s returns nil, but its Context had ended", h.Token())
	case err == nil, errors.Is(err, redislock.ErrNotHeld), errors.Is(err, redislock.ErrUnavailable), ctx.Err() != nil:
	default:
		u.expected(err, "Extend")
	}
}

func (u *user) release(h *hold) {
	w := u.w
	w.steps.Add(1)
	w.mu.Lock()
	h.given, h.told.given = true, time.Now()
	sure := h.Context().Err() == nil && w.isCurrent(h) && !h.wait.own
	deadline, finite := h.Deadline()
	w.mu.Unlock()
	start := time.Now()
	err := h.Release(context.WithoutCancel(h.p.ctx))
	w.mu.Lock()
	w.notes("%s released %s: %v", u.name, h.Token(), err)
	switch {
	case h.p.ctx.Err() != nil:
	case h.Context().Err() == nil:
		w.fail(verdicts, "Release of %s returned %v, and its Context lives", h.Token(), err)
	case err == nil && h.wait.heldUntil.Before(start) && w.isCurrent(h) && !h.p.closing:
		w.fail(verdicts, "Release of %s returns nil, but the lock was held until %v before", h.Token(), start.Sub(h.wait.heldUntil))
	case errors.Is(err, redislock.ErrNotHeld) && sure && w.isCurrent(h) && !h.wait.released.Before(start) && (!finite || h.wait.released.Before(deadline)):
		w.fail(verdicts, "Release of %s returns %v, but this released it", h.Token(), err)
	}
	w.mu.Unlock()
	if err != nil && !errors.Is(err, redislock.ErrNotHeld) {
		u.excuse(h)
	}
	if u.one(4) && h.p.ctx.Err() == nil {
		u.extend(h, true)
	}
}

// excuse is for a lock that its user leaves to its lease.
func (u *user) excuse(h *hold) {
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	h.wait.excused = true
}

func (u *user) done(h *hold) {
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	u.leave(h.told)
}

// leave needs mu.
func (u *user) leave(t *told) {
	if t.wait != nil {
		t.wait.users--
		t.wait.over = time.Now()
	}
}

// refused judges the error of a wait.
func (u *user) refused(err error, start time.Time, try bool) {
	w := u.w
	w.mu.Lock()
	w.notes("%s does not get %s after %v: %v", u.name, u.lock.name, time.Since(start), err)
	t := u.told
	busy, unavailable := errors.Is(err, redislock.ErrNotAcquired), errors.Is(err, redislock.ErrUnavailable)
	switch {
	case u.p.ctx.Err() != nil:
	case busy && t.busyAt.IsZero():
		w.fail(verdicts, "%v, but nobody said so", err)
	case !busy && unavailable && !t.busyAt.IsZero() && time.Since(t.busyAt) > 300*time.Millisecond && !try && u.wants.replicas == 0: // it waits 250 ms to have left
		w.fail(verdicts, "%v, but it is busy", err)
	}
	u.leave(t)
	w.mu.Unlock()
	if !busy && !unavailable {
		u.expected(err, "Acquire")
	}
}

// expected is for all other errors.
func (u *user) expected(err error, call string) {
	w := u.w
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case u.p.ctx.Err() != nil:
	case errors.Is(err, redislock.ErrClosed) && u.p.closing:
	case errors.Is(err, errFatal) && u.told.fatal:
	case errors.Is(err, redislock.ErrNotReplicated) && u.wants.replicas > 0:
	case errors.Is(err, redislock.ErrLost) && u.wants.replicas > 0:
	case errors.Is(err, redislock.ErrLost) && u.told.slow > min(u.wants.lease, u.wants.maxHold, 2*time.Second)/4:
	default:
		w.fail(verdicts, "%s returns %v", call, err)
	}
}
