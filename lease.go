package redislock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// claimAfter is when a handed-over lock is confirmed. A holder that releases sooner saves this call.
const claimAfter = 500 * time.Millisecond

// Lock is the proof that a lock was taken. Its methods are safe for concurrent use.
type Lock struct {
	locker *Locker
	keys   keys
	token  string
	fence  int64
	// comesBack: a failover could put it into the queue again.
	comesBack bool
	endBy     time.Time       // of WithMaxHold; zero: no limit
	ctx       context.Context // of the holder
	end       context.CancelCauseFunc
	calls     context.Context // the values of Acquire's ctx, for the calls that keep the lease
	watch     *watch          // nil: nobody observes

	releasing sync.Mutex    // one Release at a time; the next two need it
	givenBack bool          // a release was answered
	replyLost bool          // a release was sent in time and got no answer
	extending chan struct{} // holds one element while lock_extend is under way: one at a time

	// mu is never held over a call to Redis or to the user's code, and ring waits for nothing else.
	mu      sync.Mutex
	state   lockState
	term    term          // written by setTerm alone
	doubt   time.Duration // the shortest lease of a call without an answer; 0: all were answered
	lease   time.Duration // to renew for; 0: never expires
	renew   bool
	short   bool        // handed over, and not confirmed
	alarm   *time.Timer // runs ring when Context has to end
	renewal *time.Timer // runs tend when the lease is to be confirmed or renewed
	tending bool        // tend is at it
	abort   context.CancelFunc
}

// lockState of a Lock. It leaves held once, and Context ends in that step: see leave.
type lockState int

const (
	held     lockState = iota
	lost               // the server may give the lock to somebody else, and the holder was told
	released           // Release was called before that, whatever came of it
)

func newLock(ctx context.Context, l *Locker, r *request, g grant) *Lock {
	lock := &Lock{
		locker:    l,
		keys:      r.keys,
		token:     r.token,
		fence:     g.fence,
		comesBack: g.queued && !r.ownToken,
		extending: make(chan struct{}, 1),
		calls:     context.WithoutCancel(ctx),
		term:      g.term.atMost(r.maxHold),
		doubt:     g.doubt,
		lease:     r.lease,
		renew:     r.renew,
		short:     g.short,
	}
	if r.maxHold > 0 {
		lock.endBy = g.term.from.Add(r.maxHold)
	}
	lock.ctx, lock.end = context.WithCancelCause(lock.calls)
	return lock
}

// start arms the timers of a new lock.
func (l *Lock) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == held { // else Close was faster
		l.setTerm(l.term)
		l.schedule()
	}
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
// in Do.
//
// It ends ahead of Deadline, by a tenth of the lease and 500 ms at most: stop in that time. A timer of
// its own ends it, so nothing that hangs (a call, the network, another goroutine, Options.Observe) can
// hold it up. So it ends before the server can give the lock to somebody else, even if this
// machine's clock runs slower than the server's, by less than this:
//
//	lease        5 s or less   10 s   1 min    2 min    16 min
//	slower by    10 %          5 %    0.8 %    0.4 %    0.05 %, the most by which NTP slews a clock
//
// Two things make it too late: a process or a machine that stands still, and a server's clock that is
// put forward. After a Reset or the loss of the key, it ends with the next renewal.
func (l *Lock) Context() context.Context { return l.ctx }

// Deadline returns until when the lock is surely held, by this machine's monotonic clock; false if
// it never expires. Renewal moves it. It is never later than the end of the lease on the server, unless
// that one's clock is put forward meanwhile (a failover to a server whose clock is ahead does that, too).
func (l *Lock) Deadline() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term.deadline(), l.term.lease != 0
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
	if l.givenBack {
		return l.wrap("release", errReleased)
	}
	l.mu.Lock()
	if l.leave(released, nil) {
		defer l.locker.bg.Done()
		defer func() { l.watch.released(err) }()
	}
	l.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	var reply int64
	err = retrying(ctx, func() (err error) {
		inTime := l.isRunning()
		reply, err = l.locker.fn.release(ctx, l.keys, l.token)
		// The call may have been carried out although its reply is lost.
		l.replyLost = l.replyLost || inTime && hasNoAnswer(err)
		return err
	})
	if err != nil {
		return l.wrap("release", fmt.Errorf("%w (it ends by itself with its lease)", err))
	}
	l.givenBack = true
	l.locker.drop(l)
	if reply == wasHeld || reply == notMine && l.replyLost {
		return nil
	}
	return l.wrap("release", ErrNotHeld)
}

// finish is the end of Do: Release, and the verdict on the whole time until then.
func (l *Lock) finish(ctx context.Context) error {
	failed := l.Release(ctx)
	if errors.Is(failed, errReleased) {
		failed = nil // by fn, or by Close
	}
	var why error
	switch {
	case l.current() == lost || errors.Is(failed, ErrNotHeld):
		why = ErrLost
	case l.locker.isClosed() && errors.Is(context.Cause(l.ctx), ErrClosed):
		why = ErrClosed
	default:
		return failed
	}
	if failed == nil {
		return l.wrap("do", fmt.Errorf("%w before the work was through", why))
	}
	return fmt.Errorf("%w: %w", failed, why)
}

// Extend has the lease end this long from now; renewal goes on with it. At least 1 ms, rounded up
// to whole milliseconds, and cut short by WithMaxHold. It returns ErrNotHeld if the lock is lost or
// released; Context ends then.
//
// An error of Redis means that nothing has changed. After any other error the call may have been
// carried out, or may still arrive: then the shorter lease counts, for renewal, for Deadline, and for
// each later Deadline of this lock, whatever longer lease is asked for.
func (l *Lock) Extend(ctx context.Context, lease time.Duration) error {
	if lease < time.Millisecond {
		return l.wrap("extend", fmt.Errorf("a lease of %v: it must be at least 1ms", lease))
	}
	if err := l.extend(ctx, lease); err != nil {
		return l.wrap("extend", err)
	}
	return nil
}

// extend has the server begin a new term. A lease below 0: the one to renew for.
func (l *Lock) extend(ctx context.Context, lease time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err() // nothing is sent
	}
	// Of two calls under way at once, nobody would know which one the server saw last.
	select {
	case l.extending <- struct{}{}:
		defer func() { <-l.extending }()
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	if lease < 0 {
		lease = l.lease
	}
	next, ok := l.nextTerm(lease)
	if !ok {
		l.mu.Unlock()
		return ErrNotHeld
	}
	before := l.term
	if next.endsBefore(before) {
		l.setTerm(next) // from now on the server may have it
	}
	l.mu.Unlock()
	ok, err := l.locker.fn.extend(ctx, l.keys, l.token, next.lease)
	l.mu.Lock()
	first := false
	switch {
	case l.state != held:
		err = ErrNotHeld
	case hasNoAnswer(err):
		l.doubt = shorter(l.doubt, next.lease)
		l.lease = shorter(l.lease, lease)
	case err != nil: // nothing has changed
		l.setTerm(before)
	case !ok || !l.confirmed(next):
		err = ErrNotHeld
		first = l.leave(lost, ErrLost)
	default:
		l.lease = lease
	}
	l.schedule()
	l.mu.Unlock()
	if first {
		l.tellLost()
	}
	return err
}

// nextTerm is what to ask for now. False: the lock is not held, or nothing is left of the maximum hold.
// It needs l.mu.
func (l *Lock) nextTerm(lease time.Duration) (term, bool) {
	next := term{from: time.Now(), lease: lease}
	if !l.endBy.IsZero() {
		left := l.endBy.Sub(next.from).Truncate(time.Millisecond)
		if left <= 0 {
			return next, false
		}
		next = next.atMost(left)
	}
	return next, l.state == held
}

// confirmed notes a term that the server has begun. False: its reply came too late. It needs l.mu.
func (l *Lock) confirmed(next term) bool {
	l.short = false
	next = next.atMost(l.doubt)
	l.setTerm(next)
	return next.isUsable(time.Now())
}

// setTerm is the only place that changes until when the lock is held, and Context with it. It needs
// l.mu, and a lock that is held. No term ends later than the server's:
//
//   - A term that the server has confirmed (lock_acquire, lock_extend) counts from before the call
//     was sent. Calls are made one at a time, so the server has seen no later one.
//   - A call that got no answer may still arrive and set its own lease. So l.doubt, the shortest of
//     these leases, limits all later terms.
//   - For the term of a signal, see waiter.handedOver.
//   - A term that ends sooner counts from before its call is sent. It is taken back only if Redis
//     refuses the call.
//
// Another process that extends with the same token (WithToken) is not seen here.
func (l *Lock) setTerm(t term) {
	l.term = t
	switch {
	case t.lease == 0:
		if l.alarm != nil {
			l.alarm.Stop()
		}
	case l.alarm == nil:
		l.alarm = time.AfterFunc(time.Until(t.notice()), l.ring)
	default:
		l.alarm.Reset(time.Until(t.notice()))
	}
}

// ring ends Context ahead of the deadline. It makes no call and waits for nothing but mu. The look at the
// time and the end of Context are one step, so no renewal comes in between.
func (l *Lock) ring() {
	l.mu.Lock()
	first := !l.term.isUsable(time.Now()) && l.leave(lost, ErrLost)
	l.mu.Unlock()
	if first {
		l.tellLost()
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

func (l *Lock) isRunning() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term.isRunning(time.Now())
}

// leave is the one end of a lock: nobody holds it any more, Context has ended, and no timer runs. It
// needs l.mu. It returns true once: that caller tells the observer, and then calls bg.Done, since Close
// waits for this lock.
func (l *Lock) leave(to lockState, cause error) (first bool) {
	if l.state != held {
		return false
	}
	l.state = to
	for _, timer := range []*time.Timer{l.alarm, l.renewal} {
		if timer != nil {
			timer.Stop()
		}
	}
	if l.abort != nil {
		l.abort()
	}
	l.end(cause)
	return true
}

// tellLost follows a leave as lost that returned true.
func (l *Lock) tellLost() {
	defer l.locker.bg.Done()
	l.locker.drop(l)
	l.watch.end(EventLost, ErrLost)
}

func (l *Locker) drop(lock *Lock) {
	l.mu.Lock()
	delete(l.held, lock)
	l.mu.Unlock()
	if lock.comesBack {
		l.hub.over(lock.keys, lock.token)
	}
}

// schedule has tend run when something is to be done about the lease: a third of it after it began; for
// one that was handed over, after claimAfter. It needs l.mu.
func (l *Lock) schedule() {
	if l.state != held || l.tending {
		return
	}
	var wait time.Duration
	switch {
	case l.short:
		wait = min(claimAfter, time.Until(l.term.deadline())/4)
	case l.isRenewable():
		wait = time.Until(l.term.from.Add(l.term.lease / 3))
	default:
		if l.renewal != nil {
			l.renewal.Stop()
		}
		return
	}
	if l.renewal == nil {
		l.renewal = time.AfterFunc(wait, l.tend)
	} else {
		l.renewal.Reset(wait)
	}
}

// isRenewable needs l.mu. The last lease before the maximum hold ends less than the rounding before it.
func (l *Lock) isRenewable() bool {
	return l.renew && l.term.lease > 0 &&
		(l.endBy.IsZero() || l.term.deadline().Add(time.Millisecond).Before(l.endBy))
}

// tend confirms or renews the lease, through any trouble, until that is done or Context has ended.
func (l *Lock) tend() {
	if !l.locker.background() {
		return // Close releases the lock
	}
	defer l.locker.bg.Done()
	l.mu.Lock()
	if l.state != held || l.tending || !l.short && !l.isRenewable() {
		l.mu.Unlock()
		return
	}
	l.tending = true
	pause := l.term.lease/10 + time.Millisecond
	ctx, cancel := context.WithDeadline(l.calls, l.term.notice())
	l.abort = cancel
	l.mu.Unlock()
	defer cancel()

	for retry := (backoff{}); ; {
		err := l.extend(ctx, -1)
		if err == nil || errors.Is(err, ErrNotHeld) || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(min(retry.next(), pause)):
		case <-ctx.Done():
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tending = false
	l.schedule() // the next; or again, if Extend came through meanwhile
}

// replicate confirms the lock on a connection of its own and waits until n replicas have it.
func (l *Lock) replicate(ctx context.Context, n int, timeout time.Duration) error {
	callCtx, cancel := context.WithTimeout(ctx, timeout+callTimeout)
	defer cancel()
	l.mu.Lock()
	next, ok := l.nextTerm(l.lease)
	l.mu.Unlock()
	var acks int64
	var err error
	if ok {
		ok, acks, err = l.locker.fn.extendAndWait(callCtx, l.keys, l.token, next.lease, n, timeout, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			// It is renewed meanwhile, as a connection and the replicas may take longer than the lease: a
			// later term stays.
			if l.state == held && !next.endsBefore(l.term) {
				l.confirmed(next)
				l.schedule()
			}
		})
	}
	state := l.current()
	switch {
	case err != nil && ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", ErrNotAcquired, ctx.Err())
	case err != nil:
	case state == released: // by Close
		err = ErrClosed
	case state == lost || !ok:
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
