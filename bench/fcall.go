package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// fcallCost is the server's time for one function with a queue of this length.
type fcallCost struct {
	Call  string  `json:"call"`
	Depth int     `json:"queued"` // 0: nobody waits
	Usec  spread  `json:"usec_per_call"`
	Ratio *spread `json:"against_the_shortest_queue,omitempty"` // paired

	usecs []float64 // of each batch
}

// Reading the counters leaves the server's caches cold, so there are many calls in between. On one lock
// there are few, so the shortest queue keeps about its length.
const (
	batch   = 5  // calls on one lock
	locksOf = 20 // locks with queues of one length, but for the longest: one
)

// rawLock is a lock that is called function by function.
type rawLock struct {
	name   string
	holder string
	queue  []string // tokens, the next one first
	serial int
}

func (l *rawLock) keys() []string {
	return []string{"lock:{" + l.name + "}", queueKey(l.name), "lock-state:{" + l.name + "}"}
}

// signal is a list of the library's own kind: one for all locks of a Locker.
func (l *rawLock) signal() string {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(l.name))
	return "lock-signal:" + base64.RawURLEncoding.EncodeToString(sum.Sum(nil))
}

// token is as long as those of the library.
func (l *rawLock) token() string {
	l.serial++
	return fmt.Sprintf("%022d", l.serial)
}

const (
	longLease = "3600000"
	longWait  = "3600000"
)

func (l *rawLock) acquire(c rueidis.Client, token, wait string) rueidis.Completed {
	return c.B().Fcall().Function("lock_acquire").Numkeys(4).Key(append(l.keys(), l.signal())...).
		Arg(token, longLease, wait).Build()
}

func (l *rawLock) call(c rueidis.Client, function string, args ...string) rueidis.Completed {
	return c.B().Fcall().Function(function).Numkeys(3).Key(l.keys()...).Arg(args...).Build()
}

// join makes the calls with which n new tokens queue.
func (l *rawLock) join(c rueidis.Client, n int) (calls []rueidis.Completed) {
	for range n {
		token := l.token()
		l.queue = append(l.queue, token)
		calls = append(calls, l.acquire(c, token, longWait))
	}
	return calls
}

// handOver makes the calls with which the lock goes n places on; each signal is taken at once, as
// by a client that lives.
func (l *rawLock) handOver(c rueidis.Client, n int) (calls []rueidis.Completed) {
	for range n {
		calls = append(calls, l.call(c, "lock_release", l.holder), c.B().Lpop().Key(l.signal()).Build())
		l.holder, l.queue = l.queue[0], l.queue[1:]
	}
	return calls
}

func (l *rawLock) extend(c rueidis.Client, n int) (calls []rueidis.Completed) {
	for range n {
		calls = append(calls, l.call(c, "lock_extend", l.holder, longLease))
	}
	return calls
}

// checkIn makes calls of waiters all over the queue.
func (l *rawLock) checkIn(c rueidis.Client, n int) (calls []rueidis.Completed) {
	for i := range n {
		calls = append(calls, l.acquire(c, l.queue[(l.serial*7919+i*104729)%len(l.queue)], longWait))
	}
	return calls
}

func (l *rawLock) try(c rueidis.Client, n int) (calls []rueidis.Completed) {
	for range n {
		calls = append(calls, l.acquire(c, l.token(), "0"))
	}
	return calls
}

// leave makes the calls with which the last ones go.
func (l *rawLock) leave(c rueidis.Client, n int) (calls []rueidis.Completed) {
	for range n {
		last := len(l.queue) - 1
		calls = append(calls, l.call(c, "lock_release", l.queue[last]))
		l.queue = l.queue[:last]
	}
	return calls
}

func (l *rawLock) inspect(c rueidis.Client) []rueidis.Completed {
	return []rueidis.Completed{c.B().FcallRo().Function("lock_inspect").Numkeys(3).Key(l.keys()...).Build()}
}

// send makes calls in one pipeline.
func send(ctx context.Context, c rueidis.Client, calls []rueidis.Completed) error {
	for _, reply := range c.DoMulti(ctx, calls...) {
		if err := reply.Error(); err != nil && !rueidis.IsRedisNil(err) {
			return err
		}
	}
	return nil
}

const inspectCall = "lock_inspect (lists 1,000 at most)"

// group is some locks with queues of one length.
type group struct {
	locks []*rawLock
	each  int // calls of a batch on each
}

// batch makes one batch of every call with a queue, so that the queues end as long as they began.
func (g *group) batch(c rueidis.Client, do func(call string, calls []rueidis.Completed) error) error {
	for _, step := range []struct {
		call  string
		calls func(*rawLock) []rueidis.Completed
	}{
		{"lock_release, hands over", func(l *rawLock) []rueidis.Completed { return l.handOver(c, g.each) }},
		{"lock_extend", func(l *rawLock) []rueidis.Completed { return l.extend(c, g.each) }},
		{"lock_acquire, queues", func(l *rawLock) []rueidis.Completed { return l.join(c, 2*g.each) }},
		{"lock_acquire, checks in", func(l *rawLock) []rueidis.Completed { return l.checkIn(c, g.each) }},
		{"lock_acquire, only tries", func(l *rawLock) []rueidis.Completed { return l.try(c, g.each) }},
		{"lock_release, leaves the queue", func(l *rawLock) []rueidis.Completed { return l.leave(c, g.each) }},
		{inspectCall, func(l *rawLock) []rueidis.Completed { return l.inspect(c) }},
	} {
		var calls []rueidis.Completed
		for _, l := range g.locks {
			calls = append(calls, step.calls(l)...)
		}
		if err := do(step.call, calls); err != nil {
			return fmt.Errorf("%s: %w", step.call, err)
		}
	}
	return nil
}

// batchOfFree does the same where nobody waits.
func (g *group) batchOfFree(c rueidis.Client, do func(call string, calls []rueidis.Completed) error) error {
	var acquire, release []rueidis.Completed
	for _, l := range g.locks {
		token := l.token()
		acquire = append(acquire, l.acquire(c, token, longWait))
		release = append(release, l.call(c, "lock_release", token))
	}
	if err := do("lock_acquire, free", acquire); err != nil {
		return err
	}
	return do("lock_release, nobody waits", release)
}

// fcallTime is what the server has counted of the functions until now.
func (b *bench) fcallTime(ctx context.Context) (calls, usec float64, err error) {
	text, err := b.admin.Do(ctx, b.admin.B().Info().Section("commandstats").Build()).ToString()
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != "cmdstat_fcall" && name != "cmdstat_fcall_ro" {
			continue
		}
		for field := range strings.SplitSeq(rest, ",") {
			key, value, _ := strings.Cut(field, "=")
			n, _ := strconv.ParseFloat(value, 64)
			switch key {
			case "calls":
				calls += n
			case "usec":
				usec += n
			}
		}
	}
	return calls, usec, err
}

func fcalls(ctx context.Context, b *bench) error {
	b.say("time of each function, with %v queued", b.plan.depths)
	if err := redislock.Load(ctx, b.admin); err != nil {
		return err
	}
	var costs []*fcallCost
	// do makes the calls and notes what each took.
	do := func(depth int) func(string, []rueidis.Completed) error {
		return func(call string, calls []rueidis.Completed) error {
			n, before, err := b.fcallTime(ctx)
			if err != nil {
				return err
			}
			if err := send(ctx, b.admin, calls); err != nil {
				return err
			}
			m, after, err := b.fcallTime(ctx)
			for _, c := range costs {
				if c.Call == call && c.Depth == depth {
					c.usecs = append(c.usecs, (after-before)/(m-n))
					return err
				}
			}
			costs = append(costs, &fcallCost{Call: call, Depth: depth, usecs: []float64{(after - before) / (m - n)}})
			return err
		}
	}
	free := b.newGroup(0, locksOf*batch, 1)
	defer free.drop(b.admin)
	steps := []func() error{func() error { return free.batchOfFree(b.admin, do(0)) }}
	for i, depth := range b.plan.depths {
		g := b.newGroup(depth, locksOf, batch)
		if i == len(b.plan.depths)-1 {
			g = b.newGroup(depth, 1, min(locksOf*batch, depth/2))
		}
		defer g.drop(b.admin)
		for _, l := range g.locks {
			if err := b.fill(ctx, l, depth); err != nil {
				return err
			}
		}
		steps = append(steps, func() error { return g.batch(b.admin, do(depth)) })
	}
	if err := interleave(b.plan.batches, steps...); err != nil {
		return err
	}
	shortest := make(map[string]*fcallCost)
	for _, c := range costs {
		c.Usec = spreadOf(c.usecs)
		if c.Depth == b.plan.depths[0] {
			shortest[c.Call] = c
		}
	}
	for _, c := range costs {
		if s := shortest[c.Call]; s != nil {
			ratio := paired(c.usecs, s.usecs)
			c.Ratio = &ratio
		}
	}
	b.report.FCALL = costs
	b.fcallTable(costs)
	return b.fcallPlot(costs)
}

func (b *bench) newGroup(depth, locks, each int) *group {
	g := &group{each: each}
	for range locks {
		g.locks = append(g.locks, &rawLock{name: b.name(fmt.Sprint("fcall", depth))})
	}
	return g
}

func (g *group) drop(c rueidis.Client) {
	for _, l := range g.locks {
		l.drop(c)
	}
}

// fill makes one client hold the lock and this many wait.
func (b *bench) fill(ctx context.Context, l *rawLock, depth int) error {
	l.holder = l.token()
	if err := send(ctx, b.admin, []rueidis.Completed{l.acquire(b.admin, l.holder, longWait)}); err != nil {
		return err
	}
	for len(l.queue) < depth {
		if err := send(ctx, b.admin, l.join(b.admin, min(1000, depth-len(l.queue)))); err != nil {
			return err
		}
	}
	return nil
}

// drop deletes the keys of the lock.
func (l *rawLock) drop(c rueidis.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c.Do(ctx, c.B().Unlink().Key(append(l.keys(), l.signal())...).Build())
}

// memories is what locks and waiters take in Redis.
type memories struct {
	Locks   int     `json:"locks"`
	Waiters int     `json:"waiters"`
	Lock    float64 `json:"bytes_per_held_lock"`
	Waiter  float64 `json:"bytes_per_waiter"`
}

func redisMemory(ctx context.Context, b *bench) error {
	m := &memories{Locks: 10_000, Waiters: b.plan.depths[len(b.plan.depths)-1]}
	b.say("memory of Redis")
	if err := redislock.Load(ctx, b.admin); err != nil {
		return err
	}
	used := func() (float64, error) {
		// What the calls left in the buffers of our connection is freed by the server's cron.
		time.Sleep(time.Second / 4)
		text, err := b.admin.Do(ctx, b.admin.B().Info().Section("memory").Build()).ToString()
		if err != nil {
			return 0, err
		}
		return strconv.ParseFloat(infoField(text, "used_memory"), 64)
	}
	// grown is by how much the memory grows with each of n things.
	grown := func(n int, add func() error) (float64, error) {
		before, err := used()
		if err != nil {
			return 0, err
		}
		if err := add(); err != nil {
			return 0, err
		}
		after, err := used()
		return (after - before) / float64(n), err
	}

	var locks []*rawLock
	defer func() {
		for _, l := range locks {
			l.drop(b.admin)
		}
	}()
	var err error
	m.Lock, err = grown(m.Locks, func() error {
		var calls []rueidis.Completed
		for i := range m.Locks {
			l := &rawLock{name: fmt.Sprint(b.name("held"), i)}
			locks = append(locks, l)
			calls = append(calls, l.acquire(b.admin, l.token(), longWait))
		}
		for some := range slices.Chunk(calls, 1000) {
			if err := send(ctx, b.admin, some); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	queue := &rawLock{name: b.name("waited")}
	locks = append(locks, queue)
	if m.Waiter, err = grown(m.Waiters, func() error { return b.fill(ctx, queue, m.Waiters) }); err != nil {
		return err
	}
	b.report.Memory = m
	b.memoryTable(m)
	return nil
}

// infoField is the value of a line of INFO.
func infoField(text, name string) string {
	for line := range strings.Lines(text) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
