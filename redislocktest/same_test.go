package redislocktest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

// process is one user of a server, and what it sees.
type process struct {
	*redislock.Locker
	*scene
}

// scene is one case on one server: two processes, and what they saw, as lines.
type scene struct {
	t    *testing.T
	ctx  context.Context
	a, b process

	mu   sync.Mutex
	seen []string
}

const (
	short = 300 * time.Millisecond // a lease whose end a case waits for: real time on a real server
	long  = 3 * time.Second        // one in which a slow machine makes a call
)

// The rules, as a user of the package sees them. Each case uses the lock "x" alone.
var sameCases = []struct {
	name string
	play func(s *scene)
	want string
}{
	{"exclusive", func(s *scene) {
		lock := s.a.acquire("a")
		s.b.try("b", false)
		s.state()
		s.say("release: %s", outcome(lock.Release(s.ctx)))
		s.say("again: %s", outcome(lock.Release(s.ctx)))
		s.state()
		next := s.b.try("b", true)
		s.say("the fence grows: %t", next.Fence() > lock.Fence())
	}, `a has it
b tries: busy
a holds it, expires
release: ok
again: not held
free
b tries: ok
the fence grows: true`},

	{"first come, first served", func(s *scene) {
		lock := s.a.acquire("a")
		done := make(chan error)
		for i := range 3 {
			go func() {
				who := fmt.Sprint("b", i)
				lock, err := s.b.Acquire(s.ctx, "x", redislock.WithOwner(who), redislock.WithLease(time.Minute))
				if err == nil {
					s.say("%s has it", who)
					err = lock.Release(s.ctx)
				}
				done <- err
			}()
			s.waiting(i + 1)
		}
		s.b.try("newcomer", false)
		s.state()
		released := lock.Release(s.ctx)
		for range 3 {
			released = errors.Join(released, <-done)
		}
		s.say("released: %s", outcome(released))
	}, `a has it
newcomer tries: busy
a holds it, expires; b0 waits, 1m0s; b1 waits, 1m0s; b2 waits, 1m0s
b0 has it
b1 has it
b2 has it
released: ok`},

	{"a wait that is given up", func(s *scene) {
		lock := s.a.acquire("a")
		ctx, cancel := context.WithCancel(s.ctx)
		waited := make(chan error)
		go func() { waited <- ignoreLock(s.b.Acquire(ctx, "x", redislock.WithOwner("b"))) }()
		s.eventually(func() bool { // it checks in, so it knows that it waits
			state, err := s.a.Inspect(s.ctx, "x")
			return err == nil && len(state.Waiters) == 1 && state.Waiters[0].Waited+state.Waiters[0].LapsesIn > 30100*time.Millisecond
		})
		cancel()
		s.say("b: %s", outcome(<-waited))
		s.waiting(0)
		s.state()
		s.say("release: %s", outcome(lock.Release(s.ctx)))
		s.state()
	}, `a has it
b: busy, canceled
a holds it, expires
release: ok
free`},

	{"a lease runs out", func(s *scene) {
		lock := s.a.acquire("a", redislock.WithLease(short), redislock.WithoutRenewal())
		next := s.b.acquire("b")
		s.say("a's lock: %s", outcome(context.Cause(lock.Context())))
		s.say("release: %s", outcome(lock.Release(s.ctx)))
		s.say("the fence grows: %t", next.Fence() > lock.Fence())
		s.state()
	}, `a has it
b has it
a's lock: lost
release: not held
the fence grows: true
b holds it, expires`},

	{"a lease is renewed", func(s *scene) {
		lock := s.a.acquire("a", redislock.WithLease(long))
		first, _ := lock.Deadline()
		s.eventually(func() bool { now, _ := lock.Deadline(); return now.After(first) })
		s.say("a's lock: %s", outcome(context.Cause(lock.Context())))
		s.state()
	}, `a has it
a's lock: ok
a holds it, expires`},

	{"the maximum hold", func(s *scene) {
		lock := s.a.acquire("a", redislock.WithMaxHold(short))
		s.eventually(func() bool { return lock.Context().Err() != nil })
		s.say("a's lock: %s", outcome(context.Cause(lock.Context())))
		s.b.acquire("b")
	}, `a has it
a's lock: lost
b has it`},

	{"extended", func(s *scene) {
		lock := s.a.acquire("a", redislock.WithLease(long), redislock.WithoutRenewal())
		first, _ := lock.Deadline()
		s.say("extend: %s", outcome(lock.Extend(s.ctx, time.Minute)))
		s.eventually(func() bool { return time.Now().After(first) })
		s.state()
		s.say("release: %s", outcome(lock.Release(s.ctx)))
		s.say("extend: %s", outcome(lock.Extend(s.ctx, time.Minute)))
	}, `a has it
extend: ok
a holds it, expires
release: ok
extend: not held`},

	{"no expiry", func(s *scene) {
		lock := s.a.acquire("a", redislock.WithoutExpiry())
		_, expires := lock.Deadline()
		s.say("Deadline: %t", expires)
		s.state()
		s.say("release: %s", outcome(lock.Release(s.ctx)))
	}, `a has it
Deadline: false
a holds it, never expires
release: ok`},

	{"reset", func(s *scene) {
		lock := s.a.acquire("a")
		got := make(chan error)
		go func() { got <- ignoreLock(s.b.Acquire(s.ctx, "x", redislock.WithOwner("b"))) }()
		s.waiting(1)
		taken, err := s.b.Reset(s.ctx, "x")
		s.say("reset: %t, %s", taken, outcome(err))
		s.say("b: %s", outcome(<-got))
		s.say("extend: %s", outcome(lock.Extend(s.ctx, time.Minute)))
		s.say("a's lock: %s", outcome(context.Cause(lock.Context())))
		s.state()
		n, err := s.a.ResetAll(s.ctx)
		s.say("reset all: %d, %s", n, outcome(err))
		taken, err = s.b.Reset(s.ctx, "x")
		s.say("reset: %t, %s", taken, outcome(err))
	}, `a has it
reset: true, ok
b: ok
extend: not held
a's lock: lost
b holds it, expires
reset all: 1, ok
reset: false, ok`},

	{"one token, two processes", func(s *scene) {
		token := redislock.WithToken("a:token")
		first := s.a.acquire("a", token)
		second := s.b.acquire("a", token)
		s.say("one lock: %t", first.Fence() == second.Fence())
		s.say("release: %s", outcome(second.Release(s.ctx)))
		s.say("extend: %s", outcome(first.Extend(s.ctx, time.Minute)))
		s.state()
	}, `a has it
a has it
one lock: true
release: ok
extend: not held
free`},

	{"names", func(s *scene) {
		s.a.acquire("a")
		for _, name := range []string{"{x}", "y{x}", "", "}x"} {
			_, err := s.b.TryAcquire(s.ctx, name)
			s.say("%q: %s", name, outcome(err))
		}
	}, `a has it
"{x}": busy
"y{x}": ok
"": bad
"}x": bad`},

	{"Do", func(s *scene) {
		broken := errors.New("broken")
		err := s.a.Do(s.ctx, "x", func(context.Context, *redislock.Lock) error {
			s.state()
			return broken
		}, redislock.WithOwner("a"))
		s.say("its own error: %t", errors.Is(err, broken))
		s.state()
		err = s.a.Do(s.ctx, "x", func(ctx context.Context, lock *redislock.Lock) error {
			_, err := s.b.Reset(ctx, "x")
			s.say("extend: %s", outcome(lock.Extend(ctx, time.Minute)))
			<-ctx.Done()
			return err
		})
		s.say("Do says that it was lost: %t", errors.Is(err, redislock.ErrLost))
	}, `a holds it, expires
its own error: true
free
extend: not held
Do says that it was lost: true`},

	{"Close", func(s *scene) {
		lock := s.a.acquire("a")
		waited := make(chan error)
		go func() { waited <- ignoreLock(s.b.Acquire(s.ctx, "x")) }()
		s.waiting(1)
		s.b.Close()
		s.say("b: %s", outcome(<-waited))
		s.waiting(0)
		s.state()
		s.a.Close()
		s.say("a's lock: %s", outcome(context.Cause(lock.Context())))
		_, err := s.a.TryAcquire(s.ctx, "x")
		s.say("a: %s", outcome(err))
	}, `a has it
b: closed
a holds it, expires
a's lock: closed
a: closed`},

	{"no replicas", func(s *scene) {
		_, err := s.a.Acquire(s.ctx, "x", redislock.WithReplicas(1, short))
		s.say("a: %s", outcome(err))
		s.state()
	}, `a: not replicated
free`},
}

// TestSame plays the cases on a redis-server and in memory.
func TestSame(t *testing.T) {
	redis, err := redistest.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = redis.Stop() }()
	for _, c := range sameCases {
		t.Run(c.name, func(t *testing.T) {
			t.Run("redis", func(t *testing.T) {
				client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redis.Addr()}})
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				if err := client.Do(t.Context(), client.B().Flushall().Build()).Error(); err != nil {
					t.Fatal(err)
				}
				locker := func() *redislock.Locker {
					l, err := redislock.New(client, redislock.Options{Logger: slog.New(slog.DiscardHandler)})
					if err != nil {
						t.Fatal(err)
					}
					return l
				}
				a, b := locker(), locker()
				defer a.Close()
				defer b.Close()
				played(t, a, b, c.play, c.want)
			})
			t.Run("memory", func(t *testing.T) {
				inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
					server.SetReplicas(0)
					played(t, locker, server.Locker(), c.play, c.want)
				})
			})
		})
	}
}

func played(t *testing.T, a, b *redislock.Locker, play func(s *scene), want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := &scene{t: t, ctx: ctx}
	s.a, s.b = process{a, s}, process{b, s}
	play(s)
	if seen := strings.Join(s.seen, "\n"); seen != want {
		t.Errorf("saw:\n%s\n\nnot:\n%s", seen, want)
	}
}

func (s *scene) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, fmt.Sprintf(format, args...))
}

// acquire waits for the lock, under this name. Without it the case ends.
func (p process) acquire(who string, options ...redislock.Option) *redislock.Lock {
	p.t.Helper()
	lock, err := p.Acquire(p.ctx, "x", append(options, redislock.WithOwner(who))...)
	if err != nil {
		p.t.Fatalf("%s: %v, after %q", who, err, p.seen)
	}
	p.say("%s has it", who)
	return lock
}

// try also ends the case if the lock is busy where it should be free, or the reverse.
func (p process) try(who string, isFree bool) *redislock.Lock {
	p.t.Helper()
	lock, err := p.TryAcquire(p.ctx, "x", redislock.WithOwner(who))
	if isFree != (err == nil) {
		p.t.Fatalf("%s: %v, after %q", who, err, p.seen)
	}
	p.say("%s tries: %s", who, outcome(err))
	return lock
}

// state is what Inspect shows of the lock.
func (s *scene) state() {
	state, err := s.a.Inspect(s.ctx, "x")
	if err != nil {
		s.say("inspect: %v", err)
		return
	}
	who := func(token string) string { name, _, _ := strings.Cut(token, ":"); return name }
	line := "free"
	switch {
	case state.Holder == "":
	case state.TTL == -1:
		line = who(state.Holder) + " holds it, never expires"
	default:
		line = who(state.Holder) + " holds it, expires"
	}
	for _, w := range state.Waiters {
		line += fmt.Sprintf("; %s waits, %v", who(w.Token), w.Lease)
	}
	s.say("%s", line)
}

// waiting returns when this many wait.
func (s *scene) waiting(n int) {
	s.eventually(func() bool {
		state, err := s.a.Inspect(s.ctx, "x")
		return err == nil && state.Waiting == n
	})
}

func (s *scene) eventually(condition func() bool) {
	s.t.Helper()
	for !condition() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-s.ctx.Done():
			s.t.Fatal("it never happened")
		}
	}
}

// outcome is what an error says to errors.Is.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	var found []string
	for _, one := range []struct {
		name string
		err  error
	}{
		{"busy", redislock.ErrNotAcquired}, {"unavailable", redislock.ErrUnavailable}, {"not held", redislock.ErrNotHeld},
		{"lost", redislock.ErrLost}, {"closed", redislock.ErrClosed}, {"not replicated", redislock.ErrNotReplicated},
		{"canceled", context.Canceled}, {"deadline", context.DeadlineExceeded},
	} {
		if errors.Is(err, one.err) {
			found = append(found, one.name)
		}
	}
	if found == nil {
		return "bad"
	}
	return strings.Join(found, ", ")
}
