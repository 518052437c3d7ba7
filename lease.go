package redislock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// claimAfter is when a handed-over lock is confirmed. Whoever works less than this is spared it.
const claimAfter = 500 * time.Millisecond

// Lock is the proof that a lock was taken. Its methods are safe for concurrent use.
type Lock struct {
	locker *Locker
	keys   keys
	token  string
	fence  int64
	renew  bool
	// comesBack: a failover could put it into the queue again.
	comesBack bool
	endBy     time.Time       // of WithMaxHold; zero: no limit
	ctx       context.Context // of the holder
	end       context.CancelCauseFunc
	calls     context.Context // the values of Acquire's ctx, for the calls that keep the lease
	watch     *watch          // nil: nobody observes

	releasing sync.Mutex    // one Release at a time
	extending chan struct{} // holds one element while lock_extend is under way: one at a time
	mu        sync.Mutex
	state     lockState
	unsure    bool          // a release was sent in time and its reply is lost
	lease     time.Duration // to renew for; 0: never expires
	short     bool          // handed over, and not confirmed
	deadline  time.Time     // zero: never expires
	timer     *time.Timer   // runs tend when something is to be done about the lease
	abort     context.CancelFunc
}

type lockState int

const (
	held lockState = iota
	lost
	released
)

func newLock(ctx context.Context, l *Locker, r *request, g grant) *Lock {
	lock := &Lock{
		locker:    l,
		keys:      r.keys,
		token:     r.token,
		fence:     g.fence,
		renew:     r.renew,
		comesBack: g.queued && !r.ownToken,
		extending: make(chan struct{}, 1),
		lease:     r.lease,
		short:     g.short,
		deadline:  g.deadline,
		calls:     context.WithoutCancel(ctx),
	}
	if r.maxHold > 0 {
		lock.endBy = g.at.Add(r.maxHold)
		if lock.deadline.IsZero() || lock.endBy.Before(lock.deadline) {
			lock.deadline = lock.endBy
		}
	}
	lock.ctx, lock.end = context.WithCancelCause(lock.calls)
	return lock
}

// Name returns the name of the lock.
func (l *Lock) Name() string { return l.keys.name }

// Token returns what Redis knows the holder by. Whoever has it can go on with the lock, see
// WithToken.
func (l *Lock) Token() string { return l.token }

// Fence returns the fencing token: a number that is greater for each grant of this name. Send it
// with every write to what the lock protects, and have older ones refused there: then a holder
// that lost the lock without noticing (it was stopped, say) can do no harm.
func (l *Lock) Fence() int64 { return l.fence }

// Context returns a context that ends when the lock is released, or may be lost: then its
// context.Cause is ErrLost. It carries the values of Acquire's ctx but does not end with it, unless
// in Do. It ends before the server can give the lock to somebody else, as long as this process runs
// and the server's clock is not put forward; after a Reset or the loss of the key, at the next renewal.
func (l *Lock) Context() context.Context { return l.ctx }

// Deadline returns until when the lock is surely held, by this machine's monotonic clock; false if
// it never expires. Renewal moves it. It is never later than the end of the lease on the server, unless
// that one's clock is put forward meanwhile.
func (l *Lock) Deadline() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline, !l.deadline.IsZero()
}

// Release gives the lock back and hands it to the next waiter. Context ends before. Only ctx's
// values count, not its end: if Redis does not answer, Release tries for up to 5 s and then returns
// that error; the lease runs out by itself, and Release can be called again.
//
// It returns nil if the lock was held until now, and ErrNotHeld if it had been lost or released: the
// sure sign of a loss, since Context ends with this call if it had not noticed before.
func (l *Lock) Release(ctx context.Context) (err error) {
	l.releasing.Lock()
	defer l.releasing.Unlock()
	l.mu.Lock()
	if l.state == released {
		l.mu.Unlock()
		return l.wrap("release", ErrNotHeld)
	}
	l.stopTending()
	if l.watch.claim() {
		defer func() { l.watch.released(err) }()
	}
	l.mu.Unlock()
	l.end(nil)

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	var reply int64
	err = retrying(ctx, func() (err error) {
		inTime := l.isLive()
		reply, err = l.locker.fn.release(ctx, l.keys, l.token)
		// The call may have been carried out although its reply is lost.
		if err != nil && code(err) == "" && inTime {
			l.unsure = true
		}
		return err
	})
	if err != nil {
		return l.wrap("release", fmt.Errorf("%w (it ends by itself with its lease)", err))
	}
	l.mu.Lock()
	l.state = released
	l.mu.Unlock()
	l.locker.drop(l)
	if reply == wasHeld || reply == notMine && l.unsure {
		return nil
	}
	return l.wrap("release", ErrNotHeld)
}

// Extend has the lease end this long from now; renewal goes on with it. At least 1 ms, rounded up
// to whole milliseconds, and cut short by WithMaxHold. It returns ErrNotHeld if the lock is lost or
// released; Context ends then. An error of Redis means that nothing has changed. After any other, it
// is not known which lease the server has: the shorter one counts, for Deadline and for renewal.
func (l *Lock) Extend(ctx context.Context, lease time.Duration) error {
	if lease < time.Millisecond {
		return l.wrap("extend", fmt.Errorf("a lease of %v: it must be at least 1ms", lease))
	}
	// Of two calls under way at once, it would not be known which one the server saw last.
	select {
	case l.extending <- struct{}{}:
		defer func() { <-l.extending }()
	case <-ctx.Done():
		return l.wrap("extend", ctx.Err())
	}
	if l.current() != held {
		return l.wrap("extend", ErrNotHeld)
	}
	sent := time.Now()
	asked, ok := l.cut(lease, sent)
	if !ok {
		return l.wrap("extend", ErrNotHeld)
	}
	restore := l.shorten(sent.Add(asked), lease)
	ok, err := l.locker.fn.extend(ctx, l.keys, l.token, asked)
	if err != nil {
		if code(err) != "" {
			restore()
		}
		return l.wrap("extend", err)
	}
	if !ok {
		l.lose()
		return l.wrap("extend", ErrNotHeld)
	}
	l.mu.Lock()
	l.lease = lease
	l.mu.Unlock()
	if !l.extended(sent, asked) {
		return l.wrap("extend", ErrNotHeld)
	}
	return nil
}

// shorten is for a call that may make the lease end sooner: from when it is sent until its reply
// is there, and for good if that gets lost, the sooner end counts.
func (l *Lock) shorten(end time.Time, lease time.Duration) (restore func()) {
	l.mu.Lock()
	defer l.keep()
	defer l.mu.Unlock()
	deadline, before := l.deadline, l.lease
	if l.deadline.IsZero() || end.Before(l.deadline) {
		l.deadline = end
	}
	if l.lease == 0 || lease < l.lease {
		l.lease = lease
	}
	return func() {
		l.mu.Lock()
		defer l.keep()
		defer l.mu.Unlock()
		l.deadline, l.lease = deadline, before
	}
}

func (l *Lock) wrap(op string, err error) error {
	return fmt.Errorf("redislock: %s %q: %w", op, l.keys.name, err)
}

func (l *Lock) current() lockState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

func (l *Lock) isLive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline.IsZero() || time.Now().Before(l.deadline)
}

// lose tells the holder, who may not hold the lock any more.
func (l *Lock) lose() {
	l.mu.Lock()
	tell := l.state == held && l.watch.claim()
	if l.state == held {
		l.state = lost
	}
	l.stopTending()
	l.mu.Unlock()
	l.end(ErrLost)
	l.locker.drop(l)
	if tell {
		l.watch.end(EventLost, ErrLost)
	}
}

func (l *Locker) drop(lock *Lock) {
	l.mu.Lock()
	delete(l.held, lock)
	l.mu.Unlock()
	if lock.comesBack {
		l.hub.over(lock.keys, lock.token)
	}
}

// stopTending needs l.mu.
func (l *Lock) stopTending() {
	if l.timer != nil {
		l.timer.Stop()
	}
	if l.abort != nil {
		l.abort()
	}
	l.renew, l.short = false, false
}

// keep has tend run when something is to be done about the lease: a third of it after it began; for
// one that was handed over, after claimAfter; at the latest when it ends.
func (l *Lock) keep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != held {
		return
	}
	left := time.Until(l.deadline)
	switch {
	case l.short:
		left = min(claimAfter, left/4)
	case l.deadline.IsZero():
		return
	case l.renewable():
		left = min(left, l.lease) - l.lease*2/3
	}
	left = max(left, 0)
	if l.timer == nil {
		l.timer = time.AfterFunc(left, l.tend)
	} else {
		l.timer.Reset(left)
	}
}

// renewable needs l.mu. The last lease before the maximum hold ends less than the rounding before it.
func (l *Lock) renewable() bool {
	return l.renew && (l.endBy.IsZero() || l.deadline.Add(time.Millisecond).Before(l.endBy))
}

// tend confirms or renews the lease, through any trouble until the lease is over.
func (l *Lock) tend() {
	if !l.locker.background() {
		return // Close releases the lock
	}
	defer l.locker.bg.Done()
	l.mu.Lock()
	if l.state != held {
		l.mu.Unlock()
		return
	}
	extend, deadline := l.short || l.renewable(), l.deadline
	ctx, cancel := context.WithDeadline(l.calls, deadline)
	l.abort = cancel
	l.mu.Unlock()
	defer cancel()

	switch {
	case !time.Now().Before(deadline):
		l.lose()
		return
	case !extend: // Extend was called since the timer was set
		l.keep()
		return
	}
	var retry backoff
	for {
		lease, done := l.renewOnce(ctx)
		if done {
			return
		}
		pause := retry.next()
		if lease > 0 {
			pause = min(pause, lease/10+time.Millisecond)
		}
		select {
		case <-time.After(pause):
			continue
		case <-ctx.Done():
		}
		break
	}
	<-ctx.Done()
	switch {
	case errors.Is(ctx.Err(), context.Canceled): // released
	case l.isLive(): // Extend came through
		l.keep()
	default:
		l.lose()
	}
}

// renewOnce returns the lease that it asked for, and whether nothing is left to be done.
func (l *Lock) renewOnce(ctx context.Context) (lease time.Duration, done bool) {
	select {
	case l.extending <- struct{}{}:
		defer func() { <-l.extending }()
	case <-ctx.Done():
		return 0, false
	}
	l.mu.Lock()
	lease, over := l.lease, l.state != held
	l.mu.Unlock()
	if over {
		return lease, true
	}
	sent := time.Now()
	asked, ok := l.cut(lease, sent)
	if !ok {
		return lease, false // the maximum hold ends before the lease
	}
	ok, err := l.locker.fn.extend(ctx, l.keys, l.token, asked)
	switch {
	case err != nil:
		return lease, false
	case !ok || !l.extended(sent, asked):
		l.lose()
	}
	return lease, true
}

// cut shortens a lease that would outlast the maximum hold. False: nothing is left of it.
func (l *Lock) cut(lease time.Duration, from time.Time) (time.Duration, bool) {
	if l.endBy.IsZero() {
		return lease, true
	}
	left := l.endBy.Sub(from).Truncate(time.Millisecond)
	if lease == 0 || left < lease {
		lease = left
	}
	return lease, lease > 0
}

// extended notes that the server has renewed the lease by a call that was sent then. False: the
// reply came too late.
func (l *Lock) extended(sent time.Time, lease time.Duration) bool {
	l.mu.Lock()
	l.short = false
	if lease == 0 {
		l.deadline = time.Time{}
	} else {
		l.deadline = sent.Add(lease)
	}
	live := l.state == held && (lease == 0 || time.Now().Before(l.deadline))
	l.mu.Unlock()
	l.keep()
	return live
}

// replicate confirms the lock on a connection of its own and waits until n replicas have it.
func (l *Lock) replicate(ctx context.Context, n int, timeout time.Duration) error {
	callCtx, cancel := context.WithTimeout(ctx, timeout+callTimeout)
	defer cancel()
	l.mu.Lock()
	lease := l.lease
	l.mu.Unlock()
	sent := time.Now()
	lease, _ = l.cut(lease, sent)
	// It is renewed meanwhile: the replicas may take longer than the lease.
	extended := func() { l.extended(sent, lease) }
	ok, acks, err := l.locker.fn.extendAndWait(callCtx, l.keys, l.token, lease, n, timeout, extended)
	switch {
	case err != nil && ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", ErrNotAcquired, ctx.Err())
	case err != nil:
	case !ok || l.current() != held || !l.isLive():
		err = ErrLost
	case acks < int64(n):
		err = fmt.Errorf("%w: %d of %d replicas confirmed it within %v", ErrNotReplicated, acks, n, timeout)
	default:
		return nil
	}
	err = l.wrap("acquire", err)
	if released := l.Release(ctx); released != nil && !errors.Is(released, ErrNotHeld) {
		err = errors.Join(err, released)
	}
	return err
}
