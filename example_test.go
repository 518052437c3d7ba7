package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

// withRedis stands for the Redis that a program has anyway.
func withRedis(use func(client rueidis.Client)) {
	redis, err := redistest.Start()
	if err != nil {
		panic(err)
	}
	defer func() { _ = redis.Stop() }()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redis.Addr()}})
	if err != nil {
		panic(err)
	}
	defer client.Close()
	use(client)
}

type order struct{ paid bool }

func (o *order) pay(context.Context, int64) error {
	o.paid = true
	return nil
}

func Example() {
	withRedis(func(client rueidis.Client) {
		err := example(context.Background(), client, &order{})
		fmt.Println(err)
		// Output: <nil>
	})
}

func example(ctx context.Context, client rueidis.Client, order *order) error {
	locker, err := redislock.New(client, redislock.Options{})
	if err != nil {
		return err
	}
	defer locker.Close()

	// Waits for its turn, first come first served, as long as ctx allows.
	return locker.Do(ctx, "orders", func(ctx context.Context, lock *redislock.Lock) error {
		// ctx ends when the lock may be lost. The fencing token lets the
		// storage refuse a holder that was too late to notice.
		return order.pay(ctx, lock.Fence())
	})
}

func ExampleLocker_Acquire() {
	withRedis(func(client rueidis.Client) {
		err := exampleAcquire(context.Background(), client)
		fmt.Println(err)
		// Output:
		// still held: true
		// <nil>
	})
}

func exampleAcquire(ctx context.Context, client rueidis.Client) error {
	locker, err := redislock.New(client, redislock.Options{Lease: 30 * time.Second})
	if err != nil {
		return err
	}
	defer locker.Close()

	// This bounds the wait. It does not end the lock.
	lock, err := locker.Acquire(ctx, "orders", redislock.WithWait(5*time.Second), redislock.WithOwner("worker-7"))
	if errors.Is(err, redislock.ErrNotAcquired) {
		return nil // busy for 5 seconds
	} else if err != nil {
		return err // with ErrUnavailable: nobody knows whether it is busy
	}
	defer lock.Release(ctx)

	deadline, expires := lock.Deadline() // moves on as the lease is renewed
	fmt.Println("still held:", lock.Context().Err() == nil && expires && time.Until(deadline) > 0)
	return nil
}

func TestExample(t *testing.T) { exampleTest(t) }

func exampleTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Hold("orders") // somebody else
		_, err := locker.TryAcquire(t.Context(), "orders")
		if !errors.Is(err, redislock.ErrNotAcquired) {
			t.Error(err)
		}
		server.Down()
		_, err = locker.Acquire(t.Context(), "orders", redislock.WithWait(time.Minute))
		if !errors.Is(err, redislock.ErrUnavailable) {
			t.Error(err)
		}
	})
}

func ExampleLogEvents() {
	withRedis(func(client rueidis.Client) {
		changing := []string{slog.TimeKey, "fence", "waited", "held"}
		logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if slices.Contains(changing, a.Key) {
				return slog.Attr{}
			}
			return a
		}}))
		err := exampleObserve(context.Background(), client, logger)
		fmt.Println(err)
		// Output:
		// level=INFO msg=redislock lock.event=acquired lock.name=orders lock.handed_over=false
		// level=INFO msg=redislock lock.event=released lock.name=orders
		// <nil>
	})
}

func exampleObserve(ctx context.Context, client rueidis.Client, logger *slog.Logger) error {
	locker, err := redislock.New(client, redislock.Options{Observe: redislock.LogEvents(logger)})
	if err != nil {
		return err
	}
	defer locker.Close()
	return locker.Do(ctx, "orders", func(context.Context, *redislock.Lock) error { return nil })
}

func ExampleLocker_TryAcquire() {
	withRedis(func(client rueidis.Client) {
		locker, err := redislock.New(client, redislock.Options{})
		if err != nil {
			panic(err)
		}
		defer locker.Close()
		ctx := context.Background()
		lock, err := locker.TryAcquire(ctx, "nightly-report")
		fmt.Println(err)
		_, err = locker.TryAcquire(ctx, "nightly-report")
		fmt.Println(err, errors.Is(err, redislock.ErrNotAcquired))
		fmt.Println(lock.Release(ctx))
		// Output:
		// <nil>
		// redislock: try to acquire "nightly-report": not acquired true
		// <nil>
	})
}

func ExampleLocker_Inspect() {
	withRedis(func(client rueidis.Client) {
		locker, err := redislock.New(client, redislock.Options{})
		if err != nil {
			panic(err)
		}
		defer locker.Close()
		ctx := context.Background()
		lock, err := locker.Acquire(ctx, "orders", redislock.WithToken("worker-7"))
		if err != nil {
			panic(err)
		}
		state, err := locker.Inspect(ctx, "orders")
		fmt.Println(state.Holder, state.Fence == lock.Fence(), state.Waiting, err)
		held, err := locker.Reset(ctx, "orders")
		fmt.Println(held, err)
		fmt.Println(lock.Release(ctx))
		// Output:
		// worker-7 true 0 <nil>
		// true <nil>
		// redislock: release "orders": not held
	})
}
