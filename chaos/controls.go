package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// Locks with known faults. The judges must find them, or the judges prove nothing.
const (
	controlSetNX   = "setnx"
	controlBarging = "barging"
	controlLate    = "late"
)

var controls = []string{controlSetNX, controlBarging, controlLate}

// setNX is the lock of many tutorials: SET NX PX, polling, no fencing token, and a holder that trusts its
// lock until it releases it.
type setNX struct{ client rueidis.Client }

func (l setNX) close() {}

func (l setNX) acquire(ctx context.Context, name string, try bool, o options) (hold, error) {
	h := &controlHold{client: l.client, name: name, token: o.label + ":" + strconv.FormatUint(rand.Uint64(), 36)}
	h.ctx, h.end = context.WithCancel(context.Background())
	for {
		err := l.client.Do(ctx, l.client.B().Set().Key("lock:{"+name+"}").Value(h.token).Nx().
			PxMilliseconds(o.lease.Milliseconds()).Build()).Error()
		if err == nil {
			return h, nil
		}
		if try {
			return nil, redislock.ErrNotAcquired
		}
		select {
		case <-time.After(time.Duration(5+rand.IntN(20)) * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// barging wakes the next waiter and lets it try again: the first to come has the lock. Its keys are those
// of the library, so the same judge can read its queue from MONITOR.
type barging struct{ client rueidis.Client }

var (
	bargingTry = rueidis.NewLuaScript(`
local function leave()
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[3], '@' .. ARGV[1])
end
if ARGV[4] == '1' then
  return leave()
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  if ARGV[3] == '1' then
    local time = redis.call('TIME')
    redis.call('ZADD', KEYS[2], 'NX', time[1] * 1000000 + time[2], ARGV[1])
  end
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
leave()
local time = redis.call('TIME')
local fence = math.max(time[1] * 1000000 + time[2], (tonumber(redis.call('HGET', KEYS[3], 'fence')) or 0) + 1)
redis.call('HSET', KEYS[3], 'fence', string.format('%.0f', fence))
return fence`)
	bargingFree = rueidis.NewLuaScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('DEL', KEYS[2])
redis.call('RPUSH', KEYS[2], '1')
redis.call('PEXPIRE', KEYS[2], 1000)
return 1`)
)

func (l barging) close() {}

func (l barging) acquire(ctx context.Context, name string, try bool, o options) (hold, error) {
	h := &controlHold{client: l.client, name: name,
		token: o.label + ":" + strconv.FormatUint(rand.Uint64(), 36)}
	h.ctx, h.end = context.WithCancel(context.Background())
	keys := []string{"lock:{" + name + "}", "lock-queue:{" + name + "}", "lock-state:{" + name + "}"}
	wait := "1"
	if try {
		wait = "0"
	}
	ask := func(ctx context.Context, leave string) (int64, error) {
		return bargingTry.Exec(ctx, l.client, keys, []string{h.token, strconv.FormatInt(o.lease.Milliseconds(), 10), wait, leave}).AsInt64()
	}
	for {
		sent := time.Now()
		fence, err := ask(ctx, "0")
		if err == nil && fence > 0 {
			h.fence, h.deadline = fence, sent.Add(o.lease)
			return h, nil
		}
		if try || ctx.Err() != nil {
			_, _ = ask(context.Background(), "1")
			return nil, errors.Join(redislock.ErrNotAcquired, ctx.Err())
		}
		// An expired lease wakes nobody, so the block is short.
		_ = l.client.Do(ctx, l.client.B().Blpop().Key("lock-wake:{"+name+"}").Timeout(0.1).Build()).Error()
	}
}

// controlHold is the hold of both.
type controlHold struct {
	client   rueidis.Client
	name     string
	token    string
	fence    int64
	deadline time.Time
	ctx      context.Context
	end      context.CancelFunc
}

func (h *controlHold) Fence() int64                { return h.fence }
func (h *controlHold) Context() context.Context    { return h.ctx }
func (h *controlHold) Deadline() (time.Time, bool) { return h.deadline, !h.deadline.IsZero() }

func (h *controlHold) Release(ctx context.Context) error {
	h.end()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	wake := "lock-wake:{" + h.name + "}"
	n, err := bargingFree.Exec(ctx, h.client, []string{"lock:{" + h.name + "}", wake}, []string{h.token}).AsInt64()
	if err == nil && n == 0 {
		return redislock.ErrNotHeld
	}
	return err
}

// late is the real lock, but the notice of a loss waits for the renewal: a call ends Context, and a call can
// hang for longer than the lease.
type late struct {
	realLocks
	client rueidis.Client
}

func (l late) acquire(ctx context.Context, name string, try bool, o options) (hold, error) {
	o.renew, o.maxHold = false, 0 // it renews itself, for the same lease each time
	held, err := l.realLocks.acquire(ctx, name, try, o)
	if err != nil {
		return nil, err
	}
	h := &lateHold{Lock: held.(*redislock.Lock), client: l.client, lease: o.lease}
	h.deadline, _ = h.Lock.Deadline()
	h.ctx, h.end = context.WithCancel(context.Background())
	go h.renew()
	return h, nil
}

type lateHold struct {
	*redislock.Lock
	client rueidis.Client
	lease  time.Duration
	ctx    context.Context
	end    context.CancelFunc

	mu       sync.Mutex
	deadline time.Time
}

func (h *lateHold) Context() context.Context { return h.ctx }

func (h *lateHold) Deadline() (time.Time, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deadline, true
}

func (h *lateHold) Release(ctx context.Context) error {
	h.end()
	return h.Lock.Release(ctx)
}

// renew looks at the lease only after a call.
func (h *lateHold) renew() {
	defer h.end()
	tag := "{" + h.Name() + "}"
	for {
		select {
		case <-time.After(h.lease / 3):
		case <-h.ctx.Done():
			return
		}
		sent := time.Now()
		reply, err := h.client.Do(context.Background(), h.client.B().Fcall().Function("lock_extend").Numkeys(3).
			Key("lock:"+tag, "lock-queue:"+tag, "lock-state:"+tag).
			Arg(h.Token(), strconv.FormatInt(h.lease.Milliseconds(), 10)).Build()).AsInt64()
		h.mu.Lock()
		if err == nil && reply == 1 {
			h.deadline = sent.Add(h.lease)
		}
		over := !time.Now().Before(h.deadline)
		h.mu.Unlock()
		if err == nil && reply != 1 || err != nil && over {
			return
		}
	}
}
