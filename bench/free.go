package main

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed-ee05a192/redislock/internal/proxy"
)

// uncontended is what it costs to take and give back a lock that nobody else wants.
type uncontended struct {
	Lock       string    `json:"lock"`
	Goroutines int       `json:"goroutines"` // of one client, each with a name of its own
	Rates      []float64 `json:"rates"`      // of each slice
	Rate       spread    `json:"rate"`
	Commands   float64   `json:"commands_per_cycle"`
	RoundTrips float64   `json:"round_trips,omitempty"` // through the proxy

	done, sent int64
}

// cancellableName is ours with a ctx that can end: then another goroutine makes the call of Acquire,
// as its caller has to return when ctx ends. All others get one that cannot end, like a worker's.
const cancellableName = "redislock, ctx can end"

// free takes and gives back until the time is up. It returns how often.
func free(ctx context.Context, l locker, name string, goroutines int, length time.Duration, cancellable bool) (int64, time.Duration, error) {
	var done atomic.Int64
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	calls := context.WithoutCancel(ctx)
	if cancellable {
		calls = ctx
	}
	for i := range goroutines {
		g.Go(func() error {
			name := fmt.Sprint(name, i)
			for time.Since(began) < length {
				unlock, err := l.lock(calls, name)
				if err != nil {
					return err
				}
				if err := unlock(); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	err := g.Wait()
	return done.Load(), time.Since(began), err
}

func freeLocks(ctx context.Context, b *bench) error {
	var all []*uncontended
	for _, goroutines := range []int{1, 64} {
		b.say("free locks, %d goroutines", goroutines)
		var steps []func() error
		for _, p := range append(slices.Clone(peers), peer{name: cancellableName, open: openOurs}, peer{name: bareName, open: openBare}) {
			if p.ring || p.name == "redsync 1ms" || p.name == "bsm 1ms" {
				continue // no lock, and what differs is not used
			}
			t := b.target.counted()
			clients, err := p.openAll(t, 1)
			if err != nil {
				return err
			}
			defer closeAll(clients)
			name := b.name(p.name)
			if _, _, err := free(ctx, clients[0], name, goroutines, 20*time.Millisecond, p.name == cancellableName); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			r := &uncontended{Lock: p.name, Goroutines: goroutines}
			all = append(all, r)
			steps = append(steps, func() error {
				sent := t.sent.Load()
				done, took, err := free(ctx, clients[0], name, goroutines, b.plan.slice, p.name == cancellableName)
				r.sent += t.sent.Load() - sent
				r.done += done
				r.Rates = append(r.Rates, float64(done)/took.Seconds())
				return err
			})
		}
		rounds := b.plan.rounds
		if goroutines == 1 {
			rounds *= 2 // each waits for the other process to wake up: that varies
		}
		if err := interleave(rounds, steps...); err != nil {
			return err
		}
	}
	for _, r := range all {
		r.Rate = spreadOf(r.Rates)
		r.Commands = float64(r.sent) / float64(r.done)
	}
	if err := freeRoundTrips(ctx, b, all); err != nil {
		return err
	}
	b.report.Free = all
	b.freeTable(all)
	return nil
}

// freeRoundTrips measures one goroutine through the proxy, beside a PING.
func freeRoundTrips(ctx context.Context, b *bench, all []*uncontended) error {
	proxy, err := proxy.New(b.addr())
	if err != nil {
		return err
	}
	defer proxy.Close()
	proxy.SetDelay(delay)
	t := b.target.via(proxy.Addr())
	pinging, closePing, err := ping(t, 0)
	if err != nil {
		return err
	}
	defer closePing()
	reference := newHistogram()
	steps := []func() error{func() error {
		return pinging(ctx, 10*delay, func(d time.Duration) { record(reference, d) })
	}}
	var finish []func()
	for _, p := range peers {
		for _, r := range all {
			if r.Lock != p.name || r.Goroutines != 1 {
				continue
			}
			clients, err := p.openAll(t, 1)
			if err != nil {
				return err
			}
			defer closeAll(clients)
			took := newHistogram()
			once := func(h func(time.Duration)) func() error {
				return func() error {
					began := time.Now()
					unlock, err := clients[0].lock(ctx, b.name(p.name))
					if err == nil {
						err = unlock()
					}
					h(time.Since(began))
					return err
				}
			}
			if err := once(func(time.Duration) {})(); err != nil {
				return err
			}
			step := once(func(d time.Duration) { record(took, d) })
			steps = append(steps, func() error { return interleave(5, step) })
			finish = append(finish, func() {
				r.RoundTrips = float64(quantile(took, 50)) / float64(quantile(reference, 50))
			})
		}
	}
	if err := interleave(b.plan.rounds, steps...); err != nil {
		return err
	}
	for _, f := range finish {
		f()
	}
	return nil
}
