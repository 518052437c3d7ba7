package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/redis/rueidis"
	"golang.org/x/sync/errgroup"
)

// contest lets contenders, each with a client of its own, take one lock over and over in slices.
type contest struct {
	clients []client
	name    string
	hold    time.Duration
	sent    *atomic.Int64 // commands of all of them
	blocked *atomic.Int64 // BLPOPs of these
	pinger  rueidis.Client
}

// slice is what came of one.
type slice struct {
	grants  []grant // in the order in which they were given
	steady  window  // what is counted
	slack   time.Duration
	doubles int // grants while another one held the lock: no lock at all
}

// window is the part of a slice that all rates and shares are taken from: the first round, where
// all begin at once, and the calls that are under way when time is up are left out.
type window struct {
	from, to int // of the grants
	took     time.Duration
	sent     int64 // commands
	blocked  int64
}

// run has all contenders begin at once and go on for the given time, to the end of a whole round (a
// number of grants that is a multiple of the contenders): with a fair lock, all have the same number
// by then. One that takes much longer for a round is stopped at twice that time, or a second more.
// Then everybody gets the lock once more, without a hold.
func (c *contest) run(ctx context.Context, length time.Duration) (*slice, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*length+time.Minute)
	defer cancel()
	s := &slice{}
	var mu sync.Mutex
	var inside atomic.Int32
	var up atomic.Bool
	start := make(chan struct{})
	var began time.Time

	got := func(g grant) {
		mu.Lock() // by the holder: nobody waits for it
		defer mu.Unlock()
		s.grants = append(s.grants, g)
		n, got := len(s.grants), g.got
		whole := n%len(c.clients) == 0
		switch {
		case up.Load():
		case n == len(c.clients):
			s.steady = window{n, n, got, c.sent.Load(), c.blocked.Load()}
		case got > length && whole || got > length+max(length, time.Second):
			s.steady = window{
				s.steady.from, n, got - s.steady.took,
				c.sent.Load() - s.steady.sent, c.blocked.Load() - s.steady.blocked,
			}
			up.Store(true)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for i, l := range c.clients {
		g.Go(func() error {
			<-start
			for last := false; !last; {
				l.asked.Store(0)
				called := time.Since(began)
				unlock, err := l.lock(ctx, c.name)
				if err != nil {
					return err
				}
				if inside.Add(1) > 1 {
					mu.Lock()
					s.doubles++
					mu.Unlock()
				}
				asked := time.Duration(l.asked.Load()) - began.Sub(processStart)
				got(grant{i, called, max(called, asked), time.Since(began)})
				// Seen while it holds: so each of the others gets the lock just once more, and the
				// token of a ring finds everybody waiting.
				last = up.Load()
				if c.hold > 0 && !last {
					time.Sleep(c.hold)
				}
				inside.Add(-1)
				if err := unlock(); err != nil {
					return err
				}
			}
			return flush(ctx, l.locker)
		})
	}
	stopPings := make(chan struct{})
	var pings errgroup.Group
	pings.Go(func() error {
		longest, err := c.ping(ctx, stopPings)
		s.slack = max(longest, time.Millisecond)
		return err
	})
	s.steady.sent, s.steady.blocked = c.sent.Load(), c.blocked.Load()
	began = time.Now()
	close(start)
	err := g.Wait()
	close(stopPings)
	if failed := pings.Wait(); err == nil {
		err = failed
	}
	return s, err
}

// flush has a piped ring pass its token on.
func flush(ctx context.Context, l locker) error {
	if r, ok := l.(*ringClient); ok {
		return r.flush(ctx)
	}
	return nil
}

// warmUp sees to it that all connections, scripts and functions are there before anything is
// counted; for locks that block, also those that are used for that.
func (c *contest) warmUp(ctx context.Context, blocks bool) error {
	for _, l := range c.clients {
		unlock, err := l.lock(ctx, c.name)
		if err != nil {
			return err
		}
		if err := errors.Join(unlock(), flush(ctx, l.locker)); err != nil {
			return err
		}
	}
	if !blocks {
		return nil // nothing more to set up
	}
	brief := *c
	brief.hold = 0
	_, err := brief.run(ctx, 20*time.Millisecond+time.Duration(len(c.clients))*time.Millisecond/2)
	return err
}

// ping asks the server every millisecond and returns how long the longest answer took.
func (c *contest) ping(ctx context.Context, stop <-chan struct{}) (time.Duration, error) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	longest := time.Duration(0)
	for {
		select {
		case <-stop:
			return longest, nil
		case <-ticker.C:
		}
		sent := time.Now()
		if err := c.pinger.Do(ctx, c.pinger.B().Ping().Build()).Error(); err != nil && ctx.Err() == nil {
			return 0, err
		}
		longest = max(longest, time.Since(sent))
	}
}

func (s *slice) rate() float64 { return float64(s.steady.to-s.steady.from) / s.steady.took.Seconds() }

func (s *slice) jain(contenders int) float64 {
	counts := make([]int, contenders)
	for _, g := range s.grants[s.steady.from:s.steady.to] {
		counts[g.contender]++
	}
	return jain(counts)
}

// waits are the grants whose wait counts: those of the window, and of those that were under way when
// time was up, the ones that are longer than the median. These would have waited longer if the slice had gone on: to count
// short ones would flatter, to leave out long ones would hide who starved.
func (s *slice) waits() []grant {
	window := s.grants[s.steady.from:s.steady.to]
	var waits []float64
	for _, g := range window {
		waits = append(waits, float64(g.got-g.called))
	}
	median := time.Duration(spreadOf(waits).Median)
	counted := slices.Clone(window)
	for _, g := range s.grants[s.steady.to:] {
		if g.got-g.called > median {
			counted = append(counted, g)
		}
	}
	return counted
}

// contended is the result of one kind of lock for a number of contenders and a hold.
type contended struct {
	Lock       string        `json:"lock"`
	Contenders int           `json:"contenders"`
	Hold       time.Duration `json:"hold_ns"`
	Rates      []float64     `json:"rates"` // of each slice
	Rate       spread        `json:"rate"`
	Jain       spread        `json:"jain"`
	Bypass     int           `json:"largest_bypass"`
	Slack      time.Duration `json:"bypass_slack_ns"` // the largest
	P50        time.Duration `json:"wait_p50_ns"`
	P99        time.Duration `json:"wait_p99_ns"`
	Max        time.Duration `json:"wait_max_ns"`
	GrantP50   time.Duration `json:"grant_wait_p50_ns"` // where each grant counts the same
	GrantP99   time.Duration `json:"grant_wait_p99_ns"`
	Commands   float64       `json:"commands_per_cycle"`
	Blocking   float64       `json:"blpops_per_cycle"` // of these
	ServerCPU  time.Duration `json:"server_cpu_per_cycle_ns"`
	Doubles    int           `json:"doubles"`

	of     [][]time.Duration // the waits of each contender
	waits  *hdrhistogram.Histogram
	jains  []float64
	steady int // grants of all slices in their windows
	sent   int64
	blpops int64
	done   int // all grants
	cpu    time.Duration
}

func (r *contended) add(s *slice) {
	r.Rates = append(r.Rates, s.rate())
	r.jains = append(r.jains, s.jain(r.Contenders))
	r.Bypass = max(r.Bypass, largestBypass(s.grants, s.slack))
	r.Slack = max(r.Slack, s.slack)
	r.Doubles += s.doubles
	for _, g := range s.waits() {
		r.of[g.contender] = append(r.of[g.contender], g.got-g.called)
	}
	r.steady += s.steady.to - s.steady.from
	r.sent += s.steady.sent
	r.blpops += s.steady.blocked
	r.done += len(s.grants)
}

// finish sums up. In the distribution of waits each contender counts the same, however often it got
// the lock: where one takes it all the time, its many short waits would hide what the others see.
// With a fair lock that makes no difference.
func (r *contended) finish() {
	const weight = 1_000_000
	r.waits = newHistogram()
	grants := newHistogram()
	for _, waits := range r.of {
		for _, d := range waits {
			record(grants, d)
			_ = r.waits.RecordValues(min(int64(d), r.waits.HighestTrackableValue()), int64(weight/len(waits)))
		}
	}
	r.Rate, r.Jain = spreadOf(r.Rates), spreadOf(r.jains)
	r.P50, r.P99, r.Max = quantile(r.waits, 50), quantile(r.waits, 99), time.Duration(r.waits.Max())
	r.GrantP50, r.GrantP99 = quantile(grants, 50), quantile(grants, 99)
	counted := float64(max(r.steady, 1))
	r.Commands, r.Blocking = float64(r.sent)/counted, float64(r.blpops)/counted
	r.ServerCPU = r.cpu / time.Duration(r.done)
}

// cell is one number of contenders with one hold.
type cell struct {
	contenders int
	hold       time.Duration
	rounds     int
	more       int // rounds of ours and the rings, whose ratio is a goal
	length     time.Duration
}

// run measures the cell for all peers, in turns.
func (c cell) run(ctx context.Context, b *bench, among []peer) ([]*contended, error) {
	var results []*contended
	var steps, few []func() error
	for _, p := range among {
		t := b.target.counted()
		clients, err := p.openAll(t, c.contenders)
		if err != nil {
			return nil, err
		}
		defer closeAll(clients)
		contest := &contest{clients: clients, name: b.name(p.name), hold: c.hold, sent: t.sent, blocked: t.blocked, pinger: b.admin}
		if err := contest.warmUp(ctx, !p.polls); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		r := &contended{Lock: p.name, Contenders: c.contenders, Hold: c.hold, of: make([][]time.Duration, c.contenders)}
		results = append(results, r)
		steps = append(steps, func() error {
			before, err := b.cpu(ctx)
			if err != nil {
				return err
			}
			s, err := contest.run(ctx, c.length)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			after, err := b.cpu(ctx)
			r.cpu += after - before
			r.add(s)
			return err
		})
		if p.ring || p.name == oursName {
			few = append(few, steps[len(steps)-1])
		}
	}
	if err := errors.Join(interleave(c.rounds, steps...), interleave(c.more, few...)); err != nil {
		return nil, err
	}
	for _, r := range results {
		r.finish()
	}
	return results, nil
}

func contend(ctx context.Context, b *bench) error {
	var all []*contended
	for _, c := range b.plan.cells {
		b.say("contenders %d, hold %v", c.contenders, c.hold)
		results, err := c.run(ctx, b, peers)
		if err != nil {
			return fmt.Errorf("%d contenders, hold %v: %w", c.contenders, c.hold, err)
		}
		all = append(all, results...)
		b.contendedTable(c, results)
	}
	b.report.Contended = all
	b.contendedGoals(all)
	return b.contendedPlots(all)
}
