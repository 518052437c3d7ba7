package virtualtest

import (
	"context"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

// lasts fails the test unless this is the rest of the lease.
func lasts(t *testing.T, server *redislocktest.Server, want time.Duration) {
	t.Helper()
	if ttl := server.State(name).TTL; ttl < want || ttl > want+time.Millisecond {
		t.Errorf("%v are left, not %v", ttl, want)
	}
}

// TestMinHoldOncePerPeriod: a job of 10 ms on three machines whose clocks are 100 ms apart runs once.
func TestMinHoldOncePerPeriod(t *testing.T) {
	const job, period = 10 * time.Millisecond, time.Second
	opts := []redislock.Option{redislock.WithMinHold(period), redislock.WithLease(100 * time.Millisecond)}
	work := func(t *testing.T, locker *redislock.Locker) *redislock.Lock {
		lock, err := locker.TryAcquire(t.Context(), name, opts...)
		if err != nil {
			is(t, err, redislock.ErrNotAcquired)
			return nil
		}
		time.Sleep(job)
		return lock
	}
	for text, run := range map[string]func(*testing.T, *redislocktest.Server, *redislock.Locker) *redislock.Lock{
		"released": func(t *testing.T, _ *redislocktest.Server, locker *redislock.Locker) *redislock.Lock {
			lock := work(t, locker)
			if lock != nil {
				if err := lock.Release(t.Context()); err != nil {
					t.Error(err)
				}
			}
			return lock
		},
		"Release's ctx has ended": func(t *testing.T, _ *redislocktest.Server, locker *redislock.Locker) *redislock.Lock {
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			lock := work(t, locker)
			if lock != nil {
				if err := lock.Release(ended); err != nil {
					t.Error(err)
				}
			}
			return lock
		},
		"its holder is killed": func(t *testing.T, server *redislocktest.Server, locker *redislock.Locker) *redislock.Lock {
			lock := work(t, locker)
			if lock != nil {
				server.Kill(locker)
			}
			return lock
		},
		"its Locker is closed": func(t *testing.T, _ *redislocktest.Server, locker *redislock.Locker) *redislock.Lock {
			lock := work(t, locker)
			if lock != nil {
				locker.Close()
				if err := lock.Release(t.Context()); err != nil {
					t.Error(err)
				}
			}
			return lock
		},
		"in Do": func(t *testing.T, _ *redislocktest.Server, locker *redislock.Locker) (ran *redislock.Lock) {
			err := locker.Do(t.Context(), name, func(_ context.Context, lock *redislock.Lock) error {
				time.Sleep(job)
				ran = lock
				return nil
			}, append(opts, redislock.WithWait(0))...)
			if ran == nil {
				is(t, err, redislock.ErrNotAcquired)
			} else if err != nil {
				t.Error(err)
			}
			return ran
		},
	} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				locker, server := redislocktest.New(t)
				server.Delay(2 * time.Millisecond)
				lockers := []*redislock.Locker{locker, server.Locker(), server.Locker()}
				for period := range 3 {
					ran := 0
					for i := range lockers {
						if run(t, server, lockers[i]) != nil {
							ran++
							lockers[i] = server.Locker() // started again, if need be
						}
						time.Sleep(100 * time.Millisecond)
					}
					if ran != 1 {
						t.Errorf("period %d: it ran %d times", period, ran)
					}
					time.Sleep(time.Second)
				}
			})
		})
	}
}

// TestMinHoldAndWaiters: who waits gets the lock when the minimum hold is over, and not before.
func TestMinHoldAndWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		start := time.Now()
		for i := range 3 {
			lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(time.Minute)))
			took(t, start, time.Duration(i)*time.Minute, time.Duration(i)*(time.Minute+1100*time.Millisecond))
			if err := lock.Release(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if server.State(name).Held != 1 {
			t.Error("it is not kept")
		}
	})
}

// TestMinHoldHandedOver: a holder that dies as soon as it has the lock has used up the period, too.
func TestMinHoldHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		other := server.Hold(name)
		time.AfterFunc(1500*time.Millisecond, other.Release)
		lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(time.Minute)))
		server.Kill(locker)
		lasts(t, server, time.Minute)
		time.Sleep(59 * time.Second)
		if holder := server.State(name).Holder; holder != lock.Token() {
			t.Errorf("%q holds it", holder)
		}
	})
}

// TestMinHoldRelease: what Release leaves behind.
func TestMinHoldRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		for text, opt := range map[string]redislock.Option{
			"a longer lease": redislock.WithLease(time.Hour), "a shorter lease": redislock.WithLease(time.Second),
			"no expiry": redislock.WithoutExpiry(), "no renewal": redislock.WithoutRenewal(),
			"the maximum hold": redislock.WithMaxHold(time.Minute),
		} {
			lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(time.Minute), opt))
			time.Sleep(20 * time.Second)
			if err := context.Cause(lock.Context()); err != nil {
				t.Errorf("%s: %v", text, err)
			}
			server.LoseReply()
			if err := lock.Release(t.Context()); err != nil {
				t.Errorf("%s: %v", text, err)
			}
			cause(lock.Context(), t, context.Canceled)
			is(t, lock.Release(t.Context()), redislock.ErrNotHeld)
			is(t, lock.Extend(t.Context(), time.Hour), redislock.ErrNotHeld)
			time.Sleep(30 * time.Second)
			if ttl := server.State(name).TTL; ttl < 9900*time.Millisecond || ttl > 10*time.Second { // of a call that was repeated
				t.Errorf("%s: %v are left", text, ttl)
			}
			time.Sleep(10 * time.Second)
			if held := server.State(name).Held; held != 0 {
				t.Errorf("%s: it is held on", text)
			}
		}
	})
}

// TestMinHoldWhile: every lease is at least the rest of the minimum hold, and a loss is seen no later than with
// the lease that was asked for.
func TestMinHoldWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(time.Minute), redislock.WithLease(3*time.Second)))
		start := time.Now()
		lasts(t, server, time.Minute)
		time.Sleep(10 * time.Second)
		if err := lock.Extend(t.Context(), 2*time.Second); err != nil {
			t.Error(err)
		}
		lasts(t, server, 50*time.Second)
		deadline, _ := lock.Deadline()
		took(t, deadline.Add(-time.Minute), 10*time.Second, 10*time.Second)
		for range 600 {
			time.Sleep(99 * time.Millisecond)
			if left := time.Minute - time.Since(start); server.State(name).TTL < left {
				t.Fatalf("%v are left, not %v", server.State(name).TTL, left)
			}
		}
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}

		lock = must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(time.Minute), redislock.WithLease(3*time.Second)))
		server.Lose(name)
		lost := time.Now()
		<-lock.Context().Done()
		took(t, lost, 0, time.Second)
		cause(lock.Context(), t, redislock.ErrLost)
		is(t, lock.Release(t.Context()), redislock.ErrNotHeld)

		lock = must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(time.Minute)))
		time.Sleep(10 * time.Second)
		until := lock.Detach()
		took(t, until.Add(-time.Minute), 10*time.Second, 10*time.Second)
		lasts(t, server, 50*time.Second)
	})
}

// TestMinHoldUnanswered: Redis does not answer when the lock is released, or its holder is told of a loss.
func TestMinHoldUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(time.Minute)))
		server.Down()
		is(t, lock.Release(t.Context()), redislock.ErrUnavailable)
		server.Up()
		lasts(t, server, 55*time.Second)
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}
		lasts(t, server, 55*time.Second)
		time.Sleep(time.Minute)

		lock = must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(time.Minute), redislock.WithMaxHold(time.Minute)))
		<-lock.Context().Done() // ahead of the deadline
		cause(lock.Context(), t, redislock.ErrLost)
		if err := lock.Release(t.Context()); err != nil {
			t.Error(err)
		}
		lasts(t, server, 500*time.Millisecond)
	})
}

// TestMinHoldOfNobody: a call that returns no lock keeps none.
func TestMinHoldOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		minHold := redislock.WithMinHold(time.Minute)
		server.SetReplicas(0)
		_, err := locker.Acquire(t.Context(), name, minHold, redislock.WithReplicas(1, time.Second))
		is(t, err, redislock.ErrNotReplicated)
		lasts(t, server, 0)

		server.Delay(200 * time.Millisecond)
		_, err = locker.Acquire(t.Context(), name, minHold, redislock.WithWait(150*time.Millisecond)) // the call has arrived
		is(t, err, redislock.ErrUnavailable)
		time.Sleep(time.Second)
		lasts(t, server, 0)
		server.Delay(0)

		_, err = locker.AcquireAll(t.Context(), []string{name, "other", "other2"}, minHold, redislock.WithWait(0))
		if err != nil {
			t.Fatal(err)
		}
		_, err = locker.AcquireAll(t.Context(), []string{"a", "other"}, minHold, redislock.WithWait(0))
		is(t, err, redislock.ErrNotAcquired)
		if held := server.State("a").Held; held != 0 {
			t.Error("a is kept")
		}

		panics := server.Locker(redislock.Options{Observe: func(context.Context, redislock.Event) { panic("in Observe") }})
		func() {
			defer func() { _ = recover() }()
			_, _ = panics.Acquire(t.Context(), "b", minHold)
		}()
		if held := server.State("b").Held; held != 0 {
			t.Error("b is kept")
		}
	})
}

func TestMinHoldIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t, redislock.Options{MaxHold: time.Minute})
		server.Refuse() // nothing is sent
		for d, text := range map[time.Duration]string{-1: "-1ns", 2 * time.Minute: "the maximum hold, 1m0s"} {
			_, err := locker.TryAcquire(t.Context(), name, redislock.WithMinHold(d))
			isNot(t, err, redislock.ErrUnavailable)
			says(t, err, text)
		}
		_, err := locker.TryAcquire(t.Context(), name, redislock.WithMinHold(math.MaxInt64), redislock.WithoutMaxHold())
		says(t, err, "at most 2190000h")
		server.Up()
		lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithMinHold(2*time.Minute), redislock.WithoutMaxHold(), redislock.WithMinHold(0)))
		_ = lock.Release(t.Context())
		lasts(t, server, 0)
	})
}

// TestMinHoldAtRandom: whatever holders do, and whatever becomes of their calls, no two grants are closer than that. A
// fencing token is the time of its grant.
func TestMinHoldAtRandom(t *testing.T) {
	const minHold = time.Second
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			_, server := redislocktest.New(t)
			quiet := redislock.Options{Logger: slog.New(slog.DiscardHandler)}
			over, stop := context.WithTimeout(t.Context(), 5*time.Minute)
			defer stop()
			var mu sync.Mutex
			var fences []int64
			work := func(rnd *rand.Rand, locker *redislock.Locker) (dead bool) {
				opts := []redislock.Option{redislock.WithMinHold(minHold), redislock.WithLease(time.Duration(1+rnd.IntN(3000)) * time.Millisecond)}
				if rnd.IntN(3) == 0 {
					opts = append(opts, redislock.WithMaxHold(minHold+time.Duration(rnd.IntN(1000))*time.Millisecond))
				}
				switch rnd.IntN(12) {
				case 0:
					opts = append(opts, redislock.WithoutRenewal())
				case 1:
					opts = append(opts, redislock.WithReplicas(1, time.Second))
				case 2:
					opts = append(opts, redislock.WithWait(time.Duration(rnd.IntN(3))*time.Second))
				}
				if rnd.IntN(4) == 0 {
					server.LoseReply()
				}
				lock, err := locker.Acquire(over, name, opts...)
				if err != nil {
					return false
				}
				mu.Lock()
				fences = append(fences, lock.Fence())
				mu.Unlock()
				time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
				if rnd.IntN(4) == 0 {
					server.LoseReply()
				}
				switch rnd.IntN(8) {
				case 0:
					server.Kill(locker)
					return true
				case 1:
					locker.Close()
					return true
				case 2:
					lock.Detach()
				case 3:
					_ = lock.Extend(over, time.Duration(1+rnd.IntN(2000))*time.Millisecond)
				}
				_ = lock.Release(over)
				_ = lock.Release(over)
				return false
			}
			var all sync.WaitGroup
			for user := range uint64(4) {
				rnd := rand.New(rand.NewPCG(seed, user))
				all.Go(func() {
					locker := server.Locker(quiet)
					for over.Err() == nil {
						if work(rnd, locker) {
							locker = server.Locker(quiet)
						}
						time.Sleep(time.Duration(1+rnd.IntN(300)) * time.Millisecond)
					}
				})
			}
			rnd := rand.New(rand.NewPCG(seed, 99))
			for over.Err() == nil {
				time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
				server.Delay(time.Duration(rnd.IntN(100)) * time.Millisecond)
				if rnd.IntN(4) == 0 {
					server.Down()
					time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
					server.Up()
				}
			}
			all.Wait()
			slices.Sort(fences)
			for i := 1; i < len(fences); i++ {
				if d := time.Duration(fences[i]-fences[i-1]) * time.Microsecond; d < minHold {
					t.Errorf("seed %d: two grants in %v", seed, d)
				}
			}
			if len(fences) < 60 {
				t.Errorf("seed %d: %d grants", seed, len(fences))
			}
		})
	}
}
