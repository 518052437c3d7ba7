// Package virtualtest runs the real client in testing/synctest bubbles, on a server in memory: hours in
// seconds, without Redis.
package virtualtest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

const name = "orders"

// is fails the test unless errors.Is finds each of these, in one line that names the package once.
func is(t *testing.T, err error, want ...error) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("%v: not a %q", err, w)
		}
	}
	if text := err.Error(); strings.Count(text, "redislock:") != 1 || strings.Contains(text, "\n") {
		t.Errorf("%q", text)
	}
}

func cause(ctx context.Context, t *testing.T, want error) {
	t.Helper()
	if err := context.Cause(ctx); !errors.Is(err, want) {
		t.Errorf("%v: not a %q", err, want)
	}
}

func isNot(t *testing.T, err, other error) {
	t.Helper()
	if errors.Is(err, other) {
		t.Errorf("%v: is a %q", err, other)
	}
}

// took fails the test unless so much time has passed: both bounds count.
func took(t *testing.T, since time.Time, least, most time.Duration) {
	t.Helper()
	if d := time.Since(since); d < least || d > most {
		t.Errorf("after %v, not %v to %v", d, least, most)
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestOutageIsNotBusy: field.md 5.
func TestOutageIsNotBusy(t *testing.T) {
	for text, fail := range map[string]func(*redislocktest.Server){
		"nobody answers": (*redislocktest.Server).Down, "refused": (*redislocktest.Server).Refuse,
	} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				locker, server := redislocktest.New(t)
				fail(server)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				start := time.Now()
				_, err := locker.Acquire(ctx, name)
				took(t, start, 5*time.Second, 5250*time.Millisecond) // and the undoing
				is(t, err, redislock.ErrUnavailable, context.DeadlineExceeded)
				isNot(t, err, redislock.ErrNotAcquired)

				start = time.Now()
				_, err = locker.Acquire(t.Context(), name, redislock.WithWait(3*time.Second))
				took(t, start, 3*time.Second, 3250*time.Millisecond)
				is(t, err, redislock.ErrUnavailable, context.DeadlineExceeded)
				isNot(t, err, redislock.ErrNotAcquired)

				trying, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err = locker.TryAcquire(trying, name)
				is(t, err, redislock.ErrUnavailable)
				isNot(t, err, redislock.ErrNotAcquired)

				short, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				start = time.Now()
				_, err = locker.Inspect(short, name)
				took(t, start, 0, time.Second)
				is(t, err, redislock.ErrUnavailable)
			})
		})
	}
}

// TestBusyIsNotAnOutage: the server said in this wait that the lock is busy.
func TestBusyIsNotAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Hold(name)
		time.AfterFunc(time.Minute, server.Down)
		start := time.Now()
		_, err := locker.Acquire(t.Context(), name, redislock.WithWait(2*time.Minute))
		took(t, start, 2*time.Minute, 2*time.Minute+250*time.Millisecond)
		is(t, err, redislock.ErrNotAcquired, context.DeadlineExceeded)
		isNot(t, err, redislock.ErrUnavailable)
		if !strings.Contains(err.Error(), "the last call failed") {
			t.Error(err)
		}
	})
}

// TestLateAnswerTells: ctx ends while the first call is under way, and its answer says what to return.
func TestLateAnswerTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Hold(name)
		server.Delay(100 * time.Millisecond)
		_, err := locker.Acquire(t.Context(), name, redislock.WithWait(20*time.Millisecond))
		is(t, err, redislock.ErrNotAcquired, context.DeadlineExceeded)
		synctest.Wait()
		time.Sleep(time.Second)
		if state := server.State(name); state.Waiting != 0 {
			t.Errorf("%d wait", state.Waiting)
		}
	})
}

func TestWithWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		other := server.Hold(name)
		start := time.Now()
		work := func(context.Context, *redislock.Lock) error { t.Error("worked"); return nil }
		is(t, locker.Do(t.Context(), name, work, redislock.WithWait(5*time.Second)), redislock.ErrNotAcquired, context.DeadlineExceeded)
		took(t, start, 5*time.Second, 5*time.Second)
		start = time.Now()
		err := locker.Do(t.Context(), name, work, redislock.WithWait(0))
		is(t, err, redislock.ErrNotAcquired)
		isNot(t, err, context.DeadlineExceeded)
		took(t, start, 0, 0)
		if err := locker.Do(t.Context(), name, work, redislock.WithWait(-1)); err == nil || !strings.Contains(err.Error(), "-1ns") {
			t.Error(err)
		}
		if state := server.State(name); state.Waiting != 0 {
			t.Errorf("%d wait", state.Waiting)
		}

		// The wait is bounded, and the work is not.
		time.AfterFunc(3*time.Second, other.Release)
		err = locker.Do(t.Context(), name, func(ctx context.Context, _ *redislock.Lock) error {
			time.Sleep(time.Hour)
			return ctx.Err()
		}, redislock.WithWait(5*time.Second))
		if err != nil {
			t.Error(err)
		}
	})
}

// TestDoSaysWhatWasLost: field.md 4.
func TestDoSaysWhatWasLost(t *testing.T) {
	untilTold := func(ctx context.Context, _ *redislock.Lock) error { <-ctx.Done(); return nil }
	for text, c := range map[string]struct {
		prepare func(*redislocktest.Server)
		option  redislock.Option
		limit   string
	}{
		"maximum hold": {func(*redislocktest.Server) {}, redislock.WithMaxHold(20 * time.Millisecond), "maximum hold of 20ms"},
		"no renewal":   {func(*redislocktest.Server) {}, redislock.WithoutRenewal(), "the 10s are over"},
		"server gone":  {func(s *redislocktest.Server) { time.AfterFunc(time.Second, s.Down) }, redislock.WithLease(5 * time.Second), "the 5s are over"},
		"taken away":   {func(s *redislocktest.Server) { time.AfterFunc(time.Second, func() { s.Lose(name) }) }, redislock.WithLease(5 * time.Second), "taken away"},
	} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				locker, server := redislocktest.New(t)
				c.prepare(server)
				err := locker.Do(t.Context(), name, untilTold, c.option)
				is(t, err, redislock.ErrLost)
				if !strings.Contains(err.Error(), c.limit) {
					t.Errorf("%v: without %q", err, c.limit)
				}
				broken := errors.New("broken")
				server.Up()
				c.prepare(server)
				err = locker.Do(t.Context(), name, func(ctx context.Context, _ *redislock.Lock) error { <-ctx.Done(); return broken }, c.option)
				if !errors.Is(err, broken) || !errors.Is(err, redislock.ErrLost) || strings.Contains(err.Error(), "\n") {
					t.Error(err)
				}
			})
		})
	}
}

// TestCloseWaitsForFn: what Do took is not handed on under a running fn.
func TestCloseWaitsForFn(t *testing.T) {
	for text, c := range map[string]struct{ works, closes time.Duration }{
		"which ends in time": {2 * time.Second, 2 * time.Second},
		"which does not":     {20 * time.Second, 6 * time.Second},
	} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				locker, server := redislocktest.New(t)
				working := make(chan struct{})
				done := make(chan error)
				var ended time.Time
				go func() {
					done <- locker.Do(t.Context(), name, func(ctx context.Context, _ *redislock.Lock) error {
						close(working)
						<-ctx.Done()
						cause(ctx, t, redislock.ErrClosed)
						time.Sleep(c.works)
						ended = time.Now()
						return nil
					})
				}()
				<-working
				next := make(chan time.Time)
				go func() {
					_ = server.Locker().Do(t.Context(), name, func(context.Context, *redislock.Lock) error { next <- time.Now(); return nil })
				}()
				synctest.Wait()
				start := time.Now()
				locker.Close()
				took(t, start, c.closes, c.closes)
				at := <-next
				err := <-done
				is(t, err, redislock.ErrClosed)
				if c.works < 10*time.Second { // its lease
					if at.Before(ended) {
						t.Errorf("handed on %v before fn had returned", ended.Sub(at))
					}
				} else {
					is(t, err, redislock.ErrLost)
					took(t, start, 10*time.Second, 21*time.Second)
				}
			})
		})
	}
}

// TestCloseAndRelease: field.md 49.
func TestCloseAndRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name))
		server.Delay(time.Second)
		start := time.Now()
		second := make(chan time.Duration)
		go func() {
			time.Sleep(100 * time.Millisecond)
			locker.Close()
			second <- time.Since(start)
		}()
		released := make(chan error)
		go func() {
			time.Sleep(100 * time.Millisecond)
			released <- lock.Release(t.Context())
		}()
		locker.Close()
		first := time.Since(start)
		if err := <-released; err != nil {
			t.Errorf("it was held until Close gave it back: %v", err)
		}
		if d := <-second; d < first {
			t.Errorf("the second Close returned after %v, the first after %v", d, first)
		}
		is(t, lock.Release(t.Context()), redislock.ErrNotHeld)
		cause(lock.Context(), t, redislock.ErrClosed)
	})
}

// TestWhatOptionsTurnOn: a call can turn it off.
func TestWhatOptionsTurnOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t, redislock.Options{WithoutRenewal: true, MaxHold: time.Second, WithoutExpiry: true, Owner: "batch"})
		take := func(options ...redislock.Option) *redislock.Lock {
			t.Helper()
			return must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, options...))
		}
		lock := take()
		if !strings.HasPrefix(lock.Token(), "batch:") {
			t.Error(lock.Token())
		}
		<-lock.Context().Done()
		_ = lock.Release(t.Context())

		lock = take(redislock.WithoutMaxHold())
		if ttl := server.State(name).TTL; ttl != -1 {
			t.Error(ttl)
		}
		_ = lock.Release(t.Context())

		lock = take(redislock.WithoutMaxHold(), redislock.WithLease(5*time.Second), redislock.WithRenewal(), redislock.WithOwner(""))
		if strings.Contains(lock.Token(), ":") {
			t.Error(lock.Token())
		}
		time.Sleep(time.Minute)
		if ttl := server.State(name).TTL; ttl < time.Second || ttl > 5*time.Second {
			t.Error(ttl)
		}
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestOwner: who looks at a lock knows who holds it.
func TestOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t, redislock.Options{Owner: strings.Repeat("ü", 100)})
		_ = must[*redislock.Lock](t)(locker.Acquire(t.Context(), name))
		label, _, _ := strings.Cut(server.State(name).Holder, ":")
		if label != strings.Repeat("ü", 32) {
			t.Errorf("%q", label)
		}
	})
}

// TestToken: field.md 45.
func TestToken(t *testing.T) {
	const token = "a token"
	with := redislock.WithToken(token)
	t.Run("a joiner that gives up leaves the lock to the other process", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, with))
			joiner := server.Locker()
			time.Sleep(time.Second)
			server.Delay(200 * time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := joiner.Acquire(ctx, name, with); err == nil {
				t.Fatal("it came too early")
			}
			joiner.Close()
			if holder := server.State(name).Holder; holder != token {
				t.Errorf("%q holds the lock", holder)
			}
			if err := lock.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("a wait that gives up passes on what was granted to it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			server.Delay(200 * time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond) // the call has arrived
			defer cancel()
			if _, err := locker.Acquire(ctx, name, with); err == nil {
				t.Fatal("it came too early")
			}
			time.Sleep(time.Second)
			if holder := server.State(name).Holder; holder != "" {
				t.Errorf("%q holds the lock", holder)
			}
		})
	})
	t.Run("a wait that gives up leaves the queue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			other := server.Hold(name)
			_, err := locker.Acquire(t.Context(), name, with, redislock.WithWait(time.Second))
			is(t, err, redislock.ErrNotAcquired)
			synctest.Wait()
			if n := server.State(name).Waiting; n != 0 {
				t.Errorf("%d wait", n)
			}
			other.Release()
		})
	})
	t.Run("used again at once, it is not released by the wait before", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			for range 20 { // it depends on which call comes first
				other := server.Hold(name)
				time.AfterFunc(time.Second, server.Refuse)
				_, err := locker.Acquire(t.Context(), name, with, redislock.WithWait(2*time.Second))
				is(t, err, redislock.ErrNotAcquired)
				time.AfterFunc(3*time.Second, func() { other.Release(); server.Up() })
				lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, with))
				time.Sleep(time.Minute)
				if holder := server.State(name).Holder; holder != token {
					t.Fatalf("%q holds the lock", holder)
				}
				if err := lock.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		})
	})
	t.Run("Detach passes the lock on to another process", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, with))
			until := lock.Detach()
			took(t, until.Add(-10*time.Second), 0, 0)
			cause(lock.Context(), t, context.Canceled)
			locker.Close()
			time.Sleep(5 * time.Second)
			joined := must[*redislock.Lock](t)(server.Locker().Acquire(t.Context(), name, with))
			if joined.Fence() != lock.Fence() {
				t.Error("it is another grant")
			}
			time.Sleep(time.Minute)
			if err := joined.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
}

// TestNoLeaseByMistake: field.md 36. Whatever is left of a maximum hold, no lock is without a TTL.
func TestNoLeaseByMistake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Delay(time.Millisecond)
		for ms := 1; ms <= 20; ms++ {
			lock, err := locker.Acquire(t.Context(), name, redislock.WithMaxHold(time.Duration(ms)*time.Millisecond), redislock.WithReplicas(1, time.Second))
			if ttl := server.State(name).TTL; ttl == -1 {
				t.Fatalf("a maximum hold of %d ms: never expires", ms)
			}
			if err == nil {
				_ = lock.Release(t.Context())
			}
			time.Sleep(time.Second)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		locker, _ := redislocktest.New(t)
		_, err := locker.Acquire(t.Context(), name, redislock.WithLease(math.MaxInt64))
		if err == nil || !strings.Contains(err.Error(), "WithoutExpiry") {
			t.Errorf("the largest duration: %v", err)
		}
	})
}

// TestReleaseWithoutAnswer: field.md 7.
func TestReleaseWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithLease(30*time.Second)))
		server.Down()
		start := time.Now()
		is(t, lock.Release(t.Context()), redislock.ErrUnavailable)
		took(t, start, 5*time.Second, 5*time.Second)
		server.Up()
		is(t, lock.Extend(t.Context(), time.Hour), redislock.ErrNotHeld)
		if ttl := server.State(name).TTL; ttl > 30*time.Second {
			t.Error(ttl)
		}
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}
		is(t, lock.Release(t.Context()), redislock.ErrNotHeld)

		lock = must[*redislock.Lock](t)(locker.Acquire(t.Context(), name))
		server.LoseReply()
		if err := lock.Release(t.Context()); err != nil {
			t.Errorf("it was held, and given back: %v", err)
		}
	})
}

func TestNilLock(t *testing.T) {
	var lock *redislock.Lock
	is(t, lock.Release(t.Context()), redislock.ErrNotHeld)
}

// TestTroubleIsLogged: field.md 15.
func TestTroubleIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		locker, server := redislocktest.New(t, redislock.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		server.Refuse()
		_, _ = locker.TryAcquire(t.Context(), name)
		if log.Len() > 0 {
			t.Errorf("a try: %s", log.String())
		}
		for range 10 {
			go func() { _, _ = locker.Acquire(t.Context(), name, redislock.WithWait(time.Hour)) }()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines at once:\n%s", n, log.String())
		}
		time.Sleep(2 * time.Hour)
		if n := strings.Count(log.String(), "\n"); n < 55 || n > 61 {
			t.Errorf("%d lines in an hour", n)
		}
		if !strings.Contains(log.String(), "lock=orders") || !strings.Contains(log.String(), "refused") {
			t.Error(log.String()[:300])
		}
	})
}
