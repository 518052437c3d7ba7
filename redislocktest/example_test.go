package redislocktest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

// nightly is the code under test: a job for any of many machines. It returns the job's result, for the
// record.
func nightly(ctx context.Context, locker *redislock.Locker, job func(ctx context.Context) error) (string, error) {
	err := locker.Do(ctx, "nightly", func(ctx context.Context, _ *redislock.Lock) error {
		return job(ctx)
	}, redislock.WithWait(0))
	switch {
	case errors.Is(err, redislock.ErrNotAcquired):
		return "skipped: another machine is at it", nil
	case errors.Is(err, redislock.ErrUnavailable):
		return "", fmt.Errorf("nobody knows whether another machine is at it: %w", err)
	case errors.Is(err, redislock.ErrLost):
		return "", fmt.Errorf("stopped halfway: %w", err)
	}
	return "done", err
}

// An hour of work, unless its ctx ends.
func work(ctx context.Context) error {
	select {
	case <-time.After(time.Hour):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func TestNightlyIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Hold("nightly") // somebody else
		result, err := nightly(t.Context(), locker, work)
		if result != "skipped: another machine is at it" || err != nil {
			t.Error(result, err)
		}
	})
}

func TestNightlyIsNotSkippedInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Refuse()
		result, err := nightly(t.Context(), locker, work)
		if result != "" || !errors.Is(err, redislock.ErrUnavailable) {
			t.Error(result, err)
		}
	})
}

func TestNightlyStopsWhenTheLockIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		time.AfterFunc(10*time.Minute, func() { server.Down() })
		start := time.Now()
		result, err := nightly(t.Context(), locker, work)
		if result != "" || !errors.Is(err, redislock.ErrLost) {
			t.Error(result, err)
		}
		if worked := time.Since(start); worked > 11*time.Minute {
			t.Errorf("worked on for %v", worked)
		}
	})
}

func TestNightlyAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		crashed := server.Locker() // another process
		if _, err := crashed.Acquire(t.Context(), "nightly"); err != nil {
			t.Fatal(err)
		}
		server.Kill(crashed)
		time.Sleep(11 * time.Second) // then its lease is over: it was 10 s
		result, err := nightly(t.Context(), locker, work)
		if result != "done" || err != nil {
			t.Error(result, err)
		}
	})
}

// t stands for the *testing.T that a test has.
var t redislocktest.TB = new(exampleT)

type exampleT struct{ cleanups []func() }

func (*exampleT) Helper()                           {}
func (t *exampleT) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }
func (*exampleT) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (*exampleT) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func ExampleNew() {
	locker, server := redislocktest.New(t)
	lock, err := locker.Acquire(context.Background(), "orders")
	fmt.Println(err)
	fmt.Println(server.State("orders").Holder == lock.Token())
	// Output:
	// <nil>
	// true
}

func ExampleServer_Hold() {
	locker, server := redislocktest.New(t)
	other := server.Hold("orders")

	_, err := locker.TryAcquire(context.Background(), "orders")
	fmt.Println(errors.Is(err, redislock.ErrNotAcquired))

	other.Release()
	_, err = locker.TryAcquire(context.Background(), "orders")
	fmt.Println(err)
	// Output:
	// true
	// <nil>
}

func ExampleServer_Queue() {
	locker, server := redislocktest.New(t)
	lock, _ := locker.Acquire(context.Background(), "orders")
	first, second := server.Queue("orders"), server.Queue("orders")
	_ = lock.Release(context.Background())
	fmt.Println(first.Holds(), second.Holds())
	// Output: true false
}

func ExampleServer_Refuse() {
	locker, server := redislocktest.New(t)
	server.Refuse()
	_, err := locker.TryAcquire(context.Background(), "orders")
	fmt.Println(errors.Is(err, redislock.ErrUnavailable), errors.Is(err, redislock.ErrNotAcquired))
	// Output: true false
}

func ExampleServer_Lose() {
	locker, server := redislocktest.New(t)
	lock, _ := locker.Acquire(context.Background(), "orders")
	server.Lose("orders")
	fmt.Println(errors.Is(lock.Release(context.Background()), redislock.ErrNotHeld))
	// Output: true
}

func ExampleServer_Client() {
	_, server := redislocktest.New(t)
	locker, err := redislock.New(server.Client(), redislock.Options{}) // in the code under test
	if err != nil {
		fmt.Println(err)
	}
	defer locker.Close()
	lock, err := locker.Acquire(context.Background(), "orders")
	fmt.Println(err, server.State("orders").Holder == lock.Token())
	// Output: <nil> true
}
