package redislock

import (
	"fmt"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

const (
	// Context ends ahead of the deadline, by lease/noticeShare and by noticeMax at most. The holder
	// stops in that time. It also covers a late timer, and a clock that is slower than the server's: see
	// Lock.Context for the rates.
	noticeMax   = 500 * time.Millisecond
	noticeShare = 10

	// handedLease is how long a handed-over lease lasts until it is confirmed: CLAIM_MS of lock.lua.
	handedLease = 2 * time.Second
	// claimAfter is how long after a hand-over the holder confirms it. A holder that releases sooner saves
	// this call.
	claimAfter = 500 * time.Millisecond
)

// term is a promise of the server: the lock is held for length after from.
type term struct {
	from   time.Time     // by our clock, and no later than the moment from which the server counts
	length time.Duration // wire.Never: it never expires
}

// deadline is until when the lock is surely held. For wire.Never that is three centuries away.
func (t term) deadline() time.Time { return t.from.Add(t.length) }

// notice is when Context ends.
func (t term) notice() time.Time {
	return t.from.Add(t.length - min(t.length/noticeShare, noticeMax))
}

// isUsable tells whether a holder may still act: notice is still to come.
func (t term) isUsable(now time.Time) bool { return now.Before(t.notice()) }

// atMost is the term, shortened to at most this length.
func (t term) atMost(length time.Duration) term {
	t.length = min(t.length, length)
	return t
}

// lease says until when a lock is held, and when to call the server for it. No other code decides that. It
// is a value, and its methods take the time as an argument, so nothing gets out of step.
//
// No term ends later than the server's:
//
//   - A term that the server has confirmed (lock_acquire, lock_extend) counts from the moment when the
//     call was sent. There is one call at a time, so the server has seen no later one.
//   - A call without an answer may still arrive and set its own length. So doubt, the shortest of these
//     lengths, limits all later terms.
//   - For the term of a signal, see waiter.handedOver.
//   - A term that ends sooner counts from before its call is sent. It is taken back only if Redis
//     refuses the call.
//
// lease does not see another process that extends with the same token (WithToken).
type lease struct {
	term        term
	length      time.Duration // of each renewal
	begin       time.Time     // of the first term
	maxHold     time.Duration // after begin; wire.Never: no limit
	keepUntil   time.Time     // nobody else may have the lock before (WithMinHold)
	renew       bool
	unconfirmed bool          // handed over for handedLease at most, until we call
	doubt       time.Duration // wire.Never: Redis has answered all calls
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

// left is the rest of the maximum hold, in whole milliseconds.
func (l lease) left(now time.Time) time.Duration {
	if l.maxHold == wire.Never {
		return wire.Never
	}
	return l.begin.Add(l.maxHold).Sub(now).Truncate(time.Millisecond)
}

// toKeep is the rest of the minimum hold, or 0.
func (l lease) toKeep(now time.Time) time.Duration { return max(0, l.keepUntil.Sub(now)) }

// next is when to call lock_extend, to confirm or to renew. False: never again.
func (l lease) next(now time.Time) (time.Time, bool) {
	switch {
	case l.unconfirmed:
		return now.Add(min(claimAfter, l.term.deadline().Sub(now)/4)), true
	case !l.renew, l.term.length == wire.Never, l.isLast():
		return now, false
	}
	return l.term.from.Add(min(l.term.length, l.length) / 3), true
}

// isLast tells whether the term ends with the maximum hold, give or take the rounding.
func (l lease) isLast() bool { return l.left(l.term.deadline()) <= time.Millisecond }

// ask is the term to ask for. False: the maximum hold is over. A minimum hold overrides the maximum: it
// counts from the reply to the grant, so it may end a round trip later than a maximum of the same length.
func (l lease) ask(now time.Time, length time.Duration) (term, bool) {
	left := l.left(now)
	return term{now, max(min(length, left), l.toKeep(now))}, left > 0
}

// asked is the lease while a call for t is under way. A sooner end counts at once, because the server may
// have set it already.
func (l lease) asked(t term) lease {
	if t.deadline().Before(l.term.deadline()) {
		l.term = t
	}
	return l
}

// confirmed is the lease after the server has set t.
func (l lease) confirmed(t term) lease {
	l.unconfirmed = false
	l.term = t.atMost(l.doubt).atMost(max(0, l.left(t.from)))
	return l
}

// unanswered is the lease after a call for t that may still arrive.
func (l lease) unanswered(t term, length time.Duration) lease {
	l.doubt = min(l.doubt, t.length)
	l.length = min(l.length, length)
	return l
}

// ending is ErrLost, with the limit that ended the lock.
func (l lease) ending() error {
	if l.isLast() {
		return fmt.Errorf("%w: the maximum hold of %v is over", ErrLost, l.maxHold)
	}
	return fmt.Errorf("%w: the %v are over, and were not renewed", ErrLost, l.term.length)
}
