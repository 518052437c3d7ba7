package virtualtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

var (
	three  = redislock.WithHolders(3)
	reader = redislock.WithShared()
)

// waiting starts an Acquire and returns when nothing happens any more.
func waiting(t *testing.T, locker *redislock.Locker, opts ...redislock.Option) <-chan *redislock.Lock {
	got := make(chan *redislock.Lock, 1)
	go func() {
		lock, err := locker.Acquire(t.Context(), name, append(opts, redislock.WithWait(time.Hour))...)
		if err != nil {
			t.Error(err)
		}
		got <- lock
	}()
	synctest.Wait()
	return got
}

// released fails the test unless the lock was held.
func released(t *testing.T, lock *redislock.Lock) {
	t.Helper()
	if err := lock.Release(t.Context()); err != nil {
		t.Error(err)
	}
	synctest.Wait()
}

func none(t *testing.T, got ...<-chan *redislock.Lock) {
	t.Helper()
	for i, c := range got {
		if len(c) > 0 {
			t.Errorf("%d has the lock", i)
		}
	}
}

// TestPermits: n hold the lock together, one fence for all, and the next one waits for a place.
func TestPermits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		var locks []*redislock.Lock
		for range 3 {
			locks = append(locks, must[*redislock.Lock](t)(server.Locker().Acquire(t.Context(), name, three)))
		}
		fourth := waiting(t, locker, three)
		fifth := waiting(t, locker, redislock.WithHolders(4))
		none(t, fourth, fifth) // it does not overtake
		s := server.State(name)
		if s.Held != 3 || len(s.Holders) != 3 || s.Waiting != 2 || s.Waiters[0].Holders != 3 || s.Waiters[1].Holders != 4 {
			t.Errorf("%+v", s)
		}
		for _, lock := range locks {
			if lock.Fence() != s.Fence || !slices.ContainsFunc(s.Holders, func(h redislock.Holder) bool { return h.Token == lock.Token() && h.TTL == 10*time.Second }) {
				t.Errorf("%s: %+v", lock.Token(), s)
			}
		}
		released(t, locks[1])
		if len(fourth) != 1 || len(fifth) != 1 {
			t.Error("two places are not given to both")
		}
		_, err := locker.TryAcquire(t.Context(), name, three)
		is(t, err, redislock.ErrNotAcquired)
		for _, lock := range []*redislock.Lock{locks[0], locks[2], <-fourth, <-fifth} {
			time.Sleep(time.Minute) // each is renewed by itself
			released(t, lock)
		}
		isFree(t, server, name)
	})
}

// TestWriterIsNotOvertaken: neither by a reader nor by a try.
func TestWriterIsNotOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		first := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, reader))
		second := must[*redislock.Lock](t)(server.Locker().TryAcquire(t.Context(), name, reader))
		writer := waiting(t, server.Locker())
		readers := []<-chan *redislock.Lock{waiting(t, locker, reader), waiting(t, server.Locker(), reader)}
		_, err := locker.TryAcquire(t.Context(), name, reader)
		is(t, err, redislock.ErrNotAcquired)
		released(t, first)
		time.Sleep(time.Minute)
		none(t, writer, readers[0], readers[1])
		released(t, second)
		if len(writer) != 1 {
			t.Fatal("the writer waits on")
		}
		time.Sleep(time.Minute)
		none(t, readers...)
		w := <-writer
		released(t, w)
		for _, got := range readers {
			lock := <-got
			if lock.Fence() <= w.Fence() {
				t.Errorf("fence %d after %d", lock.Fence(), w.Fence())
			}
			released(t, lock)
		}
		isFree(t, server, name)
	})
}

// TestSharesEndByThemselves: leases of 1 s, 60 s and without an end, side by side; the dead cost their own lease.
func TestSharesEndByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		short, long := server.Locker(), server.Locker()
		_ = must[*redislock.Lock](t)(short.Acquire(t.Context(), name, three, redislock.WithLease(time.Second)))
		_ = must[*redislock.Lock](t)(long.Acquire(t.Context(), name, three, redislock.WithLease(time.Minute)))
		forever := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, three, redislock.WithoutExpiry()))
		time.Sleep(time.Hour)
		server.Kill(short)
		start := time.Now()
		fourth := <-waiting(t, locker, three)
		took(t, start, 500*time.Millisecond, 2*time.Second)
		server.Kill(long)
		start = time.Now()
		fifth := <-waiting(t, locker, three)
		took(t, start, 40*time.Second, 61*time.Second)
		for _, lock := range []*redislock.Lock{forever, fourth, fifth} {
			if err := context.Cause(lock.Context()); err != nil {
				t.Error(err)
			}
		}
		released(t, forever)
		released(t, fourth)
		if ttl := server.State(name).TTL; ttl <= 0 || ttl > 10*time.Second {
			t.Errorf("TTL %v", ttl)
		}
		released(t, fifth)
	})
}

// TestOneShareForOneCall: a reply that is lost, or a call that is repeated.
func TestOneShareForOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t, redislock.Options{Logger: slog.New(slog.DiscardHandler)})
		for range 3 {
			server.LoseReply()
			lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, three))
			if held := server.State(name).Held; held != 1 {
				t.Errorf("%d hold it", held)
			}
			server.LoseReply()
			released(t, lock)
			isFree(t, server, name)
		}
		mine := redislock.WithToken("mine")
		lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, reader, mine))
		joined := must[*redislock.Lock](t)(server.Locker().Acquire(t.Context(), name, reader, mine))
		if held := server.State(name).Held; held != 1 || joined.Fence() != lock.Fence() {
			t.Errorf("%d hold it", held)
		}
		released(t, joined)
	})
}

// TestStartsPerPeriod: n starts, whatever becomes of them.
func TestStartsPerPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		var starts []time.Duration
		begin := time.Now()
		for i := range 12 {
			dies := server.Locker()
			lock := must[*redislock.Lock](t)(dies.Acquire(t.Context(), name, three, redislock.WithMinHold(10*time.Second)))
			starts = append(starts, time.Since(begin))
			if i%2 == 0 {
				released(t, lock)
			} else {
				server.Kill(dies)
			}
		}
		for i := range starts {
			if i >= 3 && starts[i]-starts[i-3] < 10*time.Second {
				t.Errorf("four starts in %v", starts[i]-starts[i-3])
			}
		}
		if last := starts[len(starts)-1]; last > 34*time.Second {
			t.Errorf("it took %v", last)
		}
		_ = locker
	})
}

// TestTogetherIsReset: Reset and ResetAll take the lock from all.
func TestTogetherIsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		for _, reset := range []func() (any, error){
			func() (any, error) { return locker.Reset(t.Context(), name) },
			func() (any, error) { return locker.ResetAll(t.Context()) },
		} {
			locks := []*redislock.Lock{
				must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, reader)),
				must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, reader)),
			}
			if n, err := reset(); err != nil || n != true && n != 1 {
				t.Error(n, err)
			}
			isFree(t, server, name)
			for _, lock := range locks {
				<-lock.Context().Done()
				cause(lock.Context(), t, redislock.ErrLost)
				is(t, lock.Release(t.Context()), redislock.ErrNotHeld)
			}
		}
	})
}

// TestNeverMoreThanTheLimit: permits, readers and writers that die, over a network that loses replies; at the end
// there is room for all again.
func TestNeverMoreThanTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Delay(2 * time.Millisecond)
		quiet := redislock.Options{Logger: slog.New(slog.DiscardHandler)}
		var permits, readers, writers, grants atomic.Int64
		var all sync.WaitGroup
		for i := range 9 {
			all.Go(func() {
				for round := range 40 {
					l := server.Locker(quiet)
					count, opt := &permits, three
					if kind := (i + round) % 5; kind == 0 {
						count, opt = &writers, redislock.WithHolders(1)
					} else if kind == 1 {
						count, opt = &readers, reader
					}
					if round%3 == 0 {
						server.LoseReply()
					}
					err := l.Do(t.Context(), name, func(ctx context.Context, _ *redislock.Lock) error {
						count.Add(1)
						defer count.Add(-1)
						p, r, w := permits.Load(), readers.Load(), writers.Load()
						if w > 1 || w > 0 && p+r > 0 || p > 3 { // readers may join those with permits
							return fmt.Errorf("%d with a permit, %d readers, %d writers", p, r, w)
						}
						grants.Add(1)
						time.Sleep(time.Duration(round) * time.Millisecond)
						if round%7 == 0 {
							server.Kill(l)
							<-ctx.Done()
						}
						return nil
					}, opt, redislock.WithWait(time.Hour))
					if err != nil && !errors.Is(err, redislock.ErrLost) {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if n := grants.Load(); n != 9*40 {
			t.Errorf("%d grants", n)
		}
		for range 3 {
			_ = must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, three, redislock.WithWait(time.Minute)))
		}
	})
}

// TestManyReaders: 3,000 in one process, or in thirty, behind a writer and 100 readers that have died, over a slow
// network. One signal for each round trip would take 150 s, and those that lie unread are for the dead.
func TestManyReaders(t *testing.T) {
	const readers, dead = 3000, 100
	for _, processes := range []int{1, 30} {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			writer := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name))
			server.Delay(50 * time.Millisecond)
			for range dead {
				dies := server.Locker()
				go func() { _, _ = dies.Acquire(t.Context(), name, reader) }()
				time.Sleep(50 * time.Millisecond)
				server.Kill(dies)
			}
			var all sync.WaitGroup
			for range processes {
				locker := server.Locker()
				for range readers / processes {
					all.Go(func() {
						if _, err := locker.Acquire(t.Context(), name, reader, redislock.WithWait(time.Hour)); err != nil {
							t.Error(err)
						}
					})
				}
			}
			time.Sleep(10 * time.Second)
			if n := server.State(name).Waiting; n != readers+dead {
				t.Errorf("%d wait", n)
			}
			start := time.Now()
			released(t, writer)
			all.Wait()
			took(t, start, 0, 3*time.Second)
			if held := server.State(name).Held; held < readers || held > readers+dead {
				t.Errorf("%d hold it", held)
			}
		})
	}
}

// TestWriterThatDies: one that died at the head costs the readers behind it seconds, one that answers slowly keeps its place.
func TestWriterThatDies(t *testing.T) {
	for _, dies := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			locker, server := redislocktest.New(t)
			first := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, reader))
			slow := server.Locker()
			server.Delay(1500 * time.Millisecond)
			var writer <-chan *redislock.Lock
			if dies {
				go func() { _, _ = slow.Acquire(t.Context(), name) }()
				time.Sleep(2 * time.Second)
				server.Kill(slow)
			} else {
				writer = waiting(t, slow)
				time.Sleep(2 * time.Second)
			}
			server.Delay(time.Millisecond)
			start := time.Now()
			second := waiting(t, server.Locker(), reader)
			if !dies {
				server.Delay(1500 * time.Millisecond)
				time.Sleep(time.Minute)
				none(t, second)
				released(t, first)
				released(t, <-writer)
				released(t, <-second)
				return
			}
			lock := <-second
			took(t, start, 0, 6*time.Second)
			released(t, lock)
			released(t, first)
		})
	}
}
