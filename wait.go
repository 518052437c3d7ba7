package redislock

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/rueidis"
)

const (
	// handedLease is how long a handed-over lease lasts until it is confirmed: CLAIM_MS of lock.lua.
	handedLease = 2 * time.Second
	// foremostCheckIn is how often the first waiter that this Locker has for a lock calls at least,
	// so that a dead waiter before it costs no more than this and handedLease: the 3 s of README.md.
	foremostCheckIn = time.Second
	// placeOfMany times the number of waiters that this Locker has for a lock is how long their places
	// are kept, if that is longer than Options.WaitTTL: a third of it is how often each calls, so all of
	// them together call 40 times a second, and those in front a few times more. If they die, nobody
	// waits so long: the server sees that their signals lie unread.
	placeOfMany = 75 * time.Millisecond
	// promptly is how long a wait that ended goes on for its place in the queue to be given up.
	// After that it does so in the background.
	promptly = time.Second
	// tooLate is how many grants of a lease under a second may arrive when they have run out, until
	// it is clear that they always will.
	tooLate = 3
)

// grant is a lock that was just given to us.
type grant struct {
	fence  int64
	term   term
	doubt  time.Duration // the lease of a call without an answer, which may still arrive; 0: none
	short  bool          // it was handed over with a short lease, which has to be confirmed
	queued bool          // it was waited for
}

// waiter is one call of Acquire or TryAcquire. Its caller just sleeps until it is over. Whoever brings
// news of it (the reply to a call, a signal, its time to check in) takes the next step. So a goroutine
// that waits has the smallest stack there is; of the many that may wait, that is what counts.
type waiter struct {
	*request
	l       *Locker
	ctx     context.Context // the caller's
	try     bool            // does not queue
	ended   chan struct{}   // closed when it is over: then err says why, or there is a grant
	grant   grant
	err     error
	watch   *watch
	counted bool // Close waits for it

	// The rest needs hub.mu.
	ready   bool          // the request is complete
	over    bool          // nothing more is to be done but to undo it
	calling chan struct{} // closed when the lock_acquire under way was answered; nil if none is
	sent    time.Time     // before the last one was sent
	asked   int           // how often
	due     time.Time     // for the next one, if it is not the foremost
	timer   *time.Timer
	told    signal // came while a call was under way: what counts is what is said last
	known   bool   // the server's clock showed seen after seenAt
	seen    int64  // ms
	seenAt  time.Time
	trouble error // why the last call was not answered
	// unanswered: some call got no answer, so it may still arrive.
	unanswered bool
	retry      backoff
	late       int        // grants that had run out when they arrived
	signal     string     // the list where the server tells us
	heard      bool       // somebody blocks there for us
	line       *list.List // those of this Locker who wait for the same lock, in order
	place      *list.Element
	next       *waiter // another one with the same token
}

// obtain takes the lock, or waits for it.
func (l *Locker) obtain(ctx context.Context, name string, opts []Option, try bool) (*Lock, error) {
	w := &waiter{request: l.opts.request(), l: l, ctx: ctx, try: try, ended: make(chan struct{})}
	for _, opt := range opts {
		opt(w.request)
	}
	// A call under way cannot be abandoned: on another connection, what is to undo it could overtake it.
	// So where ctx can end, another goroutine makes it. That one also keeps the stack of a goroutine small
	// that probably has to wait.
	if ctx.Done() == nil && l.hub.isIdle() {
		w.begin(name)
	} else {
		go w.begin(name)
	}
	select {
	case <-w.ended:
	case <-ctx.Done():
		w.quit()
	}
	return w.result()
}

func (w *waiter) op() string {
	if w.try {
		return "try to acquire"
	}
	return "acquire"
}

func (w *waiter) wrap(err error) error { return wrap(w.op(), w.request, err) }

// begin completes the request and makes the first call.
func (w *waiter) begin(name string) {
	h := w.l.hub
	err := w.l.complete(w.request, w.op(), name)
	if err == nil && !w.l.background() {
		err = w.wrap(ErrClosed)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		w.end(err)
		return
	}
	w.counted = true
	w.watch = w.l.watch(w.ctx, w.request)
	w.signal = h.signalOf(w.keys)
	switch {
	case w.ctx.Err() != nil:
		w.end(w.notAcquired(w.ctx, nil))
	case h.closed:
		w.end(w.wrap(ErrClosed))
	default:
		w.ready = true
		h.add(w)
		w.call()
	}
}

// call makes one lock_acquire. It needs hub.mu, which it gives up meanwhile.
func (w *waiter) call() {
	h := w.l.hub
	if w.over || w.calling != nil {
		return
	}
	var wait time.Duration
	if !w.try {
		wait = max(w.l.opts.WaitTTL, time.Duration(w.line.Len())*placeOfMany)
	}
	answered := make(chan struct{})
	w.calling, w.sent = answered, time.Now()
	w.asked++
	h.mu.Unlock()
	reply, err := w.l.fn.acquire(context.WithoutCancel(w.ctx), w.keys, w.signal, w.token, w.firstLease(), wait)
	h.mu.Lock()
	w.calling = nil
	close(answered)
	if !w.over { // else it is being undone
		w.answered(reply, err)
	}
}

// answered takes the step that a reply asks for, and then that of a signal which came meanwhile.
func (w *waiter) answered(reply acquired, err error) {
	told := w.told
	w.told = signal{}
	w.unanswered = w.unanswered || hasNoAnswer(err)
	switch {
	case err != nil && (w.retry.final(err) || w.try && w.retry.n == 2):
		w.undo(w.wrap(err))
	case err != nil:
		w.trouble = err
		w.callAt(time.Now().Add(w.retry.next()))
	case reply.held:
		// Asked twice: it was queued, if only by a call whose answer was lost.
		// The lease counts from before the request was sent: whatever was slow, the server's ends later.
		w.take(grant{fence: reply.fence, term: term{w.sent, reply.left}, queued: w.asked > 1 && !w.try})
	case w.try:
		w.end(w.wrap(ErrNotAcquired))
	default:
		w.known, w.seen, w.seenAt = true, reply.now, w.sent
		w.trouble, w.retry = nil, backoff{}
		w.l.hub.listen(w)
		w.callAt(time.Now().Add(reply.checkIn))
	}
	if told.fence != 0 && !w.over {
		w.tell(told)
	}
}

// take ends the wait with a grant, unless that came too late.
func (w *waiter) take(g grant) {
	lease := w.firstLease()
	switch {
	case g.term.isUsable(time.Now()):
		if w.unanswered {
			g.doubt = lease
		}
		w.grant = g
		w.end(nil)
	case w.try, w.late+1 >= tooLate && lease > 0 && lease < time.Second:
		w.undo(w.tooShort())
	default:
		w.late++
		w.callAt(time.Now())
	}
}

// tell is for a signal. Only if it is sure what it means, no call is needed.
func (w *waiter) tell(s signal) {
	switch {
	case w.over:
	case w.calling != nil:
		w.told = s
	case !w.known || w.ownToken:
		w.callAt(time.Now())
	default:
		g := w.handedOver(s)
		switch {
		case g.term.from.After(time.Now()): // yet to come: the server's clock has jumped
			w.callAt(time.Now())
		case s.deadline-ceilMillis(w.handed()) < w.seen: // the server has said since that we wait: it was taken back
			w.callAt(time.Now())
		default:
			w.take(g)
		}
	}
}

// handedOver is the grant that a signal tells of. The server's clock is known from the reply to our
// last call: it showed w.seen after w.seenAt, so it shows the signal's deadline not before w.seenAt
// plus the difference; less a millisecond for the rounding, and a thousandth of the time since for
// clocks of different speed.
func (w *waiter) handedOver(s signal) grant {
	drift := time.Since(w.seenAt) / 1000
	deadline := w.seenAt.Add(time.Duration(s.deadline-w.seen)*time.Millisecond - time.Millisecond - drift)
	lease := w.handed()
	return grant{fence: s.fence, term: term{deadline.Add(-lease), lease}, short: lease != w.firstLease(), queued: true}
}

// callAt has call run at that time, or sooner if this is the foremost waiter.
func (w *waiter) callAt(due time.Time) {
	w.due = due
	if sooner := w.sent.Add(foremostCheckIn); w.isForemost() && sooner.Before(due) {
		due = sooner
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(time.Until(due), func() {
			w.l.hub.mu.Lock()
			defer w.l.hub.mu.Unlock()
			w.call()
		})
		return
	}
	w.timer.Reset(time.Until(due))
}

// isForemost tells whether it is the first of this Locker's waiters for its lock.
func (w *waiter) isForemost() bool { return w.line != nil && w.line.Front() == w.place }

// end is how each wait ends, just once.
func (w *waiter) end(err error) {
	w.finish(err)
	close(w.ended)
}

func (w *waiter) finish(err error) {
	w.over, w.err = true, err
	if w.timer != nil {
		w.timer.Stop()
	}
	if w.ready {
		w.l.hub.remove(w)
	}
}

// undo is end for a wait that may have a place in the queue, or the lock: it leaves the queue, and gives
// back what was granted meanwhile. It first waits for the fate of a call that is under way. What is not
// done promptly goes on in the background.
func (w *waiter) undo(err error) {
	w.finish(err)
	calling := w.calling
	go func() {
		w.giveUp(calling)
		close(w.ended)
	}()
}

func (w *waiter) giveUp(calling <-chan struct{}) {
	done := make(chan struct{})
	w.l.bg.Add(1) // not the first: our caller is counted
	go func() {
		defer w.l.bg.Done()
		defer close(done)
		if calling != nil {
			<-calling
		}
		w.l.giveBack(w.keys, w.token)
		if !w.ownToken {
			w.l.hub.over(w.keys, w.token)
		}
	}()
	timer := time.NewTimer(promptly)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// quit is for a ctx that has ended. If the lock was granted meanwhile, it is given back.
func (w *waiter) quit() {
	h := w.l.hub
	h.mu.Lock()
	if w.ready && !w.over {
		w.undo(w.notAcquired(w.ctx, w.trouble))
	}
	h.mu.Unlock()
	<-w.ended
	if w.err == nil {
		w.err = w.notAcquired(w.ctx, nil)
		w.giveUp(nil)
	}
}

// result is what the caller gets. Until then, Close waits for it.
func (w *waiter) result() (*Lock, error) {
	l := w.l
	if w.counted {
		defer l.bg.Done()
	}
	if w.err != nil {
		return nil, w.watch.fail(w.err)
	}
	lock := newLock(w.ctx, l, w.request, w.grant)
	lock.watch = w.watch
	if !l.hold(lock) {
		w.giveUp(nil)
		return nil, w.watch.fail(w.wrap(ErrClosed))
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

// firstLease is the lease to ask for, which must not outlast the maximum hold.
func (r *request) firstLease() time.Duration { return shorter(r.lease, r.maxHold) }

// handed is the lease that a lock is handed over with.
func (r *request) handed() time.Duration { return shorter(r.firstLease(), handedLease) }

// hold has Close wait for the end of this lock. False: the Locker is closed already.
func (l *Locker) hold(lock *Lock) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.held[lock] = struct{}{}
	l.bg.Add(1)
	return true
}

// giveBack releases, or leaves the queue. What cannot be given back in time lapses.
func (l *Locker) giveBack(k keys, token string) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_ = retrying(ctx, func() error {
		_, err := l.fn.release(ctx, k, token)
		return err
	})
}

// pass is giveBack in the background.
func (l *Locker) pass(k keys, token string) {
	if l.background() {
		go func() {
			defer l.bg.Done()
			l.giveBack(k, token)
		}()
	}
}

// notAcquired is both ErrNotAcquired and the error of ctx, and tells what was in the way.
func (r *request) notAcquired(ctx context.Context, trouble error) error {
	err := fmt.Errorf("redislock: acquire %q: %w: %w", r.keys.name, ErrNotAcquired, ctx.Err())
	if cause := context.Cause(ctx); !errors.Is(ctx.Err(), cause) {
		err = fmt.Errorf("%w (%w)", err, cause)
	}
	if trouble != nil {
		err = fmt.Errorf("%w; the last call failed: %w", err, trouble)
	}
	return err
}

func (r *request) tooShort() error {
	return wrap("acquire", r, fmt.Errorf("%w: a lease of %v had run out when the grant arrived: "+
		"use a longer one", ErrLost, r.firstLease()))
}

// backoff is for calls that failed but may succeed later.
type backoff struct {
	n       int
	closing int
}

// final tells whether an error will not pass. A client also says that it is closing while it
// switches over, so that is believed only after a while.
func (b *backoff) final(err error) bool {
	if errors.Is(err, rueidis.ErrClosing) {
		b.closing++
	}
	return !transient(err) || b.closing > 7
}

// next is 10 ms, doubled each time up to 1 s, with a random half so that clients spread.
func (b *backoff) next() time.Duration {
	d := min(10*time.Millisecond<<min(b.n, 7), time.Second)
	b.n++
	return d/2 + rand.N(d/2)
}

// retrying runs do until it succeeds, fails for good or ctx ends.
func retrying(ctx context.Context, do func() error) error {
	var retry backoff
	for {
		err := do()
		if err == nil || retry.final(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(retry.next()):
		case <-ctx.Done():
			return err
		}
	}
}
