package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/rueidis"
	"golang.org/x/sync/errgroup"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// scalePlan is how far the hand-overs of many names at once are taken, without a hold.
type scalePlan struct {
	names   []int
	lockers []int
	cluster bool // also on three primaries
	length  time.Duration
}

// scaled is one number of names and Lockers, on one server or on three.
type scaled struct {
	Primaries int           `json:"primaries"`
	Names     int           `json:"names"`
	Lockers   int           `json:"lockers"`
	Rate      float64       `json:"rate"` // grants a second
	P50       time.Duration `json:"wait_p50_ns"`
	P99       time.Duration `json:"wait_p99_ns"`
	Failed    int64         `json:"failed"`
	Not       string        `json:"not_measured,omitempty"` // why
	Client    float64       `json:"client_cores"`
	Servers   float64       `json:"server_cores"` // all of them
}

// mostBlocked is how many connections may block at once: in a cluster a Locker blocks on one for each
// contended name, and with more the process runs out of files.
const mostBlocked = 15_000

// usedCPU is that of this process.
func usedCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// serverCPU is that of all primaries.
func serverCPU(ctx context.Context, clients []rueidis.Client) (sum time.Duration, err error) {
	for _, c := range clients {
		used, err := (&bench{admin: c}).cpu(ctx)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// run has three goroutines want each name, in turn for the Lockers.
func (s *scaled) run(ctx context.Context, b *bench, t target, admins []rueidis.Client, length time.Duration) error {
	name := b.name("scale")
	var lockers []*redislock.Locker
	for range s.Lockers {
		client, err := t.rueidis(func(o *rueidis.ClientOption) {
			o.Dialer.KeepAlive, o.BlockingPoolSize = -1, s.Names+1
			o.ReadBufferEachConn, o.WriteBufferEachConn = 4<<10, 4<<10
		})
		if err != nil {
			return err
		}
		defer client.Close()
		l, err := redislock.New(client, redislock.Options{})
		if err != nil {
			return err
		}
		defer l.Close()
		lockers = append(lockers, l)
	}
	// Twice: the first time connects, and has all queue.
	for _, length := range []time.Duration{0, length} {
		r := &manyNames{Names: s.Names, Lockers: s.Lockers}
		client, began := usedCPU(), time.Now()
		servers, err := serverCPU(ctx, admins)
		if err != nil {
			return err
		}
		if err := r.run(ctx, lockers, name, length); err != nil {
			return err
		}
		took := time.Since(began).Seconds()
		after, err := serverCPU(ctx, admins)
		if err != nil {
			return err
		}
		slices.Sort(r.waits)
		if n := len(r.waits); n > 0 {
			s.P50, s.P99 = time.Duration(r.waits[n/2]), time.Duration(r.waits[n*99/100])
		}
		s.Rate, s.Failed = r.Rates[0], s.Failed+r.Failed
		s.Client, s.Servers = (usedCPU()-client).Seconds()/took, (after-servers).Seconds()/took
	}
	return nil
}

func scale(ctx context.Context, b *bench) error {
	p := b.plan.scale
	on := func(t target, admins []rueidis.Client) error {
		for _, names := range p.names {
			for _, lockers := range p.lockers {
				s := &scaled{Primaries: len(admins), Names: names, Lockers: lockers}
				blocked := names * min(lockers, perName)
				if s.Primaries > 1 && blocked > mostBlocked {
					s.Not = fmt.Sprintf("not measured: needs %d blocked connections", blocked)
				} else if err := s.run(ctx, b, t, admins, p.length); ctx.Err() != nil {
					return err
				} else if err != nil {
					s.Not = "failed: " + err.Error() // a cell that this machine cannot do is no reason to stop
				}
				b.say("%d primaries, %d names, %d Lockers: %s hand-overs a second", s.Primaries, names, lockers, cmp.Or(s.Not, digits(s.Rate)))
				b.report.Scale = append(b.report.Scale, s)
			}
		}
		return nil
	}
	if err := on(b.target, []rueidis.Client{b.admin}); err != nil {
		return err
	}
	if p.cluster {
		cluster, err := redistest.StartCluster(3, 0, 15*time.Second, "--maxclients", "40000")
		if err != nil {
			return err
		}
		defer func() { _ = cluster.Stop() }()
		var admins []rueidis.Client
		for _, s := range cluster.Servers {
			admin, err := newTarget("redis://" + s.Addr()).rueidis(func(o *rueidis.ClientOption) { o.ForceSingleClient = true })
			if err != nil {
				return err
			}
			defer admin.Close()
			admins = append(admins, admin)
		}
		if err := on(newTarget("redis://"+cluster.Servers[0].Addr()), admins); err != nil {
			return err
		}
	}
	t := &table{
		title: "Hand-overs of many names",
		note: fmt.Sprintf("%d goroutines of one process want each name and hold it for no time, on loopback. The Lockers have a client each. "+
			"Cores: how many the process and the servers kept busy. Where their sum is near the %d of this machine, the machine is the limit.",
			perName, b.report.Machine.Cores),
		columns: []string{"primaries", "names", "Lockers", "hand-overs a second", "wait p50", "p99", "calls failed", "cores of the client", "cores of Redis"},
	}
	for _, s := range b.report.Scale {
		if s.Not != "" {
			t.row(s.Primaries, s.Names, s.Lockers, s.Not, "", "", "", "", "")
			continue
		}
		t.row(s.Primaries, s.Names, s.Lockers, s.Rate, s.P50, s.P99, s.Failed, s.Client, s.Servers)
	}
	b.table(t)
	return nil
}

// renewPlan is how many locks one process holds and renews, and for how long that is watched.
type renewPlan struct {
	locks int
	watch time.Duration
}

// renewed is what the renewal of many held locks takes.
type renewed struct {
	Locks    int           `json:"locks"`
	Watched  time.Duration `json:"watched_ns"`
	Took     time.Duration `json:"until_all_held_ns"`
	Commands float64       `json:"commands_per_second"`
	Client   float64       `json:"client_cores"`
	Server   float64       `json:"server_cores"`
	Lost     int           `json:"lost"`
}

// renewLease is long: with the default of 10 s, 100,000 locks need 30,000 renewals a second, which two cores cannot do.
const renewLease = time.Minute

// holders is how many goroutines take and give back the locks.
const holders = 256

func renew(ctx context.Context, b *bench) error {
	r := &renewed{Locks: b.plan.renew.locks}
	b.say("%d held locks are renewed", r.Locks)
	t := b.target.counted()
	locker, closeLocker, err := b.newLocker(t)
	if err != nil {
		return err
	}
	defer closeLocker()
	name := b.name("renew")
	locks := make([]*redislock.Lock, r.Locks)
	each := func(do func(i int) error) error {
		var g errgroup.Group
		g.SetLimit(holders)
		for i := range locks {
			g.Go(func() error { return do(i) })
		}
		return g.Wait()
	}
	began := time.Now()
	if err := each(func(i int) (err error) {
		locks[i], err = locker.Acquire(ctx, fmt.Sprint(name, i), redislock.WithLease(renewLease))
		return err
	}); err != nil {
		return err
	}
	r.Took = time.Since(began)

	sent, client, began := t.sent.Load(), usedCPU(), time.Now()
	server, err := b.cpu(ctx)
	if err != nil {
		return err
	}
	time.Sleep(b.plan.renew.watch)
	r.Watched = time.Since(began)
	after, err := b.cpu(ctx)
	if err != nil {
		return err
	}
	seconds := r.Watched.Seconds()
	r.Commands = float64(t.sent.Load()-sent) / seconds
	r.Client, r.Server = (usedCPU()-client).Seconds()/seconds, (after-server).Seconds()/seconds

	var lost atomic.Int64
	if err := each(func(i int) error {
		over := locks[i].Context().Err() != nil
		if err := locks[i].Release(ctx); err != nil || over {
			lost.Add(1)
		}
		return nil
	}); err != nil {
		return err
	}
	r.Lost = int(lost.Load())
	b.report.Renewed = r
	b.renewTable(r)
	return nil
}

func (b *bench) renewTable(r *renewed) {
	t := &table{
		title:   fmt.Sprintf("%d held locks, renewed by one process", r.Locks),
		note:    fmt.Sprintf("One Locker: leases of %v, renewed every third of it.", renewLease),
		columns: []string{"measure", "value"},
	}
	t.row("until all were held", r.Took)
	t.row("watched for", r.Watched)
	t.row("commands a second", r.Commands)
	t.row("cores of the client", r.Client)
	t.row("cores of Redis", r.Server)
	t.row("locks lost", r.Lost)
	b.table(t)
}
