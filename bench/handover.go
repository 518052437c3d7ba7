package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"

	"github.com/seed-ee05a192/redislock/internal/proxy"
)

const delay = 5 * time.Millisecond // of the proxy, each way

// handedOver is how long one kind of lock took from the call of release to the next holder's return.
type handedOver struct {
	Lock    string        `json:"lock"`
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	Max     time.Duration `json:"max_ns"`
	Samples int           `json:"samples"`
	Ratio   spread        `json:"p50_against_reference"` // of paired slices
	P99In   float64       `json:"p99_in_reference_p50"`

	all     *hdrhistogram.Histogram
	medians []float64 // of each slice, ns
}

// couple is two clients that hand one lock to and fro.
type couple struct {
	clients []client
	name    string
	settle  time.Duration // until one that has called lock surely waits
}

// run hands over until the time is up and adds what each took, but for the first two: connections
// that were idle are set up anew there.
func (c *couple) run(ctx context.Context, length time.Duration, add func(time.Duration)) error {
	type held struct {
		at     time.Time
		unlock func() error
		err    error
	}
	lock := func(l client) held {
		unlock, err := l.lock(ctx, c.name)
		return held{time.Now(), unlock, err}
	}
	var end time.Time
	h := lock(c.clients[0])
	for turn := 1; h.err == nil; turn++ {
		if turn == 3 {
			end = time.Now().Add(length)
		}
		if turn > 3 && turn%2 == 1 && time.Now().After(end) { // the first one holds: a ring is as it was
			break
		}
		next := make(chan held, 1)
		go func() { next <- lock(c.clients[turn%2]) }()
		settle := c.settle
		if turn <= 2 {
			settle *= 3
		}
		time.Sleep(settle)
		released := time.Now()
		if err := h.unlock(); err != nil {
			return err
		}
		if h = <-next; h.err == nil && turn > 2 {
			add(h.at.Sub(released))
		}
	}
	if h.err != nil {
		return h.err
	}
	return c.letGo(ctx, h.unlock)
}

// letGo gives the lock back; in a ring, the token goes once more round to where it was.
func (c *couple) letGo(ctx context.Context, unlock func() error) error {
	if err := unlock(); err != nil {
		return err
	}
	if _, ring := c.clients[1].locker.(*ringClient); !ring {
		return nil
	}
	unlock, err := c.clients[1].lock(ctx, c.name)
	if err != nil {
		return err
	}
	return unlock()
}

// sampler adds what it measures until the time is up.
type sampler func(ctx context.Context, length time.Duration, add func(time.Duration)) error

// ping is the reference behind the proxy: what a bare PING takes there, in the rhythm of the
// hand-overs, as a machine that has slept for a while is slower.
func ping(t target, pause time.Duration) (sampler, func(), error) {
	client, err := t.rueidis()
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, length time.Duration, add func(time.Duration)) error {
		for end := time.Now().Add(length); time.Now().Before(end); {
			time.Sleep(pause)
			sent := time.Now()
			if err := client.Do(ctx, client.B().Ping().Build()).Error(); err != nil {
				return err
			}
			add(time.Since(sent))
		}
		return nil
	}, client.Close, nil
}

// handovers measures all locks in turns, each with this many couples at once.
func handovers(ctx context.Context, b *bench, t target, couples, rounds int, length, settle time.Duration, withPing bool) ([]*handedOver, error) {
	var results []*handedOver
	var steps []func() error
	measure := func(name string, runs []sampler) {
		r := &handedOver{Lock: name, all: newHistogram()}
		results = append(results, r)
		steps = append(steps, func() error {
			of := make([]*hdrhistogram.Histogram, len(runs))
			g, ctx := errgroup.WithContext(ctx)
			for i, run := range runs {
				of[i] = newHistogram()
				g.Go(func() error {
					return run(ctx, length, func(d time.Duration) { record(of[i], d) })
				})
			}
			if err := g.Wait(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			slice := newHistogram()
			for _, h := range of {
				slice.Merge(h)
			}
			r.all.Merge(slice)
			r.medians = append(r.medians, float64(quantile(slice, 50)))
			return nil
		})
	}
	if withPing {
		var runs []sampler
		for range couples {
			run, closeIt, err := ping(t, settle)
			if err != nil {
				return nil, err
			}
			defer closeIt()
			runs = append(runs, run)
		}
		measure(pingName, runs)
	}
	for _, p := range peers {
		if p.name == pipedRingName {
			continue // a hand-over of the ring is the same
		}
		var runs []sampler
		for i := range couples {
			clients, err := p.openAll(t, 2)
			if err != nil {
				return nil, err
			}
			defer closeAll(clients)
			c := &couple{clients: clients, name: fmt.Sprint(b.name(p.name), i), settle: settle}
			runs = append(runs, c.run)
		}
		measure(p.name, runs)
	}
	if err := interleave(rounds, steps...); err != nil {
		return nil, err
	}
	reference := pingName
	if !withPing {
		reference = ringName
	}
	ref := results[slices.IndexFunc(results, func(r *handedOver) bool { return r.Lock == reference })]
	for _, r := range results {
		r.P50, r.P99, r.Max = quantile(r.all, 50), quantile(r.all, 99), time.Duration(r.all.Max())
		r.Samples = int(r.all.TotalCount())
		r.Ratio = paired(r.medians, ref.medians)
		r.P99In = float64(r.P99) / float64(quantile(ref.all, 50))
	}
	return results, nil
}

const pingName = "PING"

func handover(ctx context.Context, b *bench) error {
	p, err := proxy.New(b.addr())
	if err != nil {
		return err
	}
	defer p.Close()
	p.SetDelay(delay)
	b.say("hand-over, round trip of %v", 2*delay)
	far, err := handovers(ctx, b, b.target.via(p.Addr()), 4, b.plan.farRounds, b.plan.farSlice, 6*delay, true)
	if err != nil {
		return err
	}
	b.say("hand-over on loopback")
	near, err := handovers(ctx, b, b.target, 1, b.plan.rounds, b.plan.slice, time.Millisecond, false)
	if err != nil {
		return err
	}
	b.report.HandoverFar, b.report.HandoverNear = far, near
	b.handoverTables(far, near)
	return b.handoverPlot(far)
}
