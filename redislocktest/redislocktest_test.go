package redislocktest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

const lease = 10 * time.Second // the default

// inBubble runs a test where time costs nothing. Goroutines that stay behind fail it.
func inBubble(t *testing.T, f func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Helper()
		locker, server := redislocktest.New(t)
		f(t, locker, server)
	})
}

// patience bounds each wait. In a bubble it costs nothing.
const patience = time.Hour

func acquire(t *testing.T, locker *redislock.Locker, name string, options ...redislock.Option) *redislock.Lock {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lock, err := locker.Acquire(ctx, name, options...)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

// isLost fails the test unless Context ends with ErrLost.
func isLost(t *testing.T, lock *redislock.Lock) {
	t.Helper()
	select {
	case <-lock.Context().Done():
		is(t, context.Cause(lock.Context()), redislock.ErrLost)
	case <-time.After(patience):
		t.Fatal("Context does not end")
	}
}

// is fails the test unless errors.Is finds all of these.
func is(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("%v, which is not: %v", err, target)
		}
	}
}

// within fails the test unless so much time has passed: both bounds count.
func within(t *testing.T, since time.Time, from, to time.Duration) {
	t.Helper()
	if passed := time.Since(since); passed < from || passed > to {
		t.Errorf("it took %v, not %v to %v", passed, from, to)
	}
}

func TestLose(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		lock := acquire(t, locker, "orders")
		start := time.Now()
		server.Lose("orders")
		if holder := server.State("orders").Holder; holder != "" {
			t.Errorf("%q still holds the lock", holder)
		}
		isLost(t, lock)
		within(t, start, 0, lease/3)
		is(t, lock.Release(t.Context()), redislock.ErrNotHeld)
	})
}

func TestLoseToTheNext(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		acquire(t, locker, "orders")
		next := server.Queue("orders")
		server.Lose("orders")
		if !next.Holds() {
			t.Error("the next one has not got the lock")
		}
		time.Sleep(time.Hour)
		if !next.Holds() {
			t.Error("the next one has not kept the lock")
		}
	})
}

func TestHold(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		other := server.Hold("orders")
		time.Sleep(time.Hour) // it is renewed
		_, err := locker.TryAcquire(t.Context(), "orders")
		is(t, err, redislock.ErrNotAcquired)

		start := time.Now()
		time.AfterFunc(5*time.Second, other.Release)
		lock := acquire(t, locker, "orders")
		within(t, start, 5*time.Second, 5*time.Second) // handed over at once
		if state := server.State("orders"); state.Holder != lock.Token() || other.Holds() {
			t.Errorf("%q holds the lock, not %q", state.Holder, lock.Token())
		}
	})
}

func TestQueue(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		lock := acquire(t, locker, "orders")
		first, second := server.Queue("orders"), server.Queue("orders")
		time.Sleep(time.Hour) // they keep their places
		var tokens []string
		for _, w := range server.State("orders").Waiters {
			tokens = append(tokens, w.Token)
		}
		if want := []string{first.Token(), second.Token()}; !slices.Equal(tokens, want) {
			t.Errorf("%q wait, not %q", tokens, want)
		}
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if !first.Holds() {
			t.Error("the first one has not got the lock")
		}
		time.Sleep(time.Hour) // it renews its lease
		_, err := locker.TryAcquire(t.Context(), "orders")
		is(t, err, redislock.ErrNotAcquired)
		second.Release() // leaves the queue
		first.Release()
		acquire(t, locker, "orders")
	})
}

func TestKilledOther(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		holder := server.Hold("orders")
		server.Queue("orders").Kill()
		start := time.Now()
		holder.Kill()
		acquire(t, locker, "orders")
		within(t, start, lease-time.Second, lease+4*time.Second) // its lease, and the waiter that is dead as well
	})
}

func TestKill(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		process := server.Locker()
		held := acquire(t, process, "orders")
		start := time.Now()
		server.Kill(process)
		if server.State("orders").Holder != held.Token() {
			t.Error("the lock of a killed process was released")
		}
		lock := acquire(t, locker, "orders")
		within(t, start, lease-time.Second, lease+time.Second)
		isLost(t, held)
		if lock.Fence() <= held.Fence() {
			t.Errorf("fence %d after %d", lock.Fence(), held.Fence())
		}
		if _, err := process.TryAcquire(t.Context(), "other"); err == nil {
			t.Error("a killed process took a lock")
		}
		if err := held.Release(t.Context()); err == nil {
			t.Error("a killed process released a lock")
		}
	})
}

// TestKillInAnOutage: a call that waits for an answer dies with its process.
func TestKillInAnOutage(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		server.Down()
		start := time.Now()
		time.AfterFunc(time.Second, func() { server.Kill(locker) })
		if _, err := locker.TryAcquire(t.Context(), "orders"); err == nil {
			t.Error("a killed process took a lock")
		}
		within(t, start, time.Second, time.Second)
	})
}

func TestDown(t *testing.T) {
	for name, down := range map[string]func(*redislocktest.Server){
		"Down": (*redislocktest.Server).Down, "Refuse": (*redislocktest.Server).Refuse,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
				lock := acquire(t, locker, "orders")
				down(server)
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				_, err := locker.TryAcquire(ctx, "other")
				is(t, err, redislock.ErrUnavailable)
				if errors.Is(err, redislock.ErrNotAcquired) {
					t.Errorf("%v: an outage looks like a busy lock", err)
				}
				isLost(t, lock)
				within(t, start, lease*2/3, lease) // ahead of the end of the lease
				if server.State("orders").Holder != lock.Token() {
					t.Error("told too late")
				}
			})
		})
	}
}

// TestShortOutage: nothing is lost in an outage that is shorter than what is left of the lease.
func TestShortOutage(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		lock := acquire(t, locker, "orders")
		other := server.Locker()
		waiting := make(chan error, 1)
		go func() { waiting <- ignoreLock(other.Acquire(t.Context(), "orders")) }()
		synctest.Wait()
		for range 10 {
			server.Down()
			time.Sleep(5 * time.Second)
			server.Up()
			time.Sleep(5 * time.Second)
		}
		if err := lock.Context().Err(); err != nil {
			t.Fatal(err)
		}
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-waiting; err != nil {
			t.Error(err)
		}
	})
}

func ignoreLock(_ *redislock.Lock, err error) error { return err }

func TestLoseReply(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		server.LoseReply()
		lock := acquire(t, locker, "orders") // it asks again, with the same token
		server.LoseReply()
		is(t, lock.Extend(t.Context(), time.Minute), redislock.ErrUnavailable)
		if ttl := server.State("orders").TTL; ttl != time.Minute {
			t.Errorf("Extend was not carried out: %v are left", ttl)
		}
		server.LoseReply()
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if holder := server.State("orders").Holder; holder != "" {
			t.Errorf("%q still holds the lock", holder)
		}
	})
}

func TestDelay(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		server.Delay(100 * time.Millisecond)
		start := time.Now()
		lock := acquire(t, locker, "orders")
		within(t, start, 100*time.Millisecond, 100*time.Millisecond)
		if deadline, _ := lock.Deadline(); deadline.After(start.Add(lease)) {
			t.Errorf("Deadline counts from %v after the request", deadline.Sub(start)-lease)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := locker.Acquire(ctx, "other")
		is(t, err, context.DeadlineExceeded)
	})
}

func TestStepClock(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		lock := acquire(t, locker, "orders")
		server.StepClock(time.Minute)
		if holder := server.State("orders").Holder; holder != "" {
			t.Errorf("%q still holds the lock", holder)
		}
		isLost(t, lock)
	})
}

func TestSetReplicas(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		two := redislock.WithReplicas(2, time.Second)
		start := time.Now()
		if err := acquire(t, locker, "orders", two).Release(t.Context()); err != nil {
			t.Error(err)
		}
		within(t, start, 0, 0)
		server.SetReplicas(1)
		_, err := locker.Acquire(t.Context(), "orders", two)
		is(t, err, redislock.ErrNotReplicated)
		within(t, start, time.Second, time.Second)
	})
}

func TestFirstComeFirstServed(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		other := server.Hold("orders")
		var mu sync.Mutex
		var order []int
		var work sync.WaitGroup
		lockers := []*redislock.Locker{locker, server.Locker(), server.Locker()}
		for i := range 30 {
			work.Go(func() {
				err := lockers[i%3].Do(t.Context(), "orders", func(context.Context, *redislock.Lock) error {
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
					time.Sleep(time.Minute)
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if n := server.State("orders").Waiting; n != 30 {
			t.Errorf("%d wait", n)
		}
		start := time.Now()
		other.Release()
		work.Wait()
		within(t, start, 30*time.Minute, 30*time.Minute) // never free in between
		if !slices.IsSorted(order) {
			t.Errorf("served in the order %v", order)
		}
	})
}

func TestOptionsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t, redislock.Options{Prefix: "eu", Lease: time.Minute, Owner: "me"})
		lock := acquire(t, locker, "orders")
		state := server.State("orders")
		if state.Holder != lock.Token() || state.TTL != time.Minute || !strings.HasPrefix(state.Holder, "me:") {
			t.Errorf("%+v", state)
		}
		if _, err := server.Locker().TryAcquire(t.Context(), "orders"); err != nil { // with the default prefix
			t.Error(err)
		}
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}
		server.Hold("orders")
		_, err := locker.TryAcquire(t.Context(), "orders")
		is(t, err, redislock.ErrNotAcquired)
	})
}

func TestResetAll(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		for _, name := range []string{"a", "b", "c{d}"} {
			server.Hold(name)
		}
		n, err := locker.ResetAll(t.Context())
		if n != 3 || err != nil {
			t.Error(n, err)
		}
	})
}

func TestClose(t *testing.T) {
	inBubble(t, func(t *testing.T, locker *redislock.Locker, server *redislocktest.Server) {
		lock := acquire(t, locker, "orders")
		server.Hold("stock")
		waiting := make(chan error)
		go func() { waiting <- ignoreLock(locker.Acquire(t.Context(), "stock")) }()
		synctest.Wait()
		go locker.Close()
		is(t, <-waiting, redislock.ErrClosed)
		<-lock.Context().Done()
		is(t, context.Cause(lock.Context()), redislock.ErrClosed)
		synctest.Wait()
		if holder := server.State("orders").Holder; holder != "" {
			t.Errorf("%q still holds the lock", holder)
		}
		if n := server.State("stock").Waiting; n != 0 {
			t.Errorf("%d wait", n)
		}
	})
}

// TestOutside: without a bubble the clock is the real one.
func TestOutside(t *testing.T) {
	locker, server := redislocktest.New(t)
	other := server.Hold("orders")
	waiting := make(chan error)
	go func() { waiting <- ignoreLock(locker.Acquire(t.Context(), "orders")) }()
	for server.State("orders").Waiting == 0 {
		if t.Context().Err() != nil {
			t.Fatal("nobody waits")
		}
	}
	other.Release()
	select {
	case err := <-waiting:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the lock was not handed over")
	}
}

// TestCleanup: when the test is over, an outage is, too, and all Lockers are closed.
func TestCleanup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failures{T: t}
		locker, server := redislocktest.New(f)
		lockers := []*redislock.Locker{locker, server.Locker()}
		lock := acquire(t, locker, "orders")
		other := server.Hold("stock")
		server.Down()
		start := time.Now()
		f.endTest()
		within(t, start, 0, 0)
		for _, l := range lockers {
			_, err := l.TryAcquire(t.Context(), "orders")
			is(t, err, redislock.ErrClosed)
		}
		is(t, context.Cause(lock.Context()), redislock.ErrClosed)
		time.Sleep(25 * time.Hour)
		if failed := f.all(); len(failed) > 0 {
			t.Errorf("%s is still there: %q", other.Token(), failed)
		}
	})
}

func TestClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, server := redislocktest.New(t)
		client := server.Client()
		locker, err := redislock.New(client, redislock.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer locker.Close()
		lock := acquire(t, locker, "orders")
		if server.State("orders").Holder != lock.Token() {
			t.Error("not of this server")
		}
		client.Kill()
		isLost(t, lock)
	})
}

// failures is a test that notes what fails, and may be over sooner.
type failures struct {
	*testing.T
	cleanups []func()
	mu       sync.Mutex
	texts    []string
}

func (f *failures) Cleanup(cleanup func()) { f.cleanups = append(f.cleanups, cleanup) }

func (f *failures) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.texts
}

func (f *failures) endTest() {
	for _, cleanup := range slices.Backward(f.cleanups) {
		cleanup()
	}
}

func (f *failures) Errorf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.texts = append(f.texts, fmt.Sprintf(format, args...))
}

func (f *failures) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	panic(f)
}

func TestMisuse(t *testing.T) {
	for text, misuse := range map[string]func(f *failures, server *redislocktest.Server){
		"2 Options": func(f *failures, _ *redislocktest.Server) {
			redislocktest.New(f, redislock.Options{}, redislock.Options{})
		},
		"-1s": func(f *failures, _ *redislocktest.Server) {
			redislocktest.New(f, redislock.Options{Lease: -time.Second})
		},
		"must not be empty":   func(_ *failures, s *redislocktest.Server) { s.State("") },
		"nobody holds":        func(_ *failures, s *redislocktest.Server) { s.Lose("orders") },
		"nobody holds it":     func(_ *failures, s *redislocktest.Server) { s.Queue("orders") },
		"it is not free":      func(_ *failures, s *redislocktest.Server) { s.Hold("orders"); s.Hold("orders") },
		"none of this server": func(_ *failures, s *redislocktest.Server) { s.Kill(nil) },
		"neither holds it":    func(_ *failures, s *redislocktest.Server) { o := s.Hold("orders"); s.Lose("orders"); o.Release() },
		"does the test wait": func(_ *failures, s *redislocktest.Server) {
			s.Hold("orders")
			time.Sleep(25 * time.Hour)
		},
		"knows no commands": func(_ *failures, s *redislocktest.Server) { s.Client().B() },
		"only for redislock.New": func(_ *failures, s *redislocktest.Server) {
			if err := s.Client().Do(context.Background(), rueidis.Completed{}).Error(); err == nil {
				panic("no error")
			}
		},
	} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &failures{T: t}
				defer f.endTest()
				_, server := redislocktest.New(f)
				func() {
					defer func() {
						if r := recover(); r != nil && r != any(f) {
							panic(r)
						}
					}()
					misuse(f, server)
				}()
				if failed := f.all(); len(failed) != 1 || !strings.Contains(failed[0], text) {
					t.Errorf("%q", failed)
				}
			})
		})
	}
}

// TestDoc: the package doc has only code that example_test.go compiles and runs.
func TestDoc(t *testing.T) {
	text, err := os.ReadFile("redislocktest.go")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile(`(?m)(^//\t.*\n(//\n//\t\t.*\n)?)+`).FindAllString(string(text), -1)
	if len(blocks) != 2 {
		t.Errorf("%d blocks", len(blocks))
	}
	for _, block := range blocks {
		if code := strings.ReplaceAll(block, "//\t", ""); !strings.Contains(string(examples), code) {
			t.Errorf("not in example_test.go:\n%s", code)
		}
	}
}
