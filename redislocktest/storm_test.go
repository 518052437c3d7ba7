package redislocktest_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

// TestStorm has processes share a lock for an hour in which calls hang, fail, are slow, and processes die.
// Nobody holds the lock while the Context of another is alive, fencing tokens grow, and in the end everybody
// is served. That the bubble ends says that no goroutine stays.
func TestStorm(t *testing.T) {
	seeds := uint64(3)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { storm(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func storm(t *testing.T, random *rand.Rand) {
	options := redislock.Options{Lease: 3 * time.Second, Logger: slog.New(slog.DiscardHandler)}
	_, server := redislocktest.New(t, options)
	var (
		mu    sync.Mutex
		now   context.Context // of the last holder
		fence int64
		turns int
		dice  = random.Uint64()
	)
	roll := func(n time.Duration) time.Duration { // below n
		mu.Lock()
		defer mu.Unlock()
		dice = dice*6364136223846793005 + 1442695040888963407
		return time.Duration(dice>>11) % n
	}
	turn := func(ctx context.Context, lock *redislock.Lock) error {
		mu.Lock()
		if now != nil && now.Err() == nil {
			t.Errorf("two hold the lock, with the fences %d and %d", fence, lock.Fence())
		}
		if lock.Fence() <= fence {
			t.Errorf("fence %d after %d", lock.Fence(), fence)
		}
		now, fence = ctx, lock.Fence()
		turns++
		mu.Unlock()
		select {
		case <-time.After(roll(5 * time.Second)):
		case <-ctx.Done():
		}
		return nil
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	var workers sync.WaitGroup
	type process struct {
		*redislock.Locker
		die context.CancelFunc
	}
	start := func() process {
		locker := server.Locker(options)
		ctx, die := context.WithCancel(ctx)
		for range 3 {
			workers.Go(func() {
				for ctx.Err() == nil {
					wait, cancel := context.WithTimeout(ctx, time.Second+roll(time.Minute))
					_ = locker.Do(wait, "x", turn)
					cancel()
					time.Sleep(roll(time.Second) + time.Millisecond)
				}
			})
		}
		return process{locker, die}
	}
	processes := []process{start(), start(), start()}
	for ctx.Err() == nil {
		switch roll(8) {
		case 0:
			server.Down()
		case 1:
			server.Refuse()
		case 2:
			server.LoseReply()
		case 3:
			server.Delay(roll(200 * time.Millisecond))
		case 4:
			i := int(roll(3))
			server.Kill(processes[i].Locker)
			processes[i].die()
			processes[i].Close()
			processes[i] = start()
		default:
			server.Up()
		}
		time.Sleep(roll(4 * time.Second))
	}
	for _, p := range processes {
		p.die()
	}
	server.Up()
	server.Delay(0)
	workers.Wait()
	if last := acquire(t, server.Locker(), "x"); last.Fence() <= fence {
		t.Errorf("fence %d after %d", last.Fence(), fence)
	}
	if n := server.State("x").Waiting; n > 0 || turns < 100 {
		t.Errorf("%d wait, %d turns", n, turns)
	}
	t.Logf("%d turns", turns)
}
