package redislock

import (
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
	// them together call some 45 times a second. If they die, nobody waits so long: the server sees that
	// their signals lie unread.
	placeOfMany = 67 * time.Millisecond
	// promptly is how long a wait that ended goes on for its place in the queue to be given up.
	// After that it does so in the background.
	promptly = time.Second
	// tooLate is how many grants of a lease under a second may arrive when they have run out, until
	// it is clear that they always will.
	tooLate = 3
)

// grant is a lock that was just given to us.
type grant struct {
	fence    int64
	at       time.Time // not later than the server's moment of granting
	deadline time.Time // not later than the end of the lease on the server; zero: never expires
	short    bool      // it was handed over with a short lease, which has to be confirmed
	queued   bool      // it was waited for
}

func (g grant) live() bool { return g.deadline.IsZero() || time.Now().Before(g.deadline) }

// call is one lock_acquire under way. Its caller may stop waiting for it, but has to learn its fate
// before undoing it: on another connection, the release could overtake it.
type call struct {
	done  chan struct{}
	sent  time.Time // before it was sent
	reply acquired
	err   error
}

func (l *Locker) send(ctx context.Context, r *request, signal string, wait time.Duration) *call {
	c := &call{done: make(chan struct{}), sent: time.Now()}
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer close(c.done)
		c.reply, c.err = l.fn.acquire(ctx, r.keys, signal, r.token, r.firstLease(), wait)
	}()
	return c
}

// firstLease is the lease to ask for, which must not outlast the maximum hold.
func (r *request) firstLease() time.Duration {
	if r.maxHold > 0 && (r.lease == 0 || r.maxHold < r.lease) {
		return r.maxHold
	}
	return r.lease
}

// grant of a reply: the lease counts from before the request was sent, so whatever was slow, the
// server's ends later.
func (c *call) grant() grant {
	g := grant{fence: c.reply.fence, at: c.sent}
	if c.reply.left >= 0 {
		g.deadline = c.sent.Add(c.reply.left)
	}
	return g
}

// handedOver is the grant that a signal tells of. The server's clock is known from the reply to our
// last call: it showed reply.now after c.sent, so it shows the signal's deadline not before c.sent
// plus the difference; less a millisecond for the rounding, and a thousandth of the time since for
// clocks of different speed.
func (c *call) handedOver(s signal, r *request) grant {
	drift := time.Since(c.sent) / 1000
	deadline := c.sent.Add(time.Duration(s.deadline-c.reply.now)*time.Millisecond - time.Millisecond - drift)
	lease := r.firstLease()
	g := grant{fence: s.fence, deadline: deadline, short: lease == 0 || lease > handedLease, queued: true}
	if g.short {
		lease = handedLease
	}
	g.at = deadline.Add(-lease)
	return g
}

// granted runs one of the ways to get a lock and makes a Lock of it. From here to its end, Close
// waits for it.
func (l *Locker) granted(ctx context.Context, r *request, get func(context.Context, *request) (grant, error)) (*Lock, error) {
	if !l.background() {
		return nil, wrap("acquire", r, ErrClosed)
	}
	defer l.bg.Done()
	w := l.watch(ctx, r)
	if ctx.Err() != nil {
		return nil, w.fail(r.notAcquired(ctx, nil))
	}
	g, err := get(ctx, r)
	if err != nil {
		return nil, w.fail(err)
	}
	lock := newLock(ctx, l, r, g)
	lock.watch = w
	if !l.hold(lock) {
		l.undo(r, nil)
		return nil, w.fail(wrap("acquire", r, ErrClosed))
	}
	lock.keep()
	if r.replicas > 0 {
		if err := lock.replicate(ctx, r.replicas, r.ackWithin); err != nil {
			return nil, w.fail(err)
		}
	}
	w.got(lock, g.queued)
	return lock, nil
}

func (l *Locker) hold(lock *Lock) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.held[lock] = struct{}{}
	return true
}

// wait takes the lock or queues for it, then waits for the signal of its hand-over. In between it
// checks in: that keeps its place, and finds out what a lost signal would have told.
func (l *Locker) wait(ctx context.Context, r *request) (grant, error) {
	w := l.hub.add(r)
	defer l.hub.remove(w)
	timer := time.NewTimer(0)
	defer timer.Stop()

	var known *call   // the last call that was answered
	asked := 0        // how often
	var trouble error // why the present one was not
	var retry backoff
	late := 0
	for {
		asked++
		c := l.send(ctx, r, w.signal, max(l.opts.WaitTTL, time.Duration(l.hub.crowd(w))*placeOfMany))
		select {
		case <-c.done:
		case <-ctx.Done():
			l.undo(r, c)
			return grant{}, r.notAcquired(ctx, trouble)
		case <-l.closing:
			l.undo(r, c)
			return grant{}, wrap("acquire", r, ErrClosed)
		}

		due := time.Now()
		switch {
		case c.err != nil && retry.final(c.err):
			l.undo(r, c)
			return grant{}, wrap("acquire", r, c.err)
		case c.err != nil:
			trouble = c.err
			due = due.Add(retry.next())
		case c.reply.held:
			if g := c.grant(); g.live() {
				g.queued = asked > 1 // or an answer that is lost put it into the queue
				return g, nil
			}
			late++
		default:
			known, trouble, retry = c, nil, backoff{}
			due = due.Add(c.reply.checkIn)
			l.hub.listen(w)
		}

		for waiting := true; waiting; {
			if late >= tooLate && r.firstLease() < time.Second && r.firstLease() > 0 {
				l.undo(r, nil)
				return grant{}, r.tooShort()
			}
			wakeUp := due
			if sooner := c.sent.Add(foremostCheckIn); sooner.Before(due) && l.hub.isForemost(w) {
				wakeUp = sooner
			}
			timer.Reset(time.Until(wakeUp))
			select {
			case <-timer.C:
				waiting = false
			case s := <-w.told:
				switch {
				case s.err != nil:
					l.undo(r, nil)
					return grant{}, wrap("acquire", r, s.err)
				case s.fence == 0: // foremost now: check in sooner
				case known == nil || r.ownToken: // not to be trusted: ask
					due = time.Now()
				default:
					// A grant that is yet to come means that the server's clock has jumped.
					if g := known.handedOver(s, r); g.live() && !g.at.After(time.Now()) {
						return g, nil
					}
					late++
					due = time.Now()
				}
			case <-ctx.Done():
				l.undo(r, nil)
				return grant{}, r.notAcquired(ctx, trouble)
			case <-l.closing:
				l.undo(r, nil)
				return grant{}, wrap("acquire", r, ErrClosed)
			}
		}
	}
}

// try asks once. Only if the answer is lost it asks again, to know.
func (l *Locker) try(ctx context.Context, r *request) (grant, error) {
	var retry backoff
	for {
		c := l.send(ctx, r, l.hub.signalOf(r.keys), 0)
		select {
		case <-c.done:
		case <-ctx.Done():
			l.undo(r, c)
			return grant{}, r.notAcquired(ctx, nil)
		case <-l.closing:
			l.undo(r, c)
			return grant{}, wrap("try to acquire", r, ErrClosed)
		}
		switch {
		case c.err == nil && !c.reply.held:
			return grant{}, wrap("try to acquire", r, ErrNotAcquired)
		case c.err == nil:
			if g := c.grant(); g.live() {
				return g, nil
			}
			l.undo(r, nil)
			return grant{}, r.tooShort()
		case retry.final(c.err) || retry.n == 2:
			l.undo(r, nil)
			return grant{}, wrap("try to acquire", r, c.err)
		}
		select {
		case <-time.After(retry.next()):
		case <-ctx.Done():
			l.undo(r, nil)
			return grant{}, r.notAcquired(ctx, c.err)
		case <-l.closing:
			l.undo(r, nil)
			return grant{}, wrap("try to acquire", r, ErrClosed)
		}
	}
}

// undo leaves the queue, or gives back what was granted meanwhile. It first waits for the fate of a
// call that is under way. If all that is not done promptly, it goes on in the background.
func (l *Locker) undo(r *request, c *call) {
	done := make(chan struct{})
	l.bg.Add(1) // not the first: our caller is counted
	go func() {
		defer l.bg.Done()
		defer close(done)
		if c != nil {
			<-c.done
		}
		l.giveBack(r.keys, r.token)
		if !r.ownToken {
			l.hub.over(r.keys, r.token)
		}
	}()
	timer := time.NewTimer(promptly)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
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
