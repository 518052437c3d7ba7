// Package redislocktest is for unit tests of code that takes locks. It gives a real [redislock.Locker] on a
// server in memory: no Redis, no network, no sleeping. In a testing/synctest bubble, a lease of ten seconds
// runs out in no time:
//
//	func TestNightlyIsSkipped(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			locker, server := redislocktest.New(t)
//			server.Hold("nightly") // somebody else
//			result, err := nightly(t.Context(), locker, work)
//			if result != "skipped: another machine is at it" || err != nil {
//				t.Error(result, err)
//			}
//		})
//	}
//
//	func TestNightlyStopsWhenTheLockIsLost(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			locker, server := redislocktest.New(t)
//			time.AfterFunc(10*time.Minute, func() { server.Down() })
//			start := time.Now()
//			result, err := nightly(t.Context(), locker, work)
//			if result != "" || !errors.Is(err, redislock.ErrLost) {
//				t.Error(result, err)
//			}
//			if worked := time.Since(start); worked > 11*time.Minute {
//				t.Errorf("worked on for %v", worked)
//			}
//		})
//	}
//
// Call [New] inside the bubble: then server and Lockers live on its clock. Everything works outside of a bubble
// as well, and then takes its time.
//
// To test this, do that:
//
//   - A busy lock is skipped: [Server.Hold].
//   - The queue, and who is next: [Server.Queue], [Server.State].
//   - Somebody else who shares the lock (redislock.WithShared, WithHolders): one more [Server.Locker]. Those of Hold and
//     Queue want it alone.
//   - Work stops when the lock is taken away: [Server.Lose]; when Redis is gone: [Server.Down].
//   - An outage is not taken for a busy lock: [Server.Refuse], [Server.Down], then [Server.Up].
//   - The holder dies, and its lease runs out: [Server.Locker] and [Server.Kill], or [Other.Kill].
//   - A reply is lost, the network is slow, a clock is wrong: [Server.LoseReply], [Server.Delay], [Server.StepClock].
//   - Code that calls redislock.New itself: [Server.Client].
//
// The server runs the functions of lua/lock.lua in plain Go. A property test of this project compares the
// two, step by step. This differs from a real server:
//
//   - A call takes no time, unless [Server.Delay] says so.
//   - A call that was given up during an outage is never carried out. On a real network it may arrive later.
//   - No signal is lost, and calls do not overtake one another.
//   - There is one server. It has no slots and no failover. Its replicas confirm at once, as many as are
//     asked for, unless [Server.SetReplicas] says how many there are.
//   - The function library is always there, in the version of this package. Options.LoadMode does nothing,
//     and no call returns a *redislock.VersionError.
//   - No rights are missing, and memory has no limit.
//   - The server knows no other commands, see [Client].
package redislocktest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/memory"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

// TB is what this package needs of a testing.TB. Ginkgo's GinkgoT() has it, too.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Server is a server in memory, and the network between it and its Lockers. It is safe for concurrent
// use. What its methods cannot do ends the test (t.Fatalf), so call them in the goroutine of the test.
type Server struct {
	t      TB
	shared *memory.Shared
	prefix string
	admin  *redislock.Locker // a process that no fault of the network concerns
	seen   *keysSeen

	mu      sync.Mutex // before the mutex of shared; never held over anything that blocks
	lockers map[*redislock.Locker]*Client
	order   []*redislock.Locker
	others  []*Other
	silent  chan struct{} // closed when the server can be reached again; nil: it can
	refused bool
	lose    int // replies
	delay   time.Duration
}

// New returns a Locker on a new server that knows no locks. Give it one Options, or none for the
// defaults. The Locker is closed when the test is over.
//
// The server's own methods take names as this Locker does: with its Options.Prefix.
func New(t TB, options ...redislock.Options) (*redislock.Locker, *Server) {
	t.Helper()
	s := &Server{
		t:       t,
		shared:  memory.NewShared(redislock.Version),
		seen:    &keysSeen{},
		lockers: map[*redislock.Locker]*Client{},
		prefix:  "lock",
	}
	if len(options) > 0 && options[0].Prefix != "" {
		s.prefix = options[0].Prefix
	}
	t.Cleanup(s.close)
	locker := s.Locker(options...)
	admin, err := redislock.New(&Client{server: s, isAdmin: true}, redislock.Options{Prefix: s.prefix})
	if err != nil {
		t.Fatalf("redislocktest: %v", err)
	}
	s.admin = admin
	return locker, s
}

// Locker returns one more Locker, as another process would have it. It takes Options as New does, and is
// closed when the test is over.
func (s *Server) Locker(options ...redislock.Options) *redislock.Locker {
	s.t.Helper()
	if len(options) > 1 {
		s.t.Fatalf("redislocktest: %d Options: one at most", len(options))
	}
	client := s.Client()
	locker, err := redislock.New(client, slices.Concat(options, []redislock.Options{{}})[0])
	if err != nil {
		s.t.Fatalf("redislocktest: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lockers[locker] = client
	s.order = append(s.order, locker)
	return locker
}

func (s *Server) close() {
	s.Up()
	s.mu.Lock()
	lockers := slices.Concat(s.order, []*redislock.Locker{s.admin})
	for _, o := range s.others {
		o.leave()
	}
	s.mu.Unlock()
	for _, locker := range lockers {
		if locker != nil {
			locker.Close()
		}
	}
}

// State shows who holds a lock and who waits for it, also during an outage.
func (s *Server) State(name string) redislock.State {
	s.t.Helper()
	state, err := s.admin.Inspect(context.Background(), name)
	if err != nil {
		s.t.Fatalf("redislocktest: %v", err)
	}
	return state
}

// Lose takes the lock away from its holder, as redislock's Reset does: the next in the queue gets it,
// if there is one. The former holder finds out at its next renewal, a third of its lease later at the latest:
// then its Context ends with ErrLost.
func (s *Server) Lose(name string) {
	s.t.Helper()
	held, err := s.admin.Reset(context.Background(), name)
	if err == nil && !held {
		err = fmt.Errorf("nobody holds %q", name)
	}
	if err != nil {
		s.t.Fatalf("redislocktest: Lose: %v", err)
	}
}

// Kill is the death of a process: nothing is released. Its leases run out, and its places in queues lapse.
// From then on, each call of the Locker fails at once, so the Context of what it holds ends with ErrLost,
// ahead of the lease's end.
func (s *Server) Kill(locker *redislock.Locker) {
	s.t.Helper()
	s.mu.Lock()
	client := s.lockers[locker]
	s.mu.Unlock()
	if client == nil {
		s.t.Fatalf("redislocktest: Kill: the Locker is none of this server; for one that redislock.New made there is Client.Kill")
		return
	}
	client.Kill()
}

// StepClock puts the server's clock forward, or back, as a failover to a server with another clock does.
// Forward, leases end sooner than their holders can know.
func (s *Server) StepClock(by time.Duration) { s.shared.StepClock(by) }

// SetReplicas says how many replicas there are from now on, for redislock.WithReplicas.
func (s *Server) SetReplicas(n int) { s.shared.SetReplicas(n) }

// keysSeen is a wire.Server that notes the keys of the names that it sees.
type keysSeen struct {
	wire.Server
	byName sync.Map
}

func (s *keysSeen) Inspect(ctx context.Context, k wire.Keys) (wire.State, error) {
	s.byName.Store(k.Name, k)
	return s.Server.Inspect(ctx, k)
}

// keys returns the keys of a lock.
func (s *Server) keys(name string) wire.Keys {
	s.t.Helper()
	s.State(name)
	keys, _ := s.seen.byName.Load(name)
	return keys.(wire.Keys)
}
