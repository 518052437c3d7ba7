package main

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"golang.org/x/sync/errgroup"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/proxy"
)

const (
	perName   = 3                // goroutines that want each lock
	manyDelay = time.Millisecond // of the proxy, each way
	manyTries = 100              // PINGs
)

// manyCell is one number of contended names.
type manyCell struct {
	names  int
	hold   time.Duration
	many   bool // also with a Locker for each goroutine
	rounds int
	length time.Duration
}

// manyNames is what came of it, for one Locker or for many.
type manyNames struct {
	Names     int           `json:"names"`
	Lockers   int           `json:"lockers"`
	Hold      time.Duration `json:"hold_ns"`
	RoundTrip time.Duration `json:"round_trip_ns"`
	Rates     []float64     `json:"rates"` // acquires a second of each slice
	Rate      spread        `json:"rate"`
	P50       time.Duration `json:"wait_p50_ns"`
	P99       time.Duration `json:"wait_p99_ns"`
	Failed    int64         `json:"failed"` // calls: a lock was lost, or nobody answered in time

	waits []float64
}

// idealRate is that of locks that are never free for longer than a round trip.
func (r *manyNames) idealRate() float64 {
	return float64(r.Names) / (r.Hold + r.RoundTrip).Seconds()
}

// idealWait is the turn of the others, and the rest of one's own: the release has been answered when
// the next holder has been told.
func (r *manyNames) idealWait() time.Duration { return (perName - 1) * (r.Hold + r.RoundTrip) }

// run has three goroutines take each name over and over. What counts are the grants of a window that
// begins when each had its turn. Those who wait when it is over are served, without a hold.
func (r *manyNames) run(ctx context.Context, lockers []*redislock.Locker, name string, length time.Duration) error {
	turn := perName * (r.Hold + r.RoundTrip)
	from := max(time.Second/2, 2*turn)
	to := from + max(length, turn)
	ctx, cancel := context.WithTimeout(ctx, 3*to+time.Minute)
	defer cancel()
	began := time.Now()
	waits := make([][]float64, perName*r.Names)
	var failed atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for i := range waits {
		g.Go(func() error {
			for {
				called := time.Now()
				lock, err := lockers[i%len(lockers)].Acquire(ctx, fmt.Sprint(name, i/perName))
				got := time.Since(began)
				if err != nil {
					failed.Add(1)
					if ctx.Err() != nil || got >= to {
						return ctx.Err()
					}
					continue
				}
				if got >= from && got < to {
					waits[i] = append(waits[i], float64(time.Since(called)))
				}
				if got < to {
					time.Sleep(r.Hold)
				}
				if err := lock.Release(ctx); err != nil {
					failed.Add(1)
				}
				if got >= to {
					return nil
				}
			}
		})
	}
	err := g.Wait()
	all := slices.Concat(waits...)
	r.Failed += failed.Load()
	r.Rates = append(r.Rates, float64(len(all))/(to-from).Seconds())
	r.waits = append(r.waits, all...)
	return err
}

// pingTime is the median of a PING, while nothing else goes on.
func pingTime(ctx context.Context, t target) (time.Duration, error) {
	client, err := t.rueidis()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	var times []float64
	for range manyTries {
		began := time.Now()
		if err := client.Do(ctx, client.B().Ping().Build()).Error(); err != nil {
			return 0, err
		}
		times = append(times, float64(time.Since(began)))
	}
	return time.Duration(spreadOf(times).Median), nil
}

// run measures one Locker, and one for each goroutine, in turns.
func (c manyCell) run(ctx context.Context, b *bench, t target) ([]*manyNames, error) {
	trip, err := pingTime(ctx, t)
	if err != nil {
		return nil, err
	}
	counts := []int{1}
	if c.many {
		counts = append(counts, perName*c.names)
	}
	var results []*manyNames
	var steps []func() error
	for _, n := range counts {
		// They share a client, so that they differ in what they pop at a time, and not in how many
		// connections send. An idle one sends no PING: of hundreds, that is a load.
		client, err := t.rueidis(func(o *rueidis.ClientOption) {
			o.Dialer.KeepAlive, o.BlockingPoolSize = -1, n+1
		})
		if err != nil {
			return nil, err
		}
		defer client.Close()
		var lockers []*redislock.Locker
		for range n {
			l, err := redislock.New(client, redislock.Options{})
			if err != nil {
				return nil, err
			}
			defer l.Close()
			lockers = append(lockers, l)
		}
		r := &manyNames{Names: c.names, Lockers: n, Hold: c.hold, RoundTrip: trip}
		if n > 1 {
			brief := *r // makes the connections that block
			if err := brief.run(ctx, lockers, b.name("many"), 0); err != nil {
				return nil, err
			}
		}
		results = append(results, r)
		steps = append(steps, func() error { return r.run(ctx, lockers, b.name("many"), c.length) })
	}
	if err := interleave(c.rounds, steps...); err != nil {
		return nil, err
	}
	for _, r := range results {
		r.Rate = spreadOf(r.Rates)
		slices.Sort(r.waits)
		if n := len(r.waits); n > 0 {
			r.P50, r.P99 = time.Duration(r.waits[n/2]), time.Duration(r.waits[n*99/100])
		}
	}
	return results, nil
}

func many(ctx context.Context, b *bench) error {
	link, err := proxy.New(b.addr())
	if err != nil {
		return err
	}
	defer link.Close()
	link.SetDelay(manyDelay)
	for _, c := range b.plan.many {
		b.say("%d contended names, hold %v", c.names, c.hold)
		results, err := c.run(ctx, b, b.target.via(link.Addr()))
		if err != nil {
			return fmt.Errorf("%d names: %w", c.names, err)
		}
		for _, r := range results {
			b.say("%d Lockers: %s of %s acquires a second, wait p50 %s of %s", r.Lockers, digits(r.Rate.Median), digits(r.idealRate()), show(r.P50), show(r.idealWait()))
		}
		b.report.Many = append(b.report.Many, results...)
	}
	b.manyTable(b.report.Many)
	return nil
}

func (b *bench) manyTable(all []*manyNames) {
	t := &table{
		title: "Many contended names, 1 ms each way",
		note: fmt.Sprintf("%d goroutines want each name. Ideal: names / (hold + round trip) acquires a second, a wait of two holds and two round trips. "+
			"The round trip is that of a PING through the same proxy before.", perName),
		columns: []string{"names", "hold", "round trip", "Lockers", "acquires a second", "ideal", "against many Lockers", "against ideal", "wait p50", "against ideal", "p99", "calls failed"},
	}
	enough := true
	var rates, waits []string
	for _, r := range all {
		against := "-"
		i := slices.IndexFunc(all, func(other *manyNames) bool { return other.Names == r.Names && other.Lockers > 1 })
		wait := float64(r.P50) / float64(r.idealWait())
		if i >= 0 && r.Lockers == 1 {
			ratio := paired(r.Rates, all[i].Rates)
			against = show(ratio)
			if r.Names == 20 || r.Names == 200 {
				enough = enough && ratio.Median >= 0.8 && wait <= 1.3
				rates, waits = append(rates, digits(ratio.Median)), append(waits, digits(wait))
			}
		}
		t.row(r.Names, r.Hold, r.RoundTrip, r.Lockers, r.Rate, r.idealRate(), against, r.Rate.Median/r.idealRate(), r.P50, wait, r.P99, r.Failed)
	}
	b.table(t)
	if len(rates) == 2 {
		b.report.reach(goalMany, enough, "%s, %s; %s, %s", rates[0], rates[1], waits[0], waits[1])
	}
}
