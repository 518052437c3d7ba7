package redislock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// stage of a Lock. It leaves held once, in leave.
type stage int

const (
	held      stage = iota
	releasing       // Release was called, and Redis has not answered yet
	released        // Redis has answered
	lost            // the server may give the lock to somebody else, and Context has ended
)

// holding is the changing state of a Lock.
type holding struct {
	releases chan struct{} // has one element during a Release: one at a time
	extends  chan struct{} // has one element during a lock_extend: of two at once, the last one is unknown

	// Nobody holds mu during a call or the user's code, and ring waits for nothing else. See Locker for the order.
	mu        sync.Mutex
	stage     stage
	lease     lease
	alarm     *time.Timer        // runs ring when Context has to end
	renewal   *time.Timer        // runs keep to confirm or renew the lease; nil: not armed yet
	keeping   bool               // keep is running
	abort     context.CancelFunc // ends the call of keep
	replyLost bool               // a release was sent in time and got no answer
	verdict   error              // of the release that Redis answered
	unclaimed bool               // Close got the verdict: the first Release returns it
}

// errTaken is the ErrLost of a lock that the server no longer knows.
var errTaken = fmt.Errorf("%w: it was taken away, or its key is gone", ErrLost)

// errReleased is the ErrNotHeld of another Release after the verdict.
var errReleased = fmt.Errorf("%w: it was released before", ErrNotHeld)

func newLock(w *waiter) *Lock {
	lock := &Lock{
		locker:     w.l,
		keys:       w.keys,
		token:      w.token,
		fence:      w.grant.fence,
		inDo:       w.inDo,
		mayRequeue: w.grant.queued && !w.ownToken,
		calls:      context.WithoutCancel(w.caller),
		watch:      w.watch,
		holding: holding{
			releases: make(chan struct{}, 1),
			extends:  make(chan struct{}, 1),
			lease:    newLease(w.request, w.grant, time.Now()),
		},
	}
	lock.ctx, lock.end = context.WithCancelCause(lock.calls)
	return lock
}

// start arms the timers of a new lock.
func (l *Lock) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stage == held { // otherwise Close was faster
		l.alarm = time.AfterFunc(time.Until(l.lease.term.notice()), l.ring)
		l.setLease(l.lease)
		l.schedule()
	}
}

// setLease changes until when the lock is held, and moves the end of Context with it. Nothing else does.
// It needs mu.
func (l *Lock) setLease(next lease) {
	l.lease = next
	switch {
	case l.stage != held || l.alarm == nil:
	case next.term.length == wire.Never:
		l.alarm.Stop()
	default:
		l.alarm.Reset(time.Until(next.term.notice()))
	}
}

// ring ends Context ahead of the deadline. It makes no call and waits only for mu. It looks at the time and
// ends Context in one step, so no renewal comes in between.
func (l *Lock) ring() {
	l.mu.Lock()
	cause := l.lease.ending()
	first := !l.lease.term.isUsable(time.Now()) && l.leave(lost, cause)
	l.mu.Unlock()
	if first {
		l.left(EventLost, cause, l.current().term.deadline())
	}
}

// leave ends a lock: it stops the timers, ends Context, and makes the Locker forget the lock. It needs mu.
// It returns true once. That caller must call left, without mu.
func (l *Lock) leave(to stage, cause error) (first bool) {
	if l.stage != held {
		return false
	}
	l.stage = to
	l.rest()
	if l.alarm != nil {
		l.alarm.Stop()
	}
	l.end(cause)
	l.locker.forget(l)
	return true
}

// left reports the end of the lock, and Close no longer waits for it.
//
// A signal for the lock that comes before ended is ignored. Otherwise it would make us give the lock back
// while a holder that was told of its loss still stops, while another process goes on after Detach, or
// during a minimum hold.
func (l *Lock) left(kind EventKind, err error, ended time.Time) {
	defer l.locker.bg.Done()
	if keep := l.current().keepUntil; keep.After(ended) {
		ended = keep
	}
	if l.mayRequeue {
		l.locker.hub.remember(l.keys, l.token, ended)
	}
	l.watch.tell(Event{Kind: kind, Fence: l.fence, Err: err})
}

// rest stops the renewal. It needs mu.
func (l *Lock) rest() {
	if l.renewal != nil {
		l.renewal.Stop()
	}
	if l.abort != nil {
		l.abort()
	}
}

// close is Close for one lock. Do releases its own lock when fn has returned: nobody else gets it before.
func (l *Lock) close() {
	l.end(ErrClosed)
	l.mu.Lock()
	l.rest()
	l.mu.Unlock()
	if !l.inDo {
		_ = l.giveBack(context.Background(), true) // the lease ends a lock that cannot be released
	}
}

// giveBack is Release. After a giveBack by Close, the user's first Release returns the same.
func (l *Lock) giveBack(ctx context.Context, byClose bool) (err error) {
	l.releases <- struct{}{}
	defer func() { <-l.releases }()
	l.mu.Lock()
	if l.stage == released {
		err = l.wrap("release", errReleased)
		if l.unclaimed && !byClose {
			err, l.unclaimed = l.verdict, false
		}
		l.mu.Unlock()
		return err
	}
	first := l.leave(releasing, nil)
	l.mu.Unlock()

	err = l.release(ctx)
	if first {
		kind := EventReleased
		if errors.Is(err, ErrNotHeld) {
			kind = EventLost
		}
		l.left(kind, err, time.Now())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil || errors.Is(err, ErrNotHeld) {
		l.stage, l.verdict, l.unclaimed = released, err, byClose
	}
	return err
}

// abandon is Release for a lock that the caller does not get. It ignores the minimum hold.
func (l *Lock) abandon(ctx context.Context) error {
	l.mu.Lock()
	l.lease.keepUntil = time.Time{}
	l.mu.Unlock()
	return l.Release(ctx)
}

// release tells the server, and retries within callTimeout. During a minimum hold it makes the lease end
// with that.
func (l *Lock) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	var held bool
	err := retrying(ctx, func() (err error) {
		now, lease := time.Now(), l.current()
		inTime := now.Before(lease.term.deadline())
		if left := lease.toKeep(now); left > 0 {
			var reply wire.Extended
			reply, err = l.locker.server.Extend(ctx, l.keys, l.token, left)
			held = reply.Held
		} else {
			var reply wire.Released
			reply, err = l.locker.server.Release(ctx, l.keys, l.token)
			held = reply == wire.WasHeld
		}
		// Redis may have carried the call out although its reply is lost.
		l.replyLost = l.replyLost || inTime && wire.MayArrive(err)
		return err
	})
	switch {
	case err != nil:
		return l.wrap("release", fmt.Errorf("%w (it ends by itself with its lease)", err))
	case held, l.replyLost:
		return nil
	}
	return l.wrap("release", ErrNotHeld)
}

// finish is the end of Do: Release, and the verdict on the whole time until then.
func (l *Lock) finish(ctx context.Context) error {
	failed := l.Release(ctx)
	if errors.Is(failed, errReleased) {
		failed = nil // fn has released it
	}
	cause := context.Cause(l.ctx)
	var why []error
	if errors.Is(cause, ErrClosed) {
		why = append(why, ErrClosed)
	}
	if errors.Is(cause, ErrLost) {
		why = append(why, cause)
	} else if errors.Is(failed, ErrNotHeld) {
		why = append(why, ErrLost)
	}
	if len(why) == 0 {
		return failed
	}
	if failed == nil {
		return l.wrap("do", fmt.Errorf("before the work was through: %w", join(why...)))
	}
	return join(append([]error{failed}, why...)...)
}

// extend makes the server begin a new term. A negative length stands for lease.length.
func (l *Lock) extend(ctx context.Context, length time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err() // nothing is sent
	}
	select {
	case l.extends <- struct{}{}:
		defer func() { <-l.extends }()
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	before := l.lease
	if length < 0 {
		length = before.length
	}
	next, ok := before.ask(time.Now(), length)
	if !ok || l.stage != held {
		l.mu.Unlock()
		return ErrNotHeld
	}
	l.setLease(before.asked(next))
	l.mu.Unlock()

	reply, err := l.locker.server.Extend(ctx, l.keys, l.token, next.length)
	l.mu.Lock()
	var cause error
	if l.stage == held {
		cause = l.extended(before, next, length, reply, err)
	}
	first := cause != nil && l.leave(lost, cause)
	if l.stage != held {
		err = ErrNotHeld
	}
	l.schedule()
	l.mu.Unlock()
	if first {
		l.left(EventLost, cause, l.current().term.deadline())
	}
	return err
}

// extended notes the result of extend's call. It returns why the lock is lost, or nil. It needs mu.
func (l *Lock) extended(before lease, next term, length time.Duration, reply wire.Extended, err error) error {
	switch {
	case wire.MayArrive(err):
		l.setLease(l.lease.unanswered(next, length))
	case err != nil: // nothing has changed
		l.setLease(before)
	case !reply.Held:
		return errTaken
	default:
		confirmed := l.lease.confirmed(term{reply.Sent, next.length})
		confirmed.length = length
		l.setLease(confirmed)
		if !confirmed.term.isUsable(time.Now()) { // the reply came too late
			return confirmed.ending()
		}
	}
	return nil
}

// schedule makes keep run when the lease is to be confirmed or renewed. It needs mu.
func (l *Lock) schedule() {
	at, ok := l.lease.next(time.Now())
	switch {
	case l.stage != held || l.keeping:
	case !ok:
		l.rest()
	case l.renewal == nil:
		l.renewal = time.AfterFunc(time.Until(at), l.keep)
	default:
		l.renewal.Reset(time.Until(at))
	}
}

// keep confirms or renews the lease. It retries until that succeeds or Context has ended.
func (l *Lock) keep() {
	if !l.locker.background() {
		return // Close releases the lock
	}
	defer l.locker.bg.Done()
	l.mu.Lock()
	if _, ok := l.lease.next(time.Now()); l.stage != held || l.keeping || !ok {
		l.mu.Unlock()
		return
	}
	l.keeping = true
	pause := l.lease.term.length/10 + time.Millisecond
	ctx, cancel := context.WithDeadline(l.calls, l.lease.term.notice())
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
	l.keeping = false
	l.schedule() // the next renewal, or again if Extend succeeded meanwhile
}

// replicate confirms the lock on a connection of its own and waits for n replicas. If that fails, it
// releases the lock.
func (l *Lock) replicate(ctx context.Context, n int, timeout time.Duration) error {
	err := l.replicated(ctx, n, timeout)
	if err == nil {
		return nil
	}
	err = l.wrap("acquire", err)
	if released := l.abandon(ctx); released != nil && !errors.Is(released, ErrNotHeld) {
		err = join(err, released)
	}
	return err
}

func (l *Lock) replicated(ctx context.Context, n int, timeout time.Duration) error {
	l.mu.Lock()
	lease := l.lease
	next, ok := lease.ask(time.Now(), lease.length)
	if ok {
		l.setLease(lease.asked(next))
	}
	l.mu.Unlock()
	if !ok {
		return lease.ending()
	}
	callCtx, cancel := context.WithTimeout(ctx, timeout+callTimeout)
	defer cancel()
	acks, err := l.locker.server.ExtendAndWait(callCtx, l.keys, l.token, next.length, n, timeout, func(reply wire.Extended) {
		l.replicating(term{reply.Sent, next.length}, reply.Held)
	})
	switch cause := context.Cause(l.ctx); {
	case cause != nil:
		return cause
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	case err != nil:
		return err
	case acks < n:
		return fmt.Errorf("%w: %d of %d replicas confirmed it within %v", ErrNotReplicated, acks, n, timeout)
	}
	return nil
}

// replicating notes the answer to the first half of ExtendAndWait.
func (l *Lock) replicating(t term, holds bool) {
	l.mu.Lock()
	first := !holds && l.leave(lost, errTaken)
	// The replicas may take longer than the lease, so keep renews it meanwhile. A term that was asked for
	// later stays, even if it ends sooner (with the maximum hold).
	if l.stage == held && !t.from.Before(l.lease.term.from) {
		l.setLease(l.lease.confirmed(t))
		l.schedule()
	}
	l.mu.Unlock()
	if first {
		l.left(EventLost, errTaken, time.Now())
	}
}

func (l *Lock) current() lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lease
}

func (l *Lock) wrap(op string, err error) error { return wrap(op, l.keys.Name, err) }
