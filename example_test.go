package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

// withRedis stands for the Redis that a program has anyway.
func withRedis(use func(ctx context.Context, client rueidis.Client)) {
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
	use(context.Background(), client)
}

// withLocker stands for the Locker that a process has.
func withLocker(use func(ctx context.Context, locker *redislock.Locker)) {
	withRedis(func(ctx context.Context, client rueidis.Client) {
		locker, err := redislock.New(client, redislock.Options{})
		if err != nil {
			panic(err)
		}
		defer locker.Close()
		use(ctx, locker)
	})
}

func Example() {
	withRedis(func(ctx context.Context, client rueidis.Client) {
		locker, err := redislock.New(client, redislock.Options{})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer locker.Close()

		// Waits for its turn, first come first served, as long as ctx allows.
		err = locker.Do(ctx, "orders", func(ctx context.Context, lock *redislock.Lock) error {
			// ctx ends when the lock may be lost. The fencing token lets the
			// storage refuse a holder that was too late to notice.
			fmt.Println("my turn:", lock.Name(), lock.Fence() > 0)
			return ctx.Err()
		})
		fmt.Println(err)
		// Output:
		// my turn: orders true
		// <nil>
	})
}

func ExampleNew() {
	withRedis(func(ctx context.Context, client rueidis.Client) {
		// These are the defaults of all calls. A call can choose otherwise.
		locker, err := redislock.New(client, redislock.Options{
			Lease:   30 * time.Second, // how long the others wait if this process dies
			MaxHold: time.Hour,        // no lock is held for longer
			Owner:   "worker-7",       // for operators
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer locker.Close() // before client.Close
		lock, err := locker.Acquire(ctx, "orders", redislock.WithoutMaxHold())
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(lock.Token()[:9], lock.Release(ctx))
		// Output: worker-7: <nil>
	})
}

func ExampleLocker_Do() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		refused := errors.New("card refused")
		err := locker.Do(ctx, "orders", func(context.Context, *redislock.Lock) error {
			return refused
		}, redislock.WithWait(5*time.Second)) // bounds the wait, not the work
		switch {
		case errors.Is(err, redislock.ErrNotAcquired):
			fmt.Println("busy for 5 seconds")
		case errors.Is(err, redislock.ErrUnavailable):
			fmt.Println("nobody knows whether it is busy")
		case errors.Is(err, redislock.ErrLost):
			fmt.Println("lost before the work was through")
		default:
			fmt.Println(err)
		}
		// Output: card refused
	})
}

func ExampleLocker_Acquire() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders", redislock.WithWait(5*time.Second))
		if err != nil {
			fmt.Println(err)
			return
		}
		defer lock.Release(ctx)

		deadline, expires := lock.Deadline() // moves on as the lease is renewed
		fmt.Println(lock.Context().Err(), expires, time.Until(deadline) > 0)
		// Output: <nil> true true
	})
}

func ExampleLocker_TryAcquire() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
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

func ExampleLocker_AcquireAll() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		locks, err := locker.AcquireAll(ctx, []string{"account:7", "account:3"})
		if err != nil { // none is held
			fmt.Println(err)
			return
		}
		for _, lock := range locks {
			fmt.Println(lock.Name(), lock.Release(ctx))
		}
		// Output:
		// account:7 <nil>
		// account:3 <nil>
	})
}

func ExampleLocker_DoAll() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		err := locker.DoAll(ctx, []string{"account:7", "account:3"}, func(ctx context.Context, locks []*redislock.Lock) error {
			fmt.Println("from", locks[0].Name(), "to", locks[1].Name())
			return ctx.Err() // ends when any of the locks may be lost
		})
		fmt.Println(err)
		// Output:
		// from account:7 to account:3
		// <nil>
	})
}

func ExampleLocker_Inspect() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders", redislock.WithToken("worker-7"))
		if err != nil {
			fmt.Println(err)
			return
		}
		state, err := locker.Inspect(ctx, "orders")
		fmt.Println(state.Holder, state.Fence == lock.Fence(), state.Held, state.Waiting, err)
		fmt.Println(lock.Release(ctx))
		// Output:
		// worker-7 true 1 0 <nil>
		// <nil>
	})
}

func ExampleLocker_Reset() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders")
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(locker.Reset(ctx, "orders")) // the next waiter gets it
		fmt.Println(lock.Release(ctx))
		// Output:
		// true <nil>
		// redislock: release "orders": not held
	})
}

func ExampleLocker_ResetAll() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		for _, name := range []string{"orders", "nightly-report"} {
			if _, err := locker.Acquire(ctx, name); err != nil {
				fmt.Println(err)
				return
			}
		}
		fmt.Println(locker.ResetAll(ctx))
		// Output: 2 <nil>
	})
}

func ExampleLock_Context() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders", redislock.WithMaxHold(50*time.Millisecond))
		if err != nil {
			fmt.Println(err)
			return
		}
		<-lock.Context().Done() // before somebody else can have it
		fmt.Println(errors.Is(context.Cause(lock.Context()), redislock.ErrLost))
		// Output: true
	})
}

func ExampleLock_Fence() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		highest := int64(0) // in the storage, beside the data
		write := func(fence int64) error {
			if fence < highest {
				return errors.New("refused: a later holder has written")
			}
			highest = fence
			return nil
		}

		first, err := locker.Acquire(ctx, "orders")
		if err != nil {
			fmt.Println(err)
			return
		}
		if _, err := locker.Reset(ctx, "orders"); err != nil { // or its process stands still for a minute
			fmt.Println(err)
			return
		}
		second, err := locker.Acquire(ctx, "orders")
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(write(second.Fence()))
		fmt.Println(write(first.Fence()))
		// Output:
		// <nil>
		// refused: a later holder has written
	})
}

func ExampleLock_Extend() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders", redislock.WithoutRenewal(), redislock.WithLease(10*time.Second))
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(lock.Extend(ctx, time.Minute)) // from now, not in addition
		deadline, _ := lock.Deadline()
		fmt.Println(time.Until(deadline) > 50*time.Second, lock.Release(ctx))
		// Output:
		// <nil>
		// true <nil>
	})
}

func ExampleLock_Detach() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "job-4711")
		if err != nil {
			fmt.Println(err)
			return
		}
		token := lock.Token() // send it to the other process
		lock.Detach()

		// The other process, before the lease is over:
		same, err := locker.Acquire(ctx, "job-4711", redislock.WithToken(token))
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(same.Fence() == lock.Fence(), same.Release(ctx))
		// Output: true <nil>
	})
}

func ExampleLock_Release() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders")
		if err != nil {
			fmt.Println(err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		cancel() // Release ignores it
		fmt.Println(lock.Release(ctx))
		err = lock.Release(ctx)
		fmt.Println(errors.Is(err, redislock.ErrNotHeld), lock.Context().Err())
		// Output:
		// <nil>
		// true context canceled
	})
}

func ExampleLock_Deadline() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders", redislock.WithoutRenewal())
		if err != nil {
			fmt.Println(err)
			return
		}
		defer lock.Release(ctx)
		deadline, expires := lock.Deadline()
		fmt.Println(expires, time.Until(deadline) > 5*time.Second) // is there time for one more step?
		// Output: true true
	})
}

func ExampleLocker_Close() {
	withRedis(func(ctx context.Context, client rueidis.Client) {
		locker, err := redislock.New(client, redislock.Options{})
		if err != nil {
			fmt.Println(err)
			return
		}
		lock, err := locker.Acquire(ctx, "orders")
		if err != nil {
			fmt.Println(err)
			return
		}
		locker.Close() // releases it
		fmt.Println(errors.Is(context.Cause(lock.Context()), redislock.ErrClosed))
		_, err = locker.Acquire(ctx, "orders")
		fmt.Println(errors.Is(err, redislock.ErrClosed))
		// Output:
		// true
		// true
	})
}

func ExampleWithWait() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		if _, err := locker.Acquire(ctx, "orders"); err != nil {
			fmt.Println(err)
			return
		}
		_, err := locker.Acquire(ctx, "orders", redislock.WithWait(50*time.Millisecond))
		fmt.Println(errors.Is(err, redislock.ErrNotAcquired), errors.Is(err, context.DeadlineExceeded))
		// Output: true true
	})
}

func ExampleWithLease() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		// If this process dies, the others wait for a minute.
		lock, err := locker.Acquire(ctx, "orders", redislock.WithLease(time.Minute))
		if err != nil {
			fmt.Println(err)
			return
		}
		deadline, _ := lock.Deadline()
		fmt.Println(time.Until(deadline) > 30*time.Second, lock.Release(ctx))
		// Output: true <nil>
	})
}

func ExampleWithoutExpiry() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "maintenance", redislock.WithoutExpiry())
		if err != nil {
			fmt.Println(err)
			return
		}
		_, expires := lock.Deadline() // if this process dies, somebody must Reset the lock
		fmt.Println(expires, lock.Release(ctx))
		// Output: false <nil>
	})
}

func ExampleWithoutRenewal() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders", redislock.WithoutRenewal(), redislock.WithLease(50*time.Millisecond))
		if err != nil {
			fmt.Println(err)
			return
		}
		<-lock.Context().Done()
		fmt.Println(errors.Is(context.Cause(lock.Context()), redislock.ErrLost))
		// Output: true
	})
}

func ExampleWithMaxHold() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		err := locker.Do(ctx, "orders", func(ctx context.Context, _ *redislock.Lock) error {
			<-ctx.Done() // work that hangs
			return nil
		}, redislock.WithMaxHold(50*time.Millisecond))
		fmt.Println(errors.Is(err, redislock.ErrLost))
		// Output: true
	})
}

func ExampleWithOwner() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		lock, err := locker.Acquire(ctx, "orders", redislock.WithOwner("checkout"))
		if err != nil {
			fmt.Println(err)
			return
		}
		owner, _, _ := strings.Cut(lock.Token(), ":")
		fmt.Println(owner, lock.Release(ctx))
		// Output: checkout <nil>
	})
}

func ExampleWithToken() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		token := redislock.WithToken("job-4711-secret") // in real life, 128 random bits
		lock, err := locker.Acquire(ctx, "job-4711", token)
		if err != nil {
			fmt.Println(err)
			return
		}
		same, err := locker.Acquire(ctx, "job-4711", token) // the same holder
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(same.Fence() == lock.Fence(), same.Release(ctx))
		// Output: true <nil>
	})
}

func ExampleWithReplicas() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		// This server has no replica.
		_, err := locker.Acquire(ctx, "orders", redislock.WithReplicas(1, 50*time.Millisecond))
		fmt.Println(errors.Is(err, redislock.ErrNotReplicated)) // and the lock is released
		// Output: true
	})
}

func ExampleWithHolders() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		for range 2 {
			if _, err := locker.Acquire(ctx, "encoder", redislock.WithHolders(2)); err != nil {
				fmt.Println(err)
				return
			}
		}
		_, err := locker.TryAcquire(ctx, "encoder", redislock.WithHolders(2)) // the third
		fmt.Println(errors.Is(err, redislock.ErrNotAcquired))
		// Output: true
	})
}

func ExampleWithShared() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		for range 3 {
			if _, err := locker.Acquire(ctx, "schema", redislock.WithShared()); err != nil {
				fmt.Println(err)
				return
			}
		}
		state, err := locker.Inspect(ctx, "schema")
		fmt.Println(state.Held, err)
		_, err = locker.TryAcquire(ctx, "schema") // a writer: alone
		fmt.Println(errors.Is(err, redislock.ErrNotAcquired))
		// Output:
		// 3 <nil>
		// true
	})
}

func ExampleWithMinHold() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		report := func(context.Context, *redislock.Lock) error {
			fmt.Println("one report an hour")
			return nil
		}
		once := []redislock.Option{redislock.WithWait(0), redislock.WithMinHold(time.Hour)}
		fmt.Println(locker.Do(ctx, "report", report, once...))
		fmt.Println(errors.Is(locker.Do(ctx, "report", report, once...), redislock.ErrNotAcquired))
		// Output:
		// one report an hour
		// <nil>
		// true
	})
}

func ExampleWithQueueLimit() {
	withLocker(func(ctx context.Context, locker *redislock.Locker) {
		if _, err := locker.Acquire(ctx, "orders"); err != nil {
			fmt.Println(err)
			return
		}
		_, err := locker.Acquire(ctx, "orders", redislock.WithQueueLimit(0)) // nobody may wait before it
		fmt.Println(errors.Is(err, redislock.ErrQueueFull), errors.Is(err, redislock.ErrNotAcquired))
		// Output: true true
	})
}

func ExampleLoad() {
	withRedis(func(ctx context.Context, client rueidis.Client) {
		fmt.Println(redislock.Load(ctx, client)) // in a deployment, by a user who may

		locker, err := redislock.New(client, redislock.Options{LoadMode: redislock.LoadVerify})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer locker.Close()
		_, err = locker.TryAcquire(ctx, "orders")
		fmt.Println(err)
		// Output:
		// <nil>
		// <nil>
	})
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

func ExampleVersionError() {
	withRedis(func(ctx context.Context, client rueidis.Client) {
		locker, err := redislock.New(client, redislock.Options{LoadMode: redislock.LoadVerify})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer locker.Close()
		_, err = locker.TryAcquire(ctx, "orders")
		var wrong *redislock.VersionError
		if errors.As(err, &wrong) { // Error() has the command for the DBA
			fmt.Println(wrong.Reason, wrong.Want == redislock.Version)
		}
		// Output: the library is missing true
	})
}

func ExampleLogEvents() {
	withRedis(func(ctx context.Context, client rueidis.Client) {
		changing := []string{slog.TimeKey, "fence", "waited", "held"}
		logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if slices.Contains(changing, a.Key) {
				return slog.Attr{}
			}
			return a
		}}))
		err := exampleObserve(ctx, client, logger)
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
