package virtualtest

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/redislocktest"
)

// TestTenThousandPermits: 10,000 cycles with three permits, and one client in ten dies with its own. Never do more than three
// hold one, and the room that a dead client takes is there again when its own lease has ended.
func TestTenThousandPermits(t *testing.T) {
	const (
		permits, clients, cycles = 3, 12, 10_000
		toldWithin               = 1200 * time.Millisecond // the first in line looks each second
	)
	synctest.Test(t, func(t *testing.T) {
		_, server := redislocktest.New(t)
		server.Delay(2 * time.Millisecond)
		quiet := redislock.Options{Logger: slog.New(slog.DiscardHandler)}
		var mu sync.Mutex
		alive := 0
		var dead []time.Time // until when each is sure to hold its permit
		holding := func(late time.Duration) (n int) {
			for _, deadline := range dead {
				if time.Now().Before(deadline.Add(late)) {
					n++
				}
			}
			return n
		}
		var started, deaths atomic.Int64
		work := func(rnd *rand.Rand, locker *redislock.Locker) (dies bool) {
			lease := time.Duration(300+rnd.IntN(3000)) * time.Millisecond
			lock := must[*redislock.Lock](t)(locker.Acquire(t.Context(), name, redislock.WithHolders(permits), redislock.WithLease(lease)))
			mu.Lock()
			alive++
			if n := alive + holding(0); n > permits {
				t.Errorf("%d hold a permit", n)
			}
			mu.Unlock()
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
			mu.Lock()
			alive--
			if dies = rnd.IntN(10) == 0; dies {
				deadline, _ := lock.Deadline()
				dead = append(dead, deadline)
				deaths.Add(1)
				server.Kill(locker)
			}
			mu.Unlock()
			if !dies {
				if err := lock.Release(t.Context()); err != nil {
					t.Error(err)
				}
			}
			return dies
		}
		var all sync.WaitGroup
		for client := range uint64(clients) {
			rnd := rand.New(rand.NewPCG(1, client))
			all.Go(func() {
				locker := server.Locker(quiet)
				for started.Add(1) <= cycles {
					if work(rnd, locker) {
						locker = server.Locker(quiet)
					}
				}
			})
		}
		for time.Sleep(time.Second); started.Load() < cycles; time.Sleep(100 * time.Millisecond) {
			mu.Lock()
			if n := server.State(name).Held + holding(toldWithin); n < permits {
				t.Errorf("%d hold a permit while others wait, %d have died", n, deaths.Load())
			}
			mu.Unlock()
		}
		all.Wait()
		if deaths.Load() < cycles/20 {
			t.Errorf("%d have died", deaths.Load())
		}
		time.Sleep(5 * time.Second)
		isFree(t, server, name)
	})
}
