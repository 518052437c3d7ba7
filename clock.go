package redislock

import "time"

// serverClock is what a reply has told of the server's clock: it showed now when the call that asked was
// sent, or later.
type serverClock struct {
	now  int64     // ms; 0: nothing is known
	at   time.Time // by our clock
	by   time.Time // when the reply was here
	high int64     // it was put back, and may have shown this before; 0: not as far as is known
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
// What the two tell together is kept: the clock was put back if other had to show more, also if its call
// was sent first and took longer.
func (c serverClock) newer(other serverClock) serverClock {
	last := other
	if other.at.Before(c.at) {
		last = c
	}
	last.high = c.high
	if c.now != 0 && other.now < c.now+other.at.Sub(c.by).Milliseconds() {
		last.high = max(c.high, c.now+other.by.Sub(c.at).Milliseconds()+1)
	}
	return last
}
