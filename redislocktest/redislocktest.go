// Package redislocktest is for unit tests of code that takes locks. It provides a real [redislock.Locker]
// on a server in memory: no Redis, no network, no sleeping. In a testing/synctest bubble, a lease of ten
// seconds runs out in no time:
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
// Call [New] inside the bubble, so that server and Lockers use its clock. Outside of a bubble everything
// works too, in real time.
//
// What to use for which test:
//
//   - Your code skips a busy lock: [Server.Hold].
//   - The queue, and who is next: [Server.Queue], [Server.State].
//   - Somebody else shares the lock (redislock.WithShared, WithHolders): a second [Server.Locker]. Hold and
//     Queue want the lock alone.
//   - Your code stops when the lock is taken away: [Server.Lose]; when Redis is gone: [Server.Down].
//   - Your code tells an outage from a busy lock: [Server.Refuse], [Server.Down], then [Server.Up].
//   - The holder dies, and its lease runs out: [Server.Locker] and [Server.Kill], or [Other.Kill].
//   - A lost reply, a slow network, a wrong clock: [Server.LoseReply], [Server.Delay], [Server.StepClock].
//   - Your code calls redislock.New itself: [Server.Client].
//
// The server runs the functions of lua/lock.lua in plain Go. A property test of this project compares the
// two, step by step. It differs from a real server:
//
//   - A call takes no time, unless you set [Server.Delay].
//   - The server never carries out a call that was given up during an outage. On a real network the call
//     may arrive later.
//   - No signal is lost, and calls do not overtake one another.
//   - There is one server, without slots and failover. All replicas confirm at once, as many as you ask
//     for, unless [Server.SetReplicas] sets their number.
//   - The function library is always there, in the version of this package. Options.LoadMode does nothing,
//     and no call returns a *redislock.VersionError.
//   - The user has all rights, and memory has no limit.
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
// use. A method that fails ends the test with t.Fatalf, so call it in the goroutine of the test.
type Server struct {
	t      TB
	shared *memory.Shared
	prefix string
	admin  *redislock.Locker // not affected by Down, Refuse, LoseReply and Delay
	seen   *keysSeen

	mu      sync.Mutex // before the mutex of shared; nobody blocks while holding it
	lockers map[*redislock.Locker]*Client
	order   []*redislock.Locker
	others  []*Other
	silent  chan struct{} // closed by Up; nil: no outage
	refused bool
	lose    int // how many replies to lose
	delay   time.Duration
}

// New returns a Locker on a new server that knows no locks. Pass one Options, or none for the defaults.
// The end of the test closes the Locker. The server's own methods use the same Options.Prefix.
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

// Locker returns one more Locker, as another process has it. It takes Options as New does. The end of the
// test closes it.
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

// Lose takes the lock away from its holder, as redislock's Reset does, and gives it to the next waiter. The
// Context of the former holder ends with ErrLost at its next renewal, within a third of its lease. If nobody
// holds the lock, the test ends.
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

// Kill simulates the death of a process. It releases nothing: leases run out, and places in queues lapse.
// From then on each call of the Locker fails at once, so the Contexts of its locks end with ErrLost, ahead
// of the end of their leases.
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

// StepClock puts the server's clock forward or back, as a failover to a server with another clock does. A
// step forward ends leases sooner than their holders can know.
func (s *Server) StepClock(by time.Duration) { s.shared.StepClock(by) }

// SetReplicas sets the number of replicas from now on, for redislock.WithReplicas.
func (s *Server) SetReplicas(n int) { s.shared.SetReplicas(n) }

// keysSeen is a wire.Server that notes the keys of each name.
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
