package redislock

import (
	"fmt"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

const (
	// Context ends ahead of the deadline, by a share of the lease and by noticeMax at most. The holder
	// stops in that time. It also covers a timer that is late, and a clock that runs slower than the
	// server's: see Lock.Context for the rates.
	noticeMax   = 500 * time.Millisecond
	noticeShare = 10 // the lease is divided by it

	// handedLease is how long a handed-over lease lasts until it is confirmed: CLAIM_MS of lock.lua.
	handedLease = 2 * time.Second
	// claimAfter is when a handed-over lock is confirmed. A holder that releases sooner saves this call.
	claimAfter = 500 * time.Millisecond
)

// term is what the server has promised a holder: the lock, for one length from then on.
type term struct {
	from   time.Time     // by our clock, and not later than the moment from which the server counts
	length time.Duration // wire.Never: it never expires
}

// deadline is until when the lock is surely held. Three centuries are as good as never.
func (t term) deadline() time.Time { return t.from.Add(t.length) }

// notice is when Context ends.
func (t term) notice() time.Time {
	return t.from.Add(t.length - min(t.length/noticeShare, noticeMax))
}

// isUsable tells whether a holder may still act: the time of the notice has not come.
func (t term) isUsable(now time.Time) bool { return now.Before(t.notice()) }

// atMost is the term with a length that is no longer than this.
func (t term) atMost(length time.Duration) term {
	t.length = min(t.length, length)
	return t
}

// lease says until when a lock is held, and when to call the server for it. It alone says so, and it is
// a value whose methods are told what time it is: nothing can get out of step.
//
// No term ends later than the server's:
//
//   - A term that the server has confirmed (lock_acquire, lock_extend) counts from when the call was
//     sent. Calls are made one at a time, so the server has seen no later one.
//   - A call that got no answer may still arrive and set its own length. So doubt, the shortest of
//     these, limits all later terms.
//   - For the term of a signal, see waiter.handedOver.
//   - A term that ends sooner counts from before its call is sent. It is taken back only if Redis
//     refuses the call.
//
// Another process that extends with the same token (WithToken) is not seen here.
type lease struct {
	term        term
	length      time.Duration // to renew for
	begin       time.Time     // of the first term
	maxHold     time.Duration // from then on; wire.Never: no limit
	keepUntil   time.Time     // nobody else may have the lock before (WithMinHold)
	renew       bool
	unconfirmed bool          // handed over, and short until the server knows that we are there
	doubt       time.Duration // wire.Never: all calls were answered
}

func newLease(r *request, g grant, now time.Time) lease {
	return lease{
		term:        g.term.atMost(r.maxHold),
		length:      r.lease,
		begin:       g.term.from,
		maxHold:     r.maxHold,
		keepUntil:   now.Add(r.minHold),
		renew:       r.renew,
		unconfirmed: g.unconfirmed,
		doubt:       g.doubt,
	}
}

// left is what is left of the maximum hold, in the server's unit.
func (l lease) left(now time.Time) time.Duration {
	if l.maxHold == wire.Never {
		return wire.Never
	}
	return l.begin.Add(l.maxHold).Sub(now).Truncate(time.Millisecond)
}

// toKeep is what is left of the minimum hold, 0 if nothing is.
func (l lease) toKeep(now time.Time) time.Duration { return max(0, l.keepUntil.Sub(now)) }

// next is when to call lock_extend, to confirm or to renew. False: not again.
func (l lease) next(now time.Time) (time.Time, bool) {
	switch {
	case l.unconfirmed:
		return now.Add(min(claimAfter, l.term.deadline().Sub(now)/4)), true
	case !l.renew, l.term.length == wire.Never, l.isLast():
		return now, false
	}
	return l.term.from.Add(min(l.term.length, l.length) / 3), true
}

// isLast tells whether the lease ends with the maximum hold, but for the rounding.
func (l lease) isLast() bool { return l.left(l.term.deadline()) <= time.Millisecond }

// ask is the term to ask for. False: nothing is left of the maximum hold. A minimum hold comes first: it
// counts from the reply to the grant, so it may end a round trip later than a maximum hold of the same length.
func (l lease) ask(now time.Time, length time.Duration) (term, bool) {
	left := l.left(now)
	return term{now, max(min(length, left), l.toKeep(now))}, left > 0
}

// asked is the lease while a call for a term is under way: if it ends sooner, the server may have it.
func (l lease) asked(t term) lease {
	if t.deadline().Before(l.term.deadline()) {
		l.term = t
	}
	return l
}

// confirmed is the lease after the server has begun a term.
func (l lease) confirmed(t term) lease {
	l.unconfirmed = false
	l.term = t.atMost(l.doubt).atMost(max(0, l.left(t.from)))
	return l
}

// unanswered is the lease after a call that may still arrive.
func (l lease) unanswered(t term, length time.Duration) lease {
	l.doubt = min(l.doubt, t.length)
	l.length = min(l.length, length)
	return l
}

// ending is ErrLost with the limit that it was.
func (l lease) ending() error {
	if l.isLast() {
		return fmt.Errorf("%w: the maximum hold of %v is over", ErrLost, l.maxHold)
	}
	return fmt.Errorf("%w: the %v are over, and were not renewed", ErrLost, l.term.length)
}
