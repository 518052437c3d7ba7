package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

// The functions are the code of docs/recipes.md. They run on a server in memory, in no time.

func nightly(ctx context.Context, locker *redislock.Locker, report func(context.Context) error) error {
	err := locker.Do(ctx, "nightly-report", func(ctx context.Context, _ *redislock.Lock) error {
		return report(ctx)
	}, redislock.WithWait(0), redislock.WithMinHold(time.Hour))
	if errors.Is(err, redislock.ErrNotAcquired) {
		return nil // another machine is at it, or has been
	}
	return err // with ErrUnavailable: nobody knows whether it ran
}

func TestRecipeCron(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		ran := 0
		for night := 1; night <= 3; night++ {
			for _, machine := range []*redislock.Locker{locker, server.Locker(), server.Locker()} {
				err := nightly(t.Context(), machine, func(context.Context) error { ran++; return nil })
				if err != nil || ran != night {
					t.Errorf("night %d: it ran %d times, %v", night, ran, err)
				}
				time.Sleep(time.Minute) // their clocks differ
			}
			time.Sleep(23 * time.Hour)
		}
		server.Refuse()
		if err := nightly(t.Context(), locker, nil); !errors.Is(err, redislock.ErrUnavailable) {
			t.Error(err)
		}
	})
}

func convert(ctx context.Context, locker *redislock.Locker, encode func(context.Context) error) error {
	err := locker.Do(ctx, "encoder", func(ctx context.Context, _ *redislock.Lock) error {
		return encode(ctx)
	}, redislock.WithHolders(4), redislock.WithQueueLimit(20))
	if errors.Is(err, redislock.ErrQueueFull) {
		return fmt.Errorf("try again later: %w", err)
	}
	return err
}

func TestRecipePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		var mu sync.Mutex
		working, most, done, refused := 0, 0, 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			working += n
			most = max(most, working)
		}
		lockers := []*redislock.Locker{locker, server.Locker()}
		var all sync.WaitGroup
		for i := range 30 {
			all.Go(func() {
				err := convert(t.Context(), lockers[i%2], func(context.Context) error {
					count(1)
					time.Sleep(time.Minute)
					count(-1)
					return nil
				})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					done++
				} else if errors.Is(err, redislock.ErrQueueFull) {
					refused++
				}
			})
		}
		all.Wait()
		if most != 4 || done != 24 || refused != 6 {
			t.Errorf("%d at once, %d done, %d refused", most, done, refused)
		}
	})
}

func serve(ctx context.Context, locker *redislock.Locker, handle func(context.Context) error) error {
	return locker.Do(ctx, "schema", func(ctx context.Context, _ *redislock.Lock) error {
		return handle(ctx)
	}, redislock.WithShared(), redislock.WithWait(30*time.Second))
}

func migrate(ctx context.Context, locker *redislock.Locker, run func(ctx context.Context, fence int64) error) error {
	return locker.Do(ctx, "schema", func(ctx context.Context, lock *redislock.Lock) error {
		return run(ctx, lock.Fence())
	})
}

func TestRecipeReadersAndMigration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		var mu sync.Mutex
		serving, most, migrating := 0, 0, false
		serveOne := func() {
			err := serve(t.Context(), locker, func(context.Context) error {
				mu.Lock()
				serving++
				most = max(most, serving)
				if migrating {
					t.Error("served in a migration")
				}
				mu.Unlock()
				time.Sleep(3 * time.Second)
				mu.Lock()
				defer mu.Unlock()
				serving--
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
		var all sync.WaitGroup
		for range 20 {
			all.Go(serveOne)
			time.Sleep(100 * time.Millisecond)
		}
		all.Go(func() {
			err := migrate(t.Context(), server.Locker(), func(_ context.Context, fence int64) error {
				mu.Lock()
				if serving != 0 || fence == 0 {
					t.Errorf("%d are served, fence %d", serving, fence)
				}
				migrating = true
				mu.Unlock()
				time.Sleep(5 * time.Second)
				mu.Lock()
				defer mu.Unlock()
				migrating = false
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if waiting := server.State("schema").Waiting; waiting != 1 {
			t.Errorf("%d wait", waiting)
		}
		all.Go(serveOne) // behind it
		all.Wait()
		if most != 20 {
			t.Errorf("%d at most", most)
		}
	})
}

func lead(ctx context.Context, locker *redislock.Locker, term func(ctx context.Context, fence int64) error) error {
	for {
		err := locker.Do(ctx, "leader", func(ctx context.Context, lock *redislock.Lock) error {
			return term(ctx, lock.Fence()) // until ctx ends: another one may lead then
		})
		if ctx.Err() != nil || err != nil && !errors.Is(err, redislock.ErrLost) {
			return err
		}
	}
}

func TestRecipeLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		ctx, stop := context.WithCancel(t.Context())
		var mu sync.Mutex
		leading, terms, last := 0, 0, int64(0)
		term := func(ctx context.Context, fence int64) error {
			mu.Lock()
			if leading++; leading > 1 || fence <= last {
				t.Errorf("%d lead, fence %d after %d", leading, fence, last)
			}
			terms, last = terms+1, fence
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			leading--
			return nil
		}
		var all sync.WaitGroup
		for _, l := range []*redislock.Locker{locker, server.Locker(), server.Locker()} {
			all.Go(func() { _ = lead(ctx, l, term) })
		}
		time.Sleep(time.Minute)
		server.Down()
		time.Sleep(time.Minute)
		mu.Lock()
		if leading != 0 || terms != 1 {
			t.Errorf("%d lead, %d terms", leading, terms)
		}
		mu.Unlock()
		server.Up()
		time.Sleep(time.Minute)
		mu.Lock()
		if leading != 1 || terms != 2 {
			t.Errorf("%d lead, %d terms", leading, terms)
		}
		mu.Unlock()
		stop()
		all.Wait()
	})
}

func callPartner(ctx context.Context, locker *redislock.Locker, call func(context.Context) error) error {
	return locker.Do(ctx, "partner-api", func(ctx context.Context, _ *redislock.Lock) error {
		return call(ctx)
	}, redislock.WithHolders(5), redislock.WithMinHold(time.Minute))
}

func TestRecipeStartsPerPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		lockers := []*redislock.Locker{locker, server.Locker()}
		var mu sync.Mutex
		var calls []time.Time
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				err := callPartner(t.Context(), lockers[i%2], func(context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					calls = append(calls, time.Now())
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for i := 5; i < len(calls); i++ {
			if d := calls[i].Sub(calls[i-5]); d < time.Minute || d > 62*time.Second {
				t.Errorf("six calls in %v", d)
			}
		}
	})
}

func prepare(ctx context.Context, locker *redislock.Locker, job string, enqueue func(job, token string) error) error {
	lock, err := locker.Acquire(ctx, job)
	if err != nil {
		return err
	}
	err = lock.Extend(ctx, time.Minute) // so long the job may lie in the queue
	if err == nil {
		err = enqueue(job, lock.Token())
	}
	if err != nil {
		return errors.Join(err, lock.Release(ctx))
	}
	lock.Detach()
	return nil
}

func finish(ctx context.Context, locker *redislock.Locker, job, token string, work func(context.Context) error) error {
	return locker.Do(ctx, job, func(ctx context.Context, _ *redislock.Lock) error {
		return work(ctx)
	}, redislock.WithToken(token), redislock.WithLease(time.Minute))
}

func TestRecipePassOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		var token string
		err := prepare(t.Context(), locker, "job-7", func(_, of string) error { token = of; return nil })
		if err != nil {
			t.Fatal(err)
		}
		locker.Close()
		time.Sleep(59 * time.Second)
		err = finish(t.Context(), server.Locker(), "job-7", token, func(context.Context) error {
			time.Sleep(time.Hour)
			if holder := server.State("job-7").Holder; holder != token {
				t.Errorf("%q holds it", holder)
			}
			return nil
		})
		if err != nil || server.State("job-7").Held != 0 {
			t.Error(err)
		}
		failed := errors.New("no queue")
		err = prepare(t.Context(), server.Locker(), "job-8", func(_, _ string) error { return failed })
		if !errors.Is(err, failed) || server.State("job-8").Held != 0 {
			t.Error(err)
		}
	})
}

func transfer(ctx context.Context, locker *redislock.Locker, from, to string, move func(ctx context.Context, fenceFrom, fenceTo int64) error) error {
	return locker.DoAll(ctx, []string{"account:" + from, "account:" + to}, func(ctx context.Context, locks []*redislock.Lock) error {
		return move(ctx, locks[0].Fence(), locks[1].Fence())
	})
}

func TestRecipeSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locker, server := redislocktest.New(t)
		server.Delay(2 * time.Millisecond)
		lockers := []*redislock.Locker{locker, server.Locker()}
		var mu sync.Mutex // for the race detector: it knows nothing of the locks
		balance := map[string]int{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var all sync.WaitGroup
		for i := range 60 {
			names := []string{"a", "b", "c"}
			from, to := names[i%3], names[(i+i/3)%3]
			all.Go(func() {
				err := transfer(ctx, lockers[i%2], from, to, func(context.Context, int64, int64) error {
					mu.Lock()
					hadFrom, hadTo := balance[from], balance[to]
					mu.Unlock()
					time.Sleep(time.Millisecond)
					mu.Lock()
					defer mu.Unlock()
					if balance[from] != hadFrom || balance[to] != hadTo {
						t.Errorf("%s to %s, beside another one", from, to)
					}
					balance[from]--
					balance[to]++
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if sum := balance["a"] + balance["b"] + balance["c"]; sum != 0 {
			t.Error(balance)
		}
	})
}
