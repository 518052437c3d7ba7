package redislock

import "time"

// serverClock is what a reply has told of the server's clock: it showed now when the call that asked was
// sent, or later.
type serverClock struct {
	now int64     // ms; 0: nothing is known
	at  time.Time // by our clock
}

// earliest is the earliest moment, by our clock, at which the server's shows ms, if it runs less than a
// tenth faster than ours, see Lock.Context. A millisecond is for the rounding.
func (c serverClock) earliest(ms int64, today time.Time) time.Time {
	const far = int64(7 * 24 * time.Hour / time.Millisecond) // farther than any place or short lease; no overflow
	ahead := time.Duration(min(max(ms-c.now, -far), far)) * time.Millisecond
	drift := today.Sub(c.at) / 10
	return c.at.Add(ahead - time.Millisecond - drift)
}

// newer is the one of two that was asked for last: the older one, the more the clocks may have drifted.
func (c serverClock) newer(other serverClock) serverClock {
	if other.at.After(c.at) {
		return other
	}
	return c
}
