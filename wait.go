package redislock

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

const (
	// callTimeout limits the calls after the end of the caller's ctx: to release a lock, to leave a queue.
	callTimeout = 5 * time.Second
	// foremostCheckIn is how often this Locker's first waiter for a lock calls at least. So a dead waiter
	// in front of it costs at most this plus handedLease: the 3 s of docs/guarantees.md. With more than
	// manyLocks contended locks it is crowdCheckIn, still less than a handed-over lease.
	foremostCheckIn = time.Second
	crowdCheckIn    = 1500 * time.Millisecond
	manyLocks       = 100
	// The server keeps a place for max(Options.WaitTTL, placePerWaiter * this Locker's waiters for the
	// lock). A waiter calls every third of that, so a crowd calls about 40 times a second, its front a few
	// times more. If the crowd dies, nobody waits that long: the server sees their unread signals.
	placePerWaiter = 75 * time.Millisecond
	// undoWait limits how long a call waits until its place is given up, while Redis answers. Then the
	// background goes on.
	undoWait = time.Second
	// maxLateGrants is how many grants may arrive too late before the wait fails: the network is too slow
	// for the lease.
	maxLateGrants = 3
	// tryCalls is how often a try is sent while Redis is in trouble.
	tryCalls = 3
)

// grant is a lock that this wait has just got.
type grant struct {
	fence       int64
	term        term
	doubt       time.Duration // the lease of a call without an answer, which may still arrive; wire.Never: none
	unconfirmed bool          // handed over with a short lease: confirm it
	queued      bool          // the lock was not free
	ours        bool          // given to this wait, not to an earlier one with the same token
}

// waiter is one call of Acquire or TryAcquire. The caller sleeps until it is over. The goroutine that has
// news (a reply, a signal, a timer) takes the next step, under hub.mu. So the waiting goroutine keeps a
// minimal stack, which counts when many wait.
type waiter struct {
	*request
	l       *Locker
	caller  context.Context // the caller's ctx
	ctx     context.Context // ends with caller or WithWait
	inDo    bool
	ended   chan struct{} // closed when over: then there is an err or a grant
	grant   grant
	err     error
	began   time.Time // the call of Acquire or Do
	watch   *watch
	counted bool // Close waits for it

	// The rest needs hub.mu.
	ready   bool          // the first call may be sent
	over    bool          // only leaving remains
	calling chan struct{} // closed when the call under way is answered; nil: none is under way
	sent    time.Time     // just before the last call
	asked   int           // number of calls
	kept    time.Duration // how long the server keeps the place after a call; 0: a try
	due     time.Time     // of the next call, unless the foremost waiter calls sooner
	timer   *time.Timer
	told    *wire.Signal // arrived during a call; the reply counts first
	clock   serverClock  // known once the server has queued us
	busy    bool         // the server has said that somebody holds the lock or waits for it
	trouble error        // why the last call was not answered
	// unanswered: a call got no answer, so it may still arrive.
	unanswered bool
	retry      backoff
	slow       time.Duration // how long the last answer took
	late       int           // grants that had run out when they arrived
	heard      string        // the signal list in which we are registered
	line       *line         // this Locker's waiters for the same lock
	place      *list.Element
	next       *waiter // with the same token
	leaving    *leaver // gives up the place or the lock
}

// obtain takes the lock, or waits for it.
func (l *Locker) obtain(ctx context.Context, name string, r *request, inDo bool) (*Lock, error) {
	w := &waiter{request: r, l: l, caller: ctx, ctx: ctx, inDo: inDo, began: time.Now(), ended: make(chan struct{})}
	if r.limited && !r.try() {
		var cancel context.CancelFunc
		w.ctx, cancel = context.WithTimeout(ctx, r.limit)
		defer cancel()
	}
	// A call under way cannot be abandoned: on another connection, the call that undoes it could overtake
	// it. So if ctx can end, another goroutine makes the call. If we probably have to wait, this also keeps
	// our stack small.
	if w.ctx.Done() == nil && l.hub.isIdle() {
		w.begin(name)
	} else {
		go w.begin(name)
	}
	select {
	case <-w.ended:
	case <-w.ctx.Done():
		w.quit()
	}
	return w.result()
}

// begin completes the request and makes the first call.
func (w *waiter) begin(name string) {
	h := w.l.hub
	err := w.complete(w.l.opts.Prefix, name)
	if err == nil && !w.l.background() {
		err = w.wrap(ErrClosed)
	}
	if err != nil {
		w.err = err
		close(w.ended)
		return
	}
	w.counted = true
	w.watch = w.l.watch(w.caller, w.request, w.began)
	if w.ownToken {
		w.l.leavers.awaitEarlier(w.ctx, w.token)
	}
	h.mu.Lock()
	switch {
	case w.ctx.Err() != nil:
		w.end(w.unserved())
	case h.closed:
		w.end(w.wrap(ErrClosed))
	default:
		w.ready = true
		h.add(w)
	}
	h.mu.Unlock()
	w.call()
}

// call makes one lock_acquire, unless one is under way or the wait is over. The caller must not hold hub.mu.
func (w *waiter) call() {
	h := w.l.hub
	h.mu.Lock()
	if w.over || w.calling != nil {
		h.mu.Unlock()
		return
	}
	w.calling, w.sent = make(chan struct{}), time.Now()
	w.asked++
	if !w.try() {
		w.kept = min(max(w.l.opts.WaitTTL, time.Duration(w.line.waiters.Len())*placePerWaiter), maxWaitTTL)
	}
	kept := w.kept
	h.mu.Unlock()

	reply, err := w.l.server.Acquire(context.WithoutCancel(w.ctx), w.keys, w.token, w.firstLease(), kept, w.holders)

	h.mu.Lock()
	defer h.mu.Unlock()
	close(w.calling)
	w.calling = nil
	w.unanswered = w.unanswered || wire.MayArrive(err)
	w.busy = w.busy || err == nil && !reply.Held
	if w.leaving != nil {
		w.leaving.ours = w.leaving.ours || err == nil && w.isOurs(reply)
		w.l.leavers.add(w.leaving)
	}
	if !w.over {
		w.answered(reply, err)
	}
}

// isOurs tells whether a grant is for this wait. With WithToken, another process may have held the lock
// before. A fencing token is the time of its grant in microseconds.
func (w *waiter) isOurs(reply wire.Acquired) bool {
	return !w.ownToken || w.clock.now != 0 || reply.Fence/1000 == reply.Now
}

// answered acts on a reply, then on a signal that came during the call. This method and the following ones
// need hub.mu.
func (w *waiter) answered(reply wire.Acquired, err error) {
	told := w.told
	w.told = nil
	switch {
	case err == nil:
		w.replied(reply)
	case !wire.Passes(err) || w.try() && w.asked == tryCalls:
		w.undo(w.wrap(err))
	default:
		w.trouble = err
		w.l.hub.report(w)
		w.callAt(time.Now().Add(w.retry.next()))
	}
	if told != nil && !reply.Held { // else the signal was for this grant, or an older one
		w.tell(*told)
	}
}

func (w *waiter) replied(reply wire.Acquired) {
	now := time.Now()
	w.slow = now.Sub(reply.Sent)
	clock := serverClock{now: reply.Now, at: reply.Sent, by: now}
	if w.line != nil { // the signals that follow need it also if a grant came too late
		w.line.clock = w.line.clock.newer(clock)
	}
	switch {
	case reply.Held:
		// After a second call we were queued, if only by a call whose answer was lost. The lease counts from
		// before the call was sent, so the server's lease ends later.
		w.take(grant{fence: reply.Fence, term: term{reply.Sent, reply.Lease}, queued: w.asked > 1 && !w.try(), ours: w.isOurs(reply)})
	case w.try():
		w.end(w.wrap(ErrNotAcquired))
	default:
		first := w.clock.now == 0
		w.clock = clock
		if first && reply.Position > w.queueLimit {
			w.undo(w.wrap(fmt.Errorf("%w: %d wait already", ErrQueueFull, reply.Position-1)))
			return
		}
		w.trouble, w.retry = nil, backoff{}
		w.l.hub.listen(w, reply.List)
		w.callAt(now.Add(w.l.hub.pace(reply.CheckIn)))
	}
}

// take ends the wait with a grant, unless the grant came too late.
func (w *waiter) take(g grant) {
	if g.term.isUsable(time.Now()) {
		g.doubt = wire.Never
		if w.unanswered {
			g.doubt = w.firstLease()
		}
		w.grant = g
		w.end(nil)
		return
	}
	if w.slow > w.handed()/2 {
		w.late++
	}
	if w.try() || w.late >= maxLateGrants {
		w.undo(w.wrap(fmt.Errorf("%w: a lease of %v had run out when the grant arrived (round trip %v): "+
			"use a longer one", ErrLost, g.term.length, w.slow)))
		return
	}
	w.callAt(time.Now())
}

// tell acts on a signal. It believes the signal without a call only if it is unambiguous, and if there is
// no minimum hold: the server must know that before the work begins, in case the holder dies.
func (w *waiter) tell(s wire.Signal) {
	switch {
	case w.over:
	case w.calling != nil:
		w.told = &s
	case s.Fence == 0 || w.clock.now == 0 || w.ownToken || w.minHold > 0:
		w.callAt(time.Now())
	default:
		g := w.handedOver(s)
		switch {
		case g.term.from.After(time.Now()): // in the future: the server's clock has jumped
			w.callAt(time.Now())
		case s.Deadline-ceilMillis(w.handed()) < w.clock.now: // the server has queued us since: the grant was taken back
			w.callAt(time.Now())
		case s.Deadline-ceilMillis(w.handed()) <= w.line.clock.high: // perhaps taken back: the server's clock was put back
			w.callAt(time.Now())
		default:
			w.take(g)
		}
	}
}

// handedOver is the grant of a signal.
func (w *waiter) handedOver(s wire.Signal) grant {
	length := w.handed()
	deadline := w.line.clock.earliest(s.Deadline, time.Now())
	return grant{
		fence:       s.Fence,
		term:        term{deadline.Add(-length), length},
		unconfirmed: length != w.firstLease(),
		queued:      true,
		ours:        true,
	}
}

// callAt makes call run at that time, or sooner if this is the foremost waiter.
func (w *waiter) callAt(due time.Time) {
	w.due = due
	if sooner := w.sent.Add(w.l.hub.pace(foremostCheckIn)); w.isForemost() && sooner.Before(due) {
		due = sooner
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(time.Until(due), w.call)
		return
	}
	w.timer.Reset(time.Until(due))
}

// isForemost tells whether w is this Locker's first waiter for its lock.
func (w *waiter) isForemost() bool { return w.line != nil && w.line.waiters.Front() == w.place }

// end ends a wait. Each wait ends once.
func (w *waiter) end(err error) {
	w.over, w.err = true, err
	if w.timer != nil {
		w.timer.Stop()
	}
	if w.ready {
		w.l.hub.remove(w)
	}
	close(w.ended)
}

// undo is end for a wait that may have a place in the queue, or the lock. A leaver gives them up after the
// call under way is answered: on another connection, it could overtake that call.
func (w *waiter) undo(err error) {
	w.leaving = w.l.leavers.prepare(w, !w.ownToken || w.clock.now != 0)
	w.end(err)
	if w.calling == nil {
		w.l.leavers.add(w.leaving)
	}
}

// quit ends the wait after the end of ctx. It gives back a lock that was granted meanwhile.
func (w *waiter) quit() {
	h := w.l.hub
	h.mu.Lock()
	if w.ready && !w.over {
		w.undo(errUnserved)
	}
	h.mu.Unlock()
	<-w.ended
	if w.err == nil {
		w.giveBack(errUnserved)
	}
}

// giveBack returns a grant that nobody wants. Only the caller of the wait calls it, after the end.
func (w *waiter) giveBack(err error) {
	w.err = err
	w.leaving = w.l.leavers.prepare(w, w.grant.ours)
	w.l.leavers.add(w.leaving)
}

// result returns the lock or the error. Close waits until then.
func (w *waiter) result() (*Lock, error) {
	if w.counted {
		defer w.l.bg.Done()
	}
	var lock *Lock
	if w.err == nil {
		if lock = newLock(w); !w.l.hold(lock) {
			w.giveBack(w.wrap(ErrClosed))
		}
	}
	if w.err != nil {
		if w.leaving != nil && w.isAnswered() {
			w.leaving.await(undoWait)
		}
		if errors.Is(w.err, errUnserved) { // an answer that came meanwhile may say more
			w.l.hub.mu.Lock()
			w.err = w.unserved()
			w.l.hub.mu.Unlock()
		}
		return nil, w.watch.fail(w.err)
	}
	lock.start()
	if w.replicas > 0 {
		if err := lock.replicate(w.ctx, w.replicas, w.ackWithin); err != nil {
			return nil, w.watch.fail(err)
		}
	}
	w.watch.got(lock, w.grant.queued)
	return lock, nil
}

// isAnswered tells whether this wait's last call was answered, or is younger than undoWait.
func (w *waiter) isAnswered() bool {
	w.l.hub.mu.Lock()
	defer w.l.hub.mu.Unlock()
	return w.trouble == nil && (w.calling == nil || time.Since(w.sent) < undoWait)
}

// errUnserved is a placeholder: result replaces it by unserved.
var errUnserved = errors.New("unserved")

// unserved is the error of a wait whose ctx has ended: whether the lock was busy, ctx's own error, and the
// error of the last call. It needs hub.mu.
func (w *waiter) unserved() error {
	why := ErrUnavailable
	if w.busy {
		why = ErrNotAcquired
	}
	err := fmt.Errorf("%w: %w", why, w.ctx.Err())
	if cause := context.Cause(w.ctx); !errors.Is(w.ctx.Err(), cause) {
		err = fmt.Errorf("%w (%w)", err, cause)
	}
	var last *wire.Error
	if errors.As(w.trouble, &last) { // without its ErrUnavailable, as the lock may be busy
		err = fmt.Errorf("%w; the last call failed: %w", err, last.Err)
	}
	return w.wrap(err)
}

// backoff is for calls that failed but may succeed later.
type backoff struct{ n int }

// next is 10 ms, doubled each time up to 1 s. A random half spreads the clients.
func (b *backoff) next() time.Duration {
	d := min(10*time.Millisecond<<min(b.n, 7), time.Second)
	b.n++
	return d/2 + rand.N(d/2)
}

// retrying runs do until it succeeds, fails with a lasting error, or ctx ends.
func retrying(ctx context.Context, do func() error) error {
	var retry backoff
	for {
		err := do()
		if err == nil || !wire.Passes(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(retry.next()):
		case <-ctx.Done():
			return err
		}
	}
}
