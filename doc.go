// Package redislock is a fair lock for many machines, in Redis 7 or Valkey: first come, first served,
// and handed from holder to holder in one round trip.
//
//	locker, err := redislock.New(client, redislock.Options{}) // client is any rueidis.Client
//	if err != nil {
//		return err
//	}
//	defer locker.Close()
//
//	return locker.Do(ctx, "orders", func(ctx context.Context, lock *redislock.Lock) error {
//		return pay(ctx, order, lock.Fence()) // ctx ends when the lock may be lost
//	}, redislock.WithWait(5*time.Second))
//
// A whole program is in examples/quickstart.
//
// # Take a lock
//
// [Locker.Do] acquires, calls a function, and releases. [Locker.Acquire] returns a [Lock], and
// [Locker.TryAcquire] does not wait. An [Option] changes one call; [Options] are the defaults of all.
// One Locker per process is enough. A lock is not reentrant.
//
// # Hold a lock
//
// A lock has a lease, ten seconds by default. The package renews it every third of that, so the lease
// says how long the others wait if the holder dies. If renewal fails, [Lock.Context] ends ahead of the
// lease: stop then.
//
// A process that was suspended learns too late that it lost the lock. So send [Lock.Fence] with each
// write, and have the storage refuse a lower fence than it has seen.
//
// # Errors
//
// Test for them with errors.Is:
//
//   - [ErrNotAcquired]: the server said that the lock is busy.
//   - [ErrUnavailable]: nobody answered, so nothing is known of the lock.
//   - [ErrLost], [ErrNotHeld]: the lock was lost.
//
// # Beyond this page
//
// One function library in Redis makes all decisions: lua/lock.lua, which this package loads at first
// use. docs/guarantees.md says what happens when something fails, docs/recipes.md has solutions for
// common tasks, and package redislocktest helps to test code that takes locks.
package redislock
