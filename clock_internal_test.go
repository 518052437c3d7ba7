package redislock

import (
	"testing"
	"time"
)

// TestClockPutBack: a signal from before the clock was put back must not pass for one that came after the
// last answer.
func TestClockPutBack(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	reply := func(now int64, sent, here int) serverClock { return serverClock{now: now, at: at(sent), by: at(here)} }

	first := serverClock{}.newer(reply(1_000_000, 0, 20))
	for name, c := range map[string]struct {
		next serverClock
		high int64
	}{
		"goes on":                  {reply(1_005_010, 5000, 5020), 0},
		"slowest there, fast here": {reply(1_004_980, 5000, 5000), 0},
		"put forward":              {reply(1_900_000, 5000, 5020), 0},
		"put back by a second":     {reply(1_004_010, 5000, 5020), 1_005_021},
		"put back by a minute":     {reply(945_010, 5000, 5020), 1_005_021},
	} {
		t.Run(name, func(t *testing.T) {
			next := first.newer(c.next)
			if next.high != c.high {
				t.Errorf("it may have shown %d, want %d", next.high, c.high)
			}
			if later := next.newer(reply(next.now+1000, 6000, 6020)); later.high != c.high {
				t.Error("the next reply forgets it")
			}
			want := next
			if name == "put forward" { // it could have been put back as well
				want.high = 1_900_021
			}
			if late := next.newer(reply(1_000_005, 10, 5020)); late != want {
				t.Errorf("a reply that comes late makes it %+v, want %+v", late, want)
			}
		})
	}
	t.Run("put back, says a call that was sent first and took longer", func(t *testing.T) {
		known := reply(1_005_010, 5000, 5020)
		want := known
		want.high = 1_005_611
		if next := known.newer(reply(945_600, 4900, 5600)); next != want {
			t.Errorf("%+v, want %+v", next, want)
		}
	})
	t.Run("put forward, says a call that was sent first and took longer", func(t *testing.T) {
		last := reply(1_005_900, 4900, 5600)
		if next := reply(1_005_010, 5000, 5020).newer(last); next != last {
			t.Errorf("%+v, want %+v", next, last)
		}
	})
}
