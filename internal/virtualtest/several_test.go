package virtualtest

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

func says(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("%v: it does not say %q", err, text)
	}
}

// isFree fails the test unless nobody holds these locks or waits for them.
func isFree(t *testing.T, server *redislocktest.Server, names ...string) {
	t.Helper()
	for _, name := range names {
		if s := server.State(name); s.Held != 0 || s.Waiting != 0 {
			t.Errorf("%q: %d hold it, %d wait", name, s.Held, s.Waiting)
		}
	}
}

// TestAllInOrder: in bytewise order of the keys as UTF-8. In UTF-16 the second name comes before the first.
func TestAllInOrder(t *testing.T) {
	const first, second = "\uffee", "\U0001f512"
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		other := server.Hold(second)
		got := make(chan []*redislock.Lock, 1)
		go func() {
			locks, err := locker.AcquireAll(t.Context(), []string{second, first, "{" + second + "}", second}, redislock.WithWait(time.Hour))
			if err != nil {
				t.Error(err)
			}
			got <- locks
		}()
		synctest.Wait()
		if server.State(first).Held != 1 || server.State(second).Waiting != 1 {
			t.Error("the first is not taken first")
		}
		other.Release()
		locks := <-got
		if len(locks) != 4 || locks[0] != locks[2] || locks[0] != locks[3] || locks[0].Name() != second || locks[1].Name() != first {
			t.Fatal(locks)
		}
		for _, lock := range locks[:2] {
			if err := lock.Release(t.Context()); err != nil {
				t.Error(err)
			}
		}
		isFree(t, server, first, second)
	})
}

// TestAllWithoutDeadlock: in any order of the names.
func TestAllWithoutDeadlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Delay(3 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var all sync.WaitGroup
		for _, names := range [][]string{{"a", "{b}", "\U0001f512"}, {"\U0001f512", "\uffee", "b"}, {"\uffee", "{a}"}} {
			l := server.Locker()
			all.Go(func() {
				for range 300 {
					if err := l.DoAll(ctx, names, func(context.Context, []*redislock.Lock) error { return nil }); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		isFree(t, server, "a", "b", "\U0001f512", "\uffee")
		_ = locker
	})
}

// TestAllOrNothing: if one fails or is lost meanwhile, all are released.
func TestAllOrNothing(t *testing.T) {
	names := []string{"c", "b", "a"}
	wait := func(t *testing.T, locker *redislock.Locker, opts ...redislock.Option) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := locker.AcquireAll(t.Context(), names, opts...)
			done <- err
		}()
		synctest.Wait()
		return done
	}
	t.Run("one is busy", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			server.Hold("c")
			start := time.Now()
			err := <-wait(t, locker, redislock.WithWait(0))
			is(t, err, redislock.ErrNotAcquired)
			says(t, err, `"c"`)
			took(t, start, 0, 0)
			isFree(t, server, "a", "b")
		})
	})
	t.Run("WithWait is for all of them", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			server.Hold("c")
			time.AfterFunc(3*time.Second, server.Hold("a").Release)
			start := time.Now()
			err := <-wait(t, locker, redislock.WithWait(5*time.Second))
			is(t, err, redislock.ErrNotAcquired, context.DeadlineExceeded)
			took(t, start, 5*time.Second, 5*time.Second)
			isFree(t, server, "a", "b")
			if n := server.State("c").Waiting; n != 0 {
				t.Errorf("%d wait", n)
			}
		})
	})
	t.Run("one is lost while the next is waited for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			other := server.Hold("c")
			done := wait(t, locker, redislock.WithWait(time.Hour))
			server.Lose("a")
			err := <-done
			is(t, err, redislock.ErrLost, redislock.ErrNotAcquired)
			synctest.Wait()
			other.Release()
			isFree(t, server, names...)
		})
	})
	t.Run("one is over as the last is granted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, server := redislocktest.New(t)
			locker := server.Locker(redislock.Options{Observe: func(_ context.Context, e redislock.Event) {
				if e.Kind == redislock.EventAcquired && e.Name == "c" {
					server.Lose("a")
					time.Sleep(time.Minute) // until that is known
				}
			}})
			is(t, <-wait(t, locker), redislock.ErrLost)
			isFree(t, server, names...)
		})
	})
	t.Run("the Locker is closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			other := server.Hold("c")
			done := wait(t, locker, redislock.WithWait(time.Hour))
			locker.Close()
			is(t, <-done, redislock.ErrClosed)
			other.Release()
			isFree(t, server, names...)
		})
	})
	t.Run("nothing is sent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			server.Refuse()
			for text, do := range map[string]func() error{
				"no names":                 func() error { return locker.DoAll(t.Context(), nil, nil) },
				"must not be empty":        func() error { return locker.DoAll(t.Context(), []string{"a", ""}, nil) },
				"a wait of -1s":            func() error { return locker.DoAll(t.Context(), []string{"a"}, nil, redislock.WithWait(-time.Second)) },
				"a lease of 0s":            func() error { return locker.DoAll(t.Context(), []string{"a"}, nil, redislock.WithLease(0)) },
				"0 holders":                func() error { return locker.DoAll(t.Context(), []string{"a"}, nil, redislock.WithHolders(0)) },
				"a queue limit of -1":      func() error { return locker.DoAll(t.Context(), []string{"a"}, nil, redislock.WithQueueLimit(-1)) },
				"9223372036854775807 hold": func() error { return locker.DoAll(t.Context(), []string{"a"}, nil, redislock.WithHolders(math.MaxInt)) },
			} {
				err := do()
				says(t, err, text)
				is(t, err)
			}
		})
	})
}

// TestDoAll: ctx ends with any lock, and the verdict is on all of them.
func TestDoAll(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		var released []string
		locker, server := redislocktest.New(t, redislock.Options{Observe: func(_ context.Context, e redislock.Event) {
			if e.Kind == redislock.EventReleased {
				released = append(released, e.Name)
			}
		}})
		names := []string{"c", "a", "b"}
		with := context.WithValue(t.Context(), key{}, "v")
		err := locker.DoAll(with, names, func(ctx context.Context, locks []*redislock.Lock) error {
			if ctx.Value(key{}) != "v" || len(locks) != 3 || locks[0].Name() != "c" || locks[1].Name() != "a" || locks[1].Fence() == 0 {
				t.Error(locks)
			}
			return nil
		})
		if err != nil || !slices.Equal(released, []string{"c", "b", "a"}) {
			t.Error(err, released)
		}
		err = locker.DoAll(t.Context(), names, func(ctx context.Context, _ []*redislock.Lock) error {
			server.Lose("b")
			<-ctx.Done()
			cause(ctx, t, redislock.ErrLost)
			return nil
		})
		is(t, err, redislock.ErrLost)
		isFree(t, server, names...)

		failed := errors.New("it failed")
		stopped, stop := context.WithCancelCause(t.Context())
		err = locker.DoAll(stopped, names, func(ctx context.Context, locks []*redislock.Lock) error {
			stop(failed)
			<-ctx.Done()
			cause(ctx, t, failed)
			for _, lock := range locks {
				<-lock.Context().Done()
			}
			return failed
		})
		if !errors.Is(err, failed) || errors.Is(err, redislock.ErrLost) {
			t.Error(err)
		}
		func() {
			defer func() { _ = recover() }()
			_ = locker.DoAll(t.Context(), names, func(context.Context, []*redislock.Lock) error { panic("in fn") })
		}()
		isFree(t, server, names...)

		err = locker.DoAll(t.Context(), names, func(ctx context.Context, _ []*redislock.Lock) error {
			go locker.Close()
			<-ctx.Done()
			cause(ctx, t, redislock.ErrClosed)
			time.Sleep(time.Second)
			if server.State("a").Held != 1 {
				t.Error("handed on under a running fn")
			}
			return nil
		})
		is(t, err, redislock.ErrClosed)
		isFree(t, server, names...)

		locker = server.Locker()
		err = locker.DoAll(t.Context(), names, func(ctx context.Context, _ []*redislock.Lock) error {
			server.Lose("a")
			<-ctx.Done()
			go locker.Close()
			time.Sleep(time.Second)
			return nil
		})
		if !errors.Is(err, redislock.ErrLost) || !errors.Is(err, redislock.ErrClosed) {
			t.Error(err)
		}
	})
}

// TestAllInAnOutage: neither call waits for each lock until it can be given back.
func TestAllInAnOutage(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f"}
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Hold("f")
		time.AfterFunc(time.Second, server.Down)
		start := time.Now()
		_, err := locker.AcquireAll(t.Context(), names, redislock.WithWait(5*time.Second))
		is(t, err, redislock.ErrNotAcquired, context.DeadlineExceeded)
		took(t, start, 5*time.Second, 7*time.Second)
		server.Up()
		time.Sleep(time.Minute)
		isFree(t, server, names[:5]...)

		start = time.Now()
		err = locker.DoAll(t.Context(), names[:5], func(context.Context, []*redislock.Lock) error {
			server.Down()
			return nil
		})
		is(t, err, redislock.ErrUnavailable)
		took(t, start, 5*time.Second, 10*time.Second)
		server.Up()
	})
}

// TestAllWithToken: one token for all of them.
func TestAllWithToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		locks := must[[]*redislock.Lock](t)(locker.AcquireAll(t.Context(), []string{"a", "b"}, redislock.WithToken("mine")))
		for _, lock := range locks {
			lock.Detach()
		}
		joined := must[[]*redislock.Lock](t)(server.Locker().AcquireAll(t.Context(), []string{"b", "a"}, redislock.WithToken("mine")))
		for _, lock := range joined {
			if err := lock.Release(t.Context()); err != nil {
				t.Error(err)
			}
		}
		isFree(t, server, "a", "b")
	})
}

// TestQueueLimit: by the position of the first answer.
func TestQueueLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		free := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithQueueLimit(0)))
		if err := free.Release(t.Context()); err != nil {
			t.Error(err)
		}
		holder := server.Hold(name)
		for waiting := range 3 {
			for limit := range 4 {
				_, err := locker.Acquire(t.Context(), name, redislock.WithQueueLimit(limit), redislock.WithWait(time.Second))
				is(t, err, redislock.ErrNotAcquired)
				if full := errors.Is(err, redislock.ErrQueueFull); full != (waiting >= limit) {
					t.Errorf("%d wait, limit %d: %v", waiting, limit, err)
				} else if full == errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				synctest.Wait()
				if n := server.State(name).Waiting; n != waiting {
					t.Errorf("%d wait, not %d: it has not left", n, waiting)
				}
			}
			server.Queue(name)
		}
		_ = holder
	})
}
