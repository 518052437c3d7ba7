package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// crowded is a process with very many waiting goroutines.
type crowded struct {
	Waiters     int           `json:"waiters"`
	Queued      time.Duration `json:"until_all_queued_ns"`
	Connections int           `json:"connections"`
	Blocked     int           `json:"blocked_connections"`
	InUse       float64       `json:"bytes_in_use_each"`
	Resident    float64       `json:"bytes_resident_each"`
	Peak        float64       `json:"bytes_peak_each"`
	Took        time.Duration `json:"until_all_served_ns"`
	Overtaken   int           `json:"overtaken"`
	Lost        int           `json:"lost"`
}

func (c *crowded) rate() float64 { return float64(c.Waiters) / c.Took.Seconds() }

// queueKey is the sorted set of a lock, as the contract has it.
func queueKey(name string) string { return "lock-queue:{" + name + "}" }

// untilQueued waits until this many wait for the lock, and returns how long that took.
func (b *bench) untilQueued(ctx context.Context, name string, count int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	began := time.Now()
	for {
		n, err := b.admin.Do(ctx, b.admin.B().Zcard().Key(queueKey(name)).Build()).AsInt64()
		if err != nil || n >= int64(count) {
			return time.Since(began), err
		}
		time.Sleep(time.Millisecond)
	}
}

func crowd(ctx context.Context, b *bench) error {
	c := &crowded{Waiters: b.plan.crowd}
	b.say("%d goroutines wait in one process", c.Waiters)
	name := b.name("crowd")
	holder, closeHolder, err := b.newLocker(b.target)
	if err != nil {
		return err
	}
	defer closeHolder()
	lock, err := holder.Acquire(ctx, name)
	if err != nil {
		return err
	}
	process, err := startChild(job{URL: b.target.url, Name: name, Count: c.Waiters})
	if err != nil {
		return err
	}
	defer process.kill()
	if c.Queued, err = b.untilQueued(ctx, name, c.Waiters); err != nil {
		return err
	}
	var now memory
	if err := process.query("memory", &now); err != nil {
		return err
	}
	each := func(after, before uint64) float64 { return (float64(after) - float64(before)) / float64(c.Waiters) }
	c.InUse = each(now.InUse, process.before.InUse)
	c.Resident = each(now.Resident, process.before.Resident)
	c.Peak = each(now.Peak, process.before.Resident)
	if err := b.countConnections(ctx, c); err != nil {
		return err
	}
	queue, err := b.admin.Do(ctx, b.admin.B().Zrange().Key(queueKey(name)).Min("0").Max("-1").Build()).AsStrSlice()
	if err != nil {
		return err
	}
	if err := lock.Release(ctx); err != nil {
		return err
	}
	var result served
	if err := process.query("served", &result); err != nil {
		return err
	}
	c.Took, c.Lost, c.Overtaken = result.Took, result.Lost, overtaken(queue, result.Tokens)
	b.report.Crowd = c
	b.crowdTable(c)
	return nil
}

// overtaken is how many were served after a waiter behind them in the queue, or never.
func overtaken(queue, served []string) int {
	place := make(map[string]int, len(queue))
	for i, token := range queue {
		place[token] = i
	}
	n, last := max(0, len(queue)-len(served)), -1
	for _, token := range served {
		i, queued := place[token]
		if queued && i > last {
			last = i
		} else {
			n++
		}
	}
	return n
}

func (b *bench) countConnections(ctx context.Context, c *crowded) error {
	list, err := b.admin.Do(ctx, b.admin.B().ClientList().Build()).ToString()
	if err != nil {
		return err
	}
	for line := range strings.Lines(list) {
		fields := strings.Fields(line)
		if !slices.Contains(fields, "name="+childName) {
			continue
		}
		c.Connections++
		if slices.ContainsFunc(fields, func(f string) bool { return strings.HasPrefix(f, "flags=") && strings.Contains(f, "b") }) {
			c.Blocked++
		}
	}
	return nil
}

// idled is what many waiters cost while one holds the lock.
type idled struct {
	Waiters  int           `json:"waiters"`
	Over     time.Duration `json:"over_ns"`
	Commands float64       `json:"commands_per_second"`
}

func idle(ctx context.Context, b *bench) error {
	r := &idled{Waiters: b.plan.idlers, Over: b.plan.idle}
	b.say("%d idle waiters, %v", r.Waiters, r.Over)
	name := b.name("idle")
	holder, closeHolder, err := b.newLocker(b.target)
	if err != nil {
		return err
	}
	defer closeHolder()
	lock, err := holder.Acquire(ctx, name)
	if err != nil {
		return err
	}
	t := b.target.counted()
	waiting, closeWaiting, err := b.newLocker(t)
	if err != nil {
		return err
	}
	defer closeWaiting() // ends the waits below
	for range r.Waiters {
		go func() { _, _ = waiting.Acquire(ctx, name) }()
	}
	if _, err := b.untilQueued(ctx, name, r.Waiters); err != nil {
		return err
	}
	time.Sleep(time.Second / 2) // the replies are in, too
	sent := t.sent.Load()
	time.Sleep(r.Over)
	r.Commands = float64(t.sent.Load()-sent) / r.Over.Seconds()
	b.report.Idle = r
	b.idleTable(r)
	return lock.Release(ctx)
}

// killed is how long the next live waiter waited after a process with waiters before it was killed.
type killed struct {
	Waiters int             `json:"waiters"`
	Took    []time.Duration `json:"took_ns"`
}

func kill(ctx context.Context, b *bench) error {
	r := &killed{Waiters: b.plan.idlers}
	for range b.plan.kills {
		b.say("a process with %d waiters is killed", r.Waiters)
		took, err := killOnce(ctx, b, r.Waiters)
		if err != nil {
			return err
		}
		r.Took = append(r.Took, took)
	}
	b.report.Kill = r
	b.killTable(r)
	return nil
}

func killOnce(ctx context.Context, b *bench, waiters int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	name := b.name("kill")
	holder, closeHolder, err := b.newLocker(b.target)
	if err != nil {
		return 0, err
	}
	defer closeHolder()
	next, closeNext, err := b.newLocker(b.target)
	if err != nil {
		return 0, err
	}
	defer closeNext()
	lock, err := holder.Acquire(ctx, name)
	if err != nil {
		return 0, err
	}
	process, err := startChild(job{URL: b.target.url, Name: name, Count: waiters, Keep: true})
	if err != nil {
		return 0, err
	}
	defer process.kill()
	if _, err := b.untilQueued(ctx, name, waiters); err != nil {
		return 0, err
	}
	type held struct {
		lock *redislock.Lock
		at   time.Time
		err  error
	}
	got := make(chan held, 1)
	go func() {
		lock, err := next.Acquire(ctx, name)
		got <- held{lock, time.Now(), err}
	}()
	if _, err := b.untilQueued(ctx, name, waiters+1); err != nil {
		return 0, err
	}
	began := time.Now()
	process.kill()
	if err := lock.Release(ctx); err != nil {
		return 0, err
	}
	h := <-got
	if h.err != nil {
		return 0, fmt.Errorf("the live waiter: %w", h.err)
	}
	return h.at.Sub(began), h.lock.Release(ctx)
}

// newLocker returns a Locker with a client of its own.
func (b *bench) newLocker(t target) (*redislock.Locker, func(), error) {
	client, err := t.rueidis(func(*rueidis.ClientOption) {})
	if err != nil {
		return nil, nil, err
	}
	l, err := redislock.New(client, redislock.Options{})
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return l, func() { l.Close(); client.Close() }, nil
}
