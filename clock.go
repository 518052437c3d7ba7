package redislock

import "time"

// serverClock is one reading of the server's clock, from a reply. The server's clock showed now at some
// moment between at and by.
type serverClock struct {
	now  int64     // ms; 0: nothing is known
	at   time.Time // when the call was sent, by our clock
	by   time.Time // when the reply arrived, by our clock
	high int64     // ms; the clock was put back and may have shown this before; 0: it was not, as far as we know
}

// earliest is the earliest moment, by our clock, at which the server's clock shows ms. It assumes that the
// server's clock runs less than a tenth faster than ours. One millisecond is for rounding.
func (c serverClock) earliest(ms int64, today time.Time) time.Time {
	const far = int64(7 * 24 * time.Hour / time.Millisecond) // prevents overflow; longer than any wait or handed-over lease
	ahead := time.Duration(min(max(ms-c.now, -far), far)) * time.Millisecond
	drift := today.Sub(c.at) / 10
	return c.at.Add(ahead - time.Millisecond - drift)
}

// newer returns the later reading of two, because clocks drift apart. It also notes in high whether the
// server's clock was put back between c and other. The call of other may have been sent before that of c,
// and have taken longer.
func (c serverClock) newer(other serverClock) serverClock {
	last := other
	if other.at.Before(c.at) && other.now <= max(c.now, c.high) {
		last = c
	}
	last.high = c.high
	if c.now != 0 && other.now < c.now+other.at.Sub(c.by).Milliseconds() {
		last.high = max(c.high, c.now+other.by.Sub(c.at).Milliseconds()+1)
	}
	return last
}
