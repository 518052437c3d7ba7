package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// The test binary is its own client process, as the command is.
func TestMain(m *testing.M) {
	if text := os.Getenv(jobVar); text != "" {
		if err := runWorker(text); err != nil {
			fmt.Fprintln(os.Stderr, "client:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A judge that lets these pass proves nothing about the lock.
func TestControlsFail(t *testing.T) {
	for _, control := range []struct {
		name    string
		judges  []string
		minutes float64
		clients int
	}{
		{controlSetNX, []string{judgeIntervals, judgeRegister}, 0.15, 7},
		{controlBarging, []string{judgeFIFO}, 0.15, 7},
		{controlLate, []string{judgeContexts}, 0.25, 4},
	} {
		t.Run(control.name, func(t *testing.T) {
			var out bytes.Buffer
			s := settings{minutes: control.minutes, seed: 5, topology: standaloneName, control: control.name, clients: control.clients}
			v, err := s.run(context.Background(), &out)
			if err != nil {
				t.Fatal(err)
			}
			for _, judge := range control.judges {
				if v.found(judge) == 0 {
					t.Errorf("judge %s found nothing\n%s", judge, out.String())
				}
			}
		})
	}
}

// Half a minute of faults on each topology, all at once, always the same.
func TestFaults(t *testing.T) {
	for i, name := range []string{standaloneName, sentinelName, clusterName} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			s := settings{minutes: 0.5, seed: uint64(i + 1), topology: name, clients: 7}
			v, err := s.run(context.Background(), &out)
			if err != nil {
				t.Fatal(err)
			}
			if len(v.violations) > 0 || v.grants == 0 {
				t.Error(out.String())
			}
			t.Log(out.String())
		})
	}
}

const second = int64(time.Second)

// story is a history of a lock "n" that a test tells; the server's clock is everybody's.
type story struct{ *history }

func newStory() *story {
	h := newHistory()
	h.start, h.wallOffset, h.end = 0, 0, 60*second
	return &story{h}
}

func (s *story) client(at float64, kind, op string, more ...func(*Event)) {
	e := Event{T: int64(at * 1e9), Kind: kind, Op: op, Name: "n", Lease: second}
	for _, m := range more {
		m(&e)
	}
	s.add(e)
}

func got(fence int64, deadline float64) func(*Event) {
	return func(e *Event) { e.Fence, e.Deadline = fence, int64(deadline*1e9) }
}

func (s *story) onServer(at float64, kind, token, fn, caller string, number int64) {
	us := int64(at * 1e6)
	s.addServer(serverEvent{at: us, begun: us, node: "x", kind: kind, name: "n", token: token, fn: fn, caller: caller, number: number})
}

func (s *story) fault(f fault) { s.faults = append(s.faults, &f) }

func (s *story) expect(t *testing.T, judges ...string) {
	t.Helper()
	v := judge(s.history)
	for _, name := range judgeNames {
		want := false
		for _, j := range judges {
			want = want || j == name
		}
		if (v.found(name) > 0) != want {
			t.Errorf("judge %s found %d: %v", name, v.found(name), v.violations)
		}
	}
}

func TestOverlap(t *testing.T) {
	tell := func() *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(1.1, evGot, "w0.0.0.0", got(1_000_500, 2.1))
		s.client(1.2, evCall, "w1.0.0.0")
		s.client(1.5, evGot, "w1.0.0.0", got(1_400_000, 2.5))
		s.client(1.6, evRelease, "w1.0.0.0")
		s.client(1.6, evReleased, "w1.0.0.0")
		s.client(1.9, evRelease, "w0.0.0.0")
		s.client(1.9, evReleased, "w0.0.0.0", func(e *Event) { e.Err = notHeld })
		return s
	}
	tell().expect(t, judgeIntervals, judgeLinear, judgeContexts)

	s := tell()
	s.fault(fault{kind: deleteKey, name: "n", key: "lock", worker: everyone, from: 1_200_000_000, to: 1_200_000_000})
	s.expect(t)

	s = tell()
	s.fault(fault{kind: killPrimary, lossy: true, worker: everyone, from: 1_200_000_000, to: 1_300_000_000, quiet: 1_300_000_000})
	s.expect(t)
}

// The lease of w0 is over at 2, and it believes no longer, but its Context is alive beside the grant of w1.
func TestContextPastTheGrant(t *testing.T) {
	tell := func(ended, release float64) *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(1.1, evGot, "w0.0.0.0", got(1_000_000, 2))
		s.client(1.2, evCall, "w1.0.0.0")
		s.client(2.2, evGot, "w1.0.0.0", got(2_100_000, 3))
		s.client(2.3, evRelease, "w1.0.0.0")
		s.client(2.3, evReleased, "w1.0.0.0")
		s.client(ended, evEnded, "w0.0.0.0")
		s.client(release, evRelease, "w0.0.0.0")
		s.client(release, evReleased, "w0.0.0.0", func(e *Event) { e.Err = notHeld })
		return s
	}
	excused := func(s *story, n int) {
		t.Helper()
		s.expect(t)
		if v := judge(s.history); len(v.excused) != n {
			t.Errorf("%d reasons are to be counted: %v", n, v.excused)
		}
	}
	tell(2.5, 3).expect(t, judgeContexts)
	excused(tell(1.9, 3), 0)
	excused(tell(2.1019, 3), 0) // the tolerance
	// The goroutine that tells of it may be late: Release ends the Context before it sends anything.
	excused(tell(2.5, 2.05), 0)

	// A Context that nobody heard the end of lives until its process dies.
	s := tell(2.5, 3)
	s.events = s.events[:len(s.events)-3]
	s.expect(t, judgeContexts)
	s.died(0, 0, second*2)
	excused(s, 0)

	for _, c := range []struct {
		fault   fault
		from    float64
		to      float64
		excused bool
	}{
		{fault{kind: deleteKey, name: "n", key: "lock", worker: everyone}, 1.5, 1.5, true},
		{fault{kind: deleteKey, name: "n", key: "lock", worker: everyone}, 0.5, 0.5, false}, // before its grant
		{fault{kind: deleteKey, name: "n", key: "lock", worker: everyone}, 2.2, 2.2, false}, // after the other's
		{fault{kind: deleteKey, name: "n", key: "queue", worker: everyone}, 1.5, 1.5, false},
		{fault{kind: deleteKey, name: "other", key: "lock", worker: everyone}, 1.5, 1.5, false},
		{fault{kind: resetLock, name: "n", key: "lock", worker: everyone}, 1.5, 1.5, true},
		{fault{kind: killPrimary, lossy: true, worker: everyone}, 1.5, 1.6, true},
		{fault{kind: killPrimary, worker: everyone}, 1.5, 1.6, false},
		{fault{kind: stopClient, worker: 0}, 1.5, 2.4, true},
		{fault{kind: stopClient, worker: 0}, 1.5, 2.01, true},  // it runs again, but not for long
		{fault{kind: stopClient, worker: 0}, 1.5, 1.99, false}, // for long enough
		{fault{kind: stopClient, worker: 0}, 2.2, 2.4, false},  // after the grant
		{fault{kind: stopClient, worker: 1}, 1.5, 2.4, false},  // somebody else
		{fault{kind: deafLinks, worker: 0}, 1.5, 2.4, false},
		{fault{kind: blackHole, worker: 0}, 1.5, 2.4, false},
		{fault{kind: flushFunctions, worker: everyone}, 1.5, 1.5, false},
	} {
		s := tell(2.5, 3)
		c.fault.from, c.fault.to = int64(c.from*1e9), int64(c.to*1e9)
		c.fault.quiet = c.fault.to
		s.fault(c.fault)
		if c.excused {
			excused(s, 1)
		} else {
			s.expect(t, judgeContexts)
		}
	}

	// It goes on: the first grant is excused, but not the next, and that fails it once.
	s = tell(4.5, 5)
	s.events = s.events[:len(s.events)-2]
	s.fault(fault{kind: stopClient, worker: 0, from: 1_500_000_000, to: 2_200_000_000})
	for _, at := range []float64{3, 3.3} { // a grant that no client got to know, and its renewal
		s.onServer(at, srvGrant, "w1.0.0.1:b", "lock_extend", "w1.0.0.1:b", 1000)
	}
	s.expect(t, judgeContexts)
	if v := judge(s.history); v.found(judgeContexts) != 1 || len(v.excused) != 1 {
		t.Errorf("one violation and one excuse, not %v, %v", v.violations, v.excused)
	}
}

// MONITOR alone shows the grant to a client that died before it could tell, and renewals.
func TestContextPastTheServersGrant(t *testing.T) {
	for _, c := range []struct {
		ended float64
		token string
		found []string
	}{
		{2.5, "w1.0.0.0:b", []string{judgeContexts}},
		{1.9, "w1.0.0.0:b", nil},
		{2.5, "w0.0.0.0:a", nil}, // its own renewal
	} {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(1.1, evGot, "w0.0.0.0", got(1_000_000, 2))
		s.client(c.ended, evEnded, "w0.0.0.0")
		s.onServer(1, srvGrant, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 1000)
		s.onServer(2.1, srvGrant, c.token, "lock_acquire", c.token, 1000)
		s.expect(t, c.found...)
	}
}

// A Context that outlived Release is alive until it ends, though the lock was given back in good order.
func TestContextPastRelease(t *testing.T) {
	tell := func(alive string) *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(1.1, evGot, "w0.0.0.0", got(1_000_000, 2))
		s.client(1.2, evRelease, "w0.0.0.0")
		s.client(1.3, alive, "w0.0.0.0")
		s.client(1.3, evReleased, "w0.0.0.0")
		s.client(1.4, evCall, "w1.0.0.0")
		s.client(1.5, evGot, "w1.0.0.0", got(1_450_000, 2.5))
		s.client(1.6, evRelease, "w1.0.0.0")
		s.client(1.6, evReleased, "w1.0.0.0")
		return s
	}
	tell(evAlive).expect(t, judgeContexts)
	tell(evEnded).expect(t)
}

func TestTokensOutOfOrder(t *testing.T) {
	s := newStory()
	s.client(1, evCall, "w0.0.0.0")
	s.client(1.1, evGot, "w0.0.0.0", got(2_000_000_000, 2))
	s.client(1.2, evRelease, "w0.0.0.0")
	s.client(1.2, evReleased, "w0.0.0.0")
	s.client(1.3, evCall, "w0.0.0.1")
	s.client(1.4, evGot, "w0.0.0.1", got(1_999_999_999, 2.4))
	s.client(1.5, evRelease, "w0.0.0.1")
	s.client(1.5, evReleased, "w0.0.0.1")
	s.expect(t, judgeIntervals, judgeLinear)
}

func TestServerGrantsTwice(t *testing.T) {
	s := newStory()
	s.onServer(1, srvGrant, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 1000)
	s.onServer(1.5, srvGrant, "w1.0.0.0:b", "lock_acquire", "w1.0.0.0:b", 1000)
	s.expect(t, judgeIntervals)
}

// The old primary lets its holder release, beside that of the new one.
func TestTwoPrimaries(t *testing.T) {
	s := newStory()
	s.client(1, evCall, "w0.0.0.0")
	s.client(1.1, evGot, "w0.0.0.0", got(1_000_500, 2.1))
	s.client(1.2, evCall, "w1.0.0.0")
	s.client(1.5, evGot, "w1.0.0.0", got(1_400_000, 2.5))
	s.client(1.6, evRelease, "w0.0.0.0")
	s.client(1.6, evReleased, "w0.0.0.0")
	s.client(1.9, evRelease, "w1.0.0.0")
	s.client(1.9, evReleased, "w1.0.0.0")
	s.expect(t, judgeIntervals, judgeLinear, judgeContexts)
	s.fault(fault{kind: stopPrimary, lossy: true, worker: everyone, from: 1_200_000_000, to: 1_300_000_000, quiet: 1_450_000_000})
	s.expect(t)
}

// shares says how many may hold the lock together.
func shares(n int) func(*Event) { return func(e *Event) { e.Share = n } }

func TestHeldTogether(t *testing.T) {
	tell := func(first, second int) *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0", shares(first))
		s.client(1.1, evGot, "w0.0.0.0", got(1_000_000, 2.1))
		s.client(1.2, evCall, "w1.0.0.0", shares(second))
		s.client(1.3, evGot, "w1.0.0.0", got(1_000_000, 2.2))
		if first == 0 || second == 0 {
			s.events[3].Fence = 1_250_000
		}
		s.client(1.6, evRelease, "w1.0.0.0")
		s.client(1.6, evReleased, "w1.0.0.0")
		s.client(1.9, evRelease, "w0.0.0.0")
		s.client(1.9, evReleased, "w0.0.0.0")
		s.onServer(1.05, srvFence, "", "lock_acquire", "w0.0.0.0:a", 1_000_000)
		return s
	}
	tell(-1, -1).expect(t)
	tell(-1, 3).expect(t)
	tell(-1, 0).expect(t, judgeIntervals, judgeContexts)
	tell(0, -1).expect(t, judgeIntervals, judgeContexts)

	s := tell(-1, 0) // after the first one's own deadline
	s.events[1].Deadline = int64(1.25e9)
	s.client(1.25, evEnded, "w0.0.0.0")
	s.expect(t)

	s = tell(0, -1) // heard of when it had run out
	s.events[3].Deadline = int64(1.25e9)
	s.expect(t, judgeContexts)

	s = tell(-1, -1)
	s.client(3, evCall, "w2.0.0.0", shares(-1))
	s.client(3.1, evGot, "w2.0.0.0", got(999_999, 4))
	s.expect(t, judgeIntervals)
	lossy := fault{kind: manualFailover, lossy: true, worker: everyone, from: 2 * second, to: 2 * second, quiet: 2 * second}
	s.fault(lossy)
	s.expect(t)

	s = tell(-1, -1) // one alone has no such excuse
	s.client(3, evCall, "w2.0.0.0")
	s.client(3.1, evGot, "w2.0.0.0", got(999_999, 4))
	s.fault(lossy)
	s.expect(t, judgeIntervals)
}

// One of those who share the lock, as the server grants it.
func (s *story) share(at float64, token string, number int64) {
	s.onServer(at, srvShare, token, "lock_acquire", token, number)
}

func TestServerLetsInTooMany(t *testing.T) {
	tell := func(third int, left float64) *story {
		s := newStory()
		for i, share := range []int{-1, 2, third} {
			op := fmt.Sprintf("w%d.0.0.0", i)
			s.client(1, evCall, op, shares(share))
			s.client(5, evFailed, op)
		}
		s.share(1.1, "w0.0.0.0:a", 1000)
		s.share(1.2, "w1.0.0.0:b", 1000)
		if left > 0 {
			s.onServer(left, srvLeave, "w1.0.0.0:b", "lock_release", "w1.0.0.0:b", 0)
		}
		if third == 0 {
			s.onServer(1.8, srvGrant, "w2.0.0.0:c", "lock_acquire", "w2.0.0.0:c", 1000)
		} else {
			s.share(1.8, "w2.0.0.0:c", 1000)
			s.share(1.9, "w2.0.0.0:c", 1000) // renewed
		}
		return s
	}
	tell(-1, 0).expect(t)
	tell(3, 0).expect(t)
	tell(2, 0).expect(t, judgeIntervals)
	tell(2, 1.5).expect(t)
	tell(0, 0).expect(t, judgeIntervals)
	tell(0, 1.5).expect(t, judgeIntervals)

	s := newStory() // beside one who holds it alone
	s.client(1, evCall, "w1.0.0.0", shares(-1))
	s.client(5, evFailed, "w1.0.0.0")
	s.onServer(1, srvGrant, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 1000)
	s.share(1.5, "w1.0.0.0:b", 1000)
	s.expect(t, judgeIntervals)

	s = newStory()
	s.onServer(1, srvGrant, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 1000)
	s.onServer(1.9, srvRenew, "w0.0.0.0:a", "lock_extend", "w0.0.0.0:a", 1000)
	s.onServer(2.1, srvGrant, "w1.0.0.0:b", "lock_acquire", "w1.0.0.0:b", 1000)
	s.expect(t, judgeIntervals)
}

func TestRoomIsGivenOut(t *testing.T) {
	tell := func(first, second int) *story { // these wait, two hold it and one leaves
		s := newStory()
		for i, share := range []int{first, second} {
			op := fmt.Sprintf("w%d.0.0.0", i)
			s.client(1, evCall, op, shares(share))
			s.client(9, evFailed, op)
			s.onServer(1.5+float64(i)/10, srvEnqueue, op+":a", "lock_acquire", op+":a", 0)
		}
		for _, op := range []string{"w3.0.0.0", "w4.0.0.0"} {
			s.client(0.1, evCall, op, shares(2))
			s.client(0.2, evFailed, op)
			s.share(0.2, op+":b", 9000)
		}
		s.onServer(2, srvLeave, "w4.0.0.0:b", "lock_release", "w4.0.0.0:b", 0)
		s.onServer(2.5, srvFence, "", "lock_acquire", "w5.0.0.0:c", 1_000_000) // another call
		return s
	}
	tell(2, 2).expect(t, judgeFIFO)
	tell(-1, 0).expect(t, judgeFIFO)
	tell(0, -1).expect(t) // a writer waits for the last one, and a reader behind it
	tell(1, 2).expect(t)

	s := tell(3, -1)
	s.onServer(2, srvShare, "w0.0.0.0:a", "lock_release", "w4.0.0.0:b", 1000)
	s.onServer(2, srvGone, "w0.0.0.0:a", "lock_release", "w4.0.0.0:b", 0)
	s.expect(t, judgeFIFO) // but not the other one
	s.onServer(2, srvShare, "w1.0.0.0:a", "lock_release", "w4.0.0.0:b", 1000)
	s.onServer(2, srvGone, "w1.0.0.0:a", "lock_release", "w4.0.0.0:b", 0)
	s.expect(t) // in the order of the server

	s = tell(0, -1)
	s.share(3, "w1.0.0.0:a", 1000)
	s.expect(t, judgeFIFO) // which overtakes the writer

	s = tell(0, -1)
	s.onServer(3, srvLeave, "w3.0.0.0:b", "lock_release", "w3.0.0.0:b", 0)
	s.onServer(3.5, srvFence, "", "lock_acquire", "w5.0.0.0:c", 2_000_000)
	s.expect(t, judgeFIFO) // the writer is not let in

	s = tell(0, -1)
	s.onServer(3, srvLeave, "w3.0.0.0:b", "lock_release", "w3.0.0.0:b", 0)
	s.onServer(3, srvGrant, "w0.0.0.0:a", "lock_release", "w3.0.0.0:b", 1000)
	s.onServer(3, srvGone, "w0.0.0.0:a", "lock_release", "w3.0.0.0:b", 0)
	s.onServer(3.5, srvFree, "", "lock_release", "w0.0.0.0:a", 0)
	s.onServer(3.5, srvShare, "w1.0.0.0:a", "lock_release", "w0.0.0.0:a", 1000)
	s.onServer(3.5, srvGone, "w1.0.0.0:a", "lock_release", "w0.0.0.0:a", 0)
	s.onServer(4, srvFence, "", "lock_acquire", "w5.0.0.0:c", 2_000_000)
	s.expect(t)
}

func TestLostWrite(t *testing.T) {
	s := newStory()
	s.addRegister(registerEvent{t: second, op: "w0.0.0.0", name: "n", write: true, base: 0, value: 0})
	s.addRegister(registerEvent{t: 2 * second, op: "w1.0.0.0", name: "n", write: true, base: 0, value: 1})
	s.expect(t, judgeRegister)
}

func TestOvertaken(t *testing.T) {
	tell := func() *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(2, evCall, "w1.0.0.0")
		s.client(4, evFailed, "w0.0.0.0")
		s.client(4, evFailed, "w1.0.0.0")
		s.onServer(1, srvEnqueue, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 0)
		s.onServer(2, srvEnqueue, "w1.0.0.0:b", "lock_acquire", "w1.0.0.0:b", 0)
		s.onServer(3, srvGrant, "w1.0.0.0:b", "lock_release", "w2.0.0.0:c", 1000)
		return s
	}
	tell().expect(t, judgeFIFO)

	// A dead waiter is dropped, not overtaken; and a server that keeps its data keeps the order.
	for _, f := range []fault{{kind: stopClient, worker: 0}, {kind: stopPrimary, worker: everyone}, {kind: killPrimary, worker: everyone}} {
		s := tell()
		f.from, f.to = 1_500_000_000, 2*second
		s.fault(f)
		s.expect(t, judgeFIFO)
	}

	s := tell()
	s.fault(fault{kind: killPrimary, lossy: true, worker: everyone, from: 1_500_000_000, to: 2 * second, quiet: 2 * second})
	s.expect(t)
}

func TestDropped(t *testing.T) {
	tell := func() *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(4, evFailed, "w0.0.0.0")
		s.onServer(1, srvEnqueue, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 0)
		s.onServer(2, srvGone, "w0.0.0.0:a", "lock_release", "w1.0.0.0:b", 0)
		return s
	}
	tell().expect(t, judgeFIFO)

	for _, f := range []fault{{kind: stopClient, worker: 0}, {kind: stopPrimary, worker: everyone}, {kind: deleteKey, name: "n", key: "state", worker: everyone}} {
		s := tell()
		f.from, f.to = 1_500_000_000, 1_600_000_000
		s.fault(f)
		s.expect(t)
	}
}

func TestNotHandedOver(t *testing.T) {
	tell := func() *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(4, evFailed, "w0.0.0.0")
		s.onServer(1, srvEnqueue, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 0)
		s.onServer(2, srvFree, "", "lock_release", "w1.0.0.0:b", 0)
		return s
	}
	tell().expect(t, judgeFIFO)

	s := tell()
	s.fault(fault{kind: moveSlot, worker: everyone, from: 1_500_000_000, to: 2_500_000_000})
	s.expect(t)
}

// Of what came before MONITOR was interrupted, only what looks wrong is not known.
func TestUnseen(t *testing.T) {
	tell := func(winner float64) (unknown int) {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(winner, evCall, "w1.0.0.0")
		s.client(3.5, evFailed, "w0.0.0.0")
		s.client(3.5, evFailed, "w1.0.0.0")
		s.onServer(1, srvEnqueue, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 0)
		s.onServer(2.5, srvGap, "", "", "", 0)
		if winner < 1 {
			s.onServer(2.7, srvEnqueue, "w1.0.0.0:b", "lock_acquire", "w1.0.0.0:b", 0)
			s.onServer(3, srvGrant, "w0.0.0.0:a", "lock_release", "w2.0.0.0:c", 1000)
		} else {
			s.onServer(3, srvGrant, "w1.0.0.0:b", "lock_release", "w2.0.0.0:c", 1000)
		}
		s.expect(t)
		for _, n := range judge(s.history).excused {
			unknown += n
		}
		return unknown
	}
	if n := tell(0.5); n != 0 {
		t.Errorf("%d grants are unknown, but they were in order", n)
	}
	if n := tell(2); n != 1 {
		t.Errorf("%d grants are unknown, 1 may have been out of order", n)
	}
}

// A queue that nobody asked about for as long as places are kept is gone.
func TestExpiredQueue(t *testing.T) {
	s := newStory()
	s.client(0.1, evCall, "w2.0.0.0") // holds it all the time
	s.client(0.2, evGot, "w2.0.0.0", got(150_000, 31))
	s.client(1, evCall, "w0.0.0.0")
	s.client(20, evCall, "w1.0.0.0")
	s.client(21, evRelease, "w2.0.0.0")
	s.client(21, evReleased, "w2.0.0.0")
	s.client(21.1, evGot, "w1.0.0.0", got(21_000_000, 31))
	s.client(30, evFailed, "w0.0.0.0")
	s.onServer(1, srvEnqueue, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 0)
	s.onServer(20, srvEnqueue, "w1.0.0.0:b", "lock_acquire", "w1.0.0.0:b", 0)
	s.onServer(21, srvGrant, "w1.0.0.0:b", "lock_release", "w2.0.0.0:c", 1000)
	s.expect(t)
}

// A client that called before MONITOR was interrupted may have its place from before, though we see it later.
func TestQueuedUnseen(t *testing.T) {
	tell := func(call float64) *story {
		s := newStory()
		s.client(call, evCall, "w1.0.0.0")
		s.client(2.58, evCall, "w0.0.0.0")
		s.client(3.5, evFailed, "w0.0.0.0")
		s.client(3.5, evFailed, "w1.0.0.0")
		s.onServer(2.5, srvGap, "", "", "", 0)
		s.onServer(2.6, srvEnqueue, "w0.0.0.0:a", "lock_acquire", "w0.0.0.0:a", 0)
		s.onServer(2.7, srvEnqueue, "w1.0.0.0:b", "lock_acquire", "w1.0.0.0:b", 0)
		s.onServer(3, srvGrant, "w1.0.0.0:b", "lock_release", "w2.0.0.0:c", 1000)
		return s
	}
	tell(2.6).expect(t, judgeFIFO)
	tell(2.4).expect(t)
	if v := judge(tell(2.4).history); len(v.excused) != 1 {
		t.Errorf("it is to be counted: %v", v.excused)
	}
}

func TestStall(t *testing.T) {
	tell := func() *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.client(5, evGot, "w0.0.0.0", got(5_000_000, 6))
		s.client(5.1, evRelease, "w0.0.0.0")
		s.client(5.1, evReleased, "w0.0.0.0")
		return s
	}
	tell().expect(t, judgeWaiting)

	s := tell()
	s.fault(fault{kind: killPrimary, worker: everyone, from: 1_500_000_000, to: 3 * second})
	s.expect(t)
}

// The call of a release got lost: the lock stays where it is until the lease is over, though Release says in
// the end that it was given back.
func TestLostRelease(t *testing.T) {
	tell := func(released float64) *story {
		s := newStory()
		s.client(0.5, evCall, "w1.0.0.0")
		s.client(0.6, evGot, "w1.0.0.0", got(550_000, 2))
		s.client(1, evCall, "w0.0.0.0")
		s.client(1.1, evRelease, "w1.0.0.0")
		s.client(released, evReleased, "w1.0.0.0")
		s.client(4.5, evGot, "w0.0.0.0", got(4_500_000, 5.5))
		s.client(4.6, evRelease, "w0.0.0.0")
		s.client(4.6, evReleased, "w0.0.0.0")
		return s
	}
	tell(1.2).expect(t, judgeWaiting)
	tell(4.7).expect(t)
}

// A lock that was handed over to a dead client costs two seconds, whatever lease the server gave it.
func TestHandedOverForTooLong(t *testing.T) {
	tell := func(served float64) *story {
		s := newStory()
		s.client(1, evCall, "w0.0.0.0")
		s.onServer(1.1, srvGrant, "w1.0.0.0:b", "lock_release", "w2.0.0.0:c", 9000)
		s.client(served, evGot, "w0.0.0.0", got(int64(served*1e6), served+1))
		s.client(served+0.1, evRelease, "w0.0.0.0")
		s.client(served+0.1, evReleased, "w0.0.0.0")
		return s
	}
	tell(5.9).expect(t)
	tell(6.2).expect(t, judgeWaiting)
}

// Each further client that is dead costs two seconds more: one that was killed until its places have lapsed, one
// that goes on until it has had the time to call.
func TestSeveralSilenced(t *testing.T) {
	for _, c := range []struct {
		kind    string
		ended   float64
		excused bool
	}{{stopClient, 9.5, true}, {stopClient, 5, false}, {killClient, 5, true}} {
		s := newStory()
		s.client(10, evCall, "w0.0.0.0")
		s.client(14, evGot, "w0.0.0.0", got(14_000_000, 15))
		s.client(14.1, evRelease, "w0.0.0.0")
		s.client(14.1, evReleased, "w0.0.0.0")
		for worker := range 2 {
			s.fault(fault{kind: c.kind, worker: 1 + worker, from: 4 * second, to: int64(c.ended * 1e9)})
		}
		if !c.excused {
			s.expect(t, judgeWaiting)
			continue
		}
		s.expect(t)
		if v := judge(s.history); len(v.excused) != 1 {
			t.Errorf("it is to be counted: %v", v.excused)
		}
	}
}
