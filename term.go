package redislock

import "time"

// Context ends ahead of the deadline, by a share of the lease and by noticeMax at most. The holder stops
// in that time. It also covers a timer that is late, and a clock that runs slower than the server's: see
// Lock.Context for the rates.
const (
	noticeMax   = 500 * time.Millisecond
	noticeShare = 10 // the lease is divided by it
)

// term is what the server has promised a holder: the lock, for one lease from then on. It alone says
// until when a lock is held, and it is told what time it is.
type term struct {
	from  time.Time     // by our clock, and not later than the moment from which the server counts
	lease time.Duration // 0: never expires
}

// deadline is until when the lock is surely held; zero: it never expires.
func (t term) deadline() time.Time {
	if t.lease == 0 {
		return time.Time{}
	}
	return t.from.Add(t.lease)
}

// notice is when Context ends; zero: never.
func (t term) notice() time.Time {
	if t.lease == 0 {
		return time.Time{}
	}
	return t.from.Add(t.lease - min(t.lease/noticeShare, noticeMax))
}

// isUsable tells whether a holder may still act: the time of the notice has not come.
func (t term) isUsable(now time.Time) bool { return t.lease == 0 || now.Before(t.notice()) }

// isRunning tells whether the server surely has not ended the lease.
func (t term) isRunning(now time.Time) bool { return t.lease == 0 || now.Before(t.deadline()) }

// atMost is the term with a lease that is no longer than this; 0: no limit.
func (t term) atMost(limit time.Duration) term {
	t.lease = shorter(t.lease, limit)
	return t
}

// endsBefore tells which of two terms ends first.
func (t term) endsBefore(other term) bool {
	return t.lease != 0 && (other.lease == 0 || t.deadline().Before(other.deadline()))
}

// shorter is the shorter one of two leases, or limits, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
