package redislock

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

//go:embed lua/lock.lua
var source string

// Version is the version of the function library that this package embeds and works with.
const Version = "1.0.0"

// Source returns the text of the function library lua/lock.lua, for those who load it themselves.
func Source() string { return source }

// functions has one typed method per function of the library. It is the only place that knows how
// arguments and replies are encoded.
type functions struct {
	client rueidis.Client
	loader *loader
}

// acquired is the reply of lock_acquire.
type acquired struct {
	held     bool
	fence    int64         // held: the fencing token
	position int64         // not held: the place in the queue, 1 is next; 0: not queued
	left     time.Duration // held: what is left of the lease, 0: never expires
	checkIn  time.Duration // queued: call again at the latest after this
	now      int64         // server time, ms
}

func (f *functions) acquire(ctx context.Context, k keys, signal, token string, lease, wait time.Duration) (acquired, error) {
	reply, err := f.ints(ctx, 4, "FCALL", "lock_acquire", []string{k.lock, k.queue, k.state, signal},
		token, millis(lease), millis(wait))
	if err != nil {
		return acquired{}, err
	}
	span := time.Duration(reply[2]) * time.Millisecond
	a := acquired{held: reply[0] == 1, now: reply[3]}
	switch {
	case !a.held:
		a.position, a.checkIn = reply[1], span
	case reply[2] > 0:
		a.fence, a.left = reply[1], span
	case reply[2] == -1 && lease == 0:
		a.fence = reply[1]
	default: // it must not be taken for one that never expires
		return acquired{}, fmt.Errorf("lock_acquire: %w: a lease of %d ms", errReply, reply[2])
	}
	return a, nil
}

// The replies of lock_release.
const (
	notMine = 0
	wasHeld = 1
)

func (f *functions) release(ctx context.Context, k keys, token string) (int64, error) {
	return f.int(ctx, "lock_release", k, token)
}

func (f *functions) extend(ctx context.Context, k keys, token string, lease time.Duration) (bool, error) {
	n, err := f.int(ctx, "lock_extend", k, token, millis(lease))
	return n == 1, err
}

func (f *functions) reset(ctx context.Context, k keys) (bool, error) {
	n, err := f.int(ctx, "lock_reset", k)
	return n == 1, err
}

func (f *functions) inspect(ctx context.Context, k keys) (State, error) {
	state := State{Name: k.name}
	result := f.call(ctx, "FCALL_RO", "lock_inspect", []string{k.lock, k.queue, k.state})
	fields, err := parse("lock_inspect", result, result.AsMap)
	if err != nil {
		return state, err
	}
	number := func(name string) (n int64) {
		if err == nil {
			field := fields[name]
			n, err = field.AsInt64()
		}
		return n
	}
	holder, waiters := fields["holder"], fields["waiters"]
	if state.Holder, err = holder.ToString(); err != nil {
		return state, unexpected("lock_inspect", err)
	}
	state.Fence = number("fence")
	state.TTL = time.Duration(number("ttl_ms")) * time.Millisecond
	state.Waiting = int(number("waiting"))
	if err != nil {
		return state, unexpected("lock_inspect", err)
	}
	if state.Holder == "" {
		state.TTL = 0
	} else if state.TTL < 0 {
		state.TTL = -1
	}
	entries, err := waiters.ToArray()
	if err != nil {
		return state, unexpected("lock_inspect", err)
	}
	for i := range entries {
		waiter, err := parseWaiter(&entries[i])
		if err != nil {
			return state, err
		}
		state.Waiters = append(state.Waiters, waiter)
	}
	return state, nil
}

func parseWaiter(entry *rueidis.RedisMessage) (Waiter, error) {
	fields, err := entry.ToArray()
	if err != nil || len(fields) < 5 {
		return Waiter{}, fmt.Errorf("lock_inspect: %w: a waiter of %d fields", errReply, len(fields))
	}
	var w Waiter
	var spans [3]time.Duration
	for i := range spans {
		ms, err := fields[i+1].AsInt64()
		if err != nil {
			return Waiter{}, unexpected("lock_inspect", err)
		}
		spans[i] = time.Duration(ms) * time.Millisecond
	}
	w.Waited, w.LapsesIn, w.Lease = spans[0], spans[1], spans[2]
	if w.Token, err = fields[0].ToString(); err == nil {
		w.Signal, err = fields[4].ToString()
	}
	if err != nil {
		err = unexpected("lock_inspect", err)
	}
	return w, err
}

// askVersion also asks for the eviction policy, which is "" where the server or the user's rights
// keep it secret.
func askVersion(ctx context.Context, node rueidis.Client) (version, policy string, err error) {
	replies := node.DoMulti(ctx,
		node.B().Arbitrary("FCALL_RO", "lock_version", "0").Build(),
		node.B().Arbitrary("INFO", "memory").Build())
	info, _ := replies[1].ToString()
	_, policy, _ = strings.Cut(info, "maxmemory_policy:")
	policy, _, _ = strings.Cut(policy, "\r\n")
	version, err = replies[0].ToString()
	return version, policy, err
}

// extendAndWait is extend on a connection of its own, then WAIT there: WAIT counts what its own
// connection wrote. In between it calls extended. It returns how many replicas have the lease.
func (f *functions) extendAndWait(ctx context.Context, k keys, token string, lease time.Duration, n int, timeout time.Duration,
	extended func(),
) (held bool, acks int64, err error) {
	err = f.client.Dedicated(func(c rueidis.DedicatedClient) error {
		reply, err := c.Do(ctx, c.B().Fcall().Function("lock_extend").Numkeys(3).
			Key(k.lock, k.queue, k.state).Arg(token, millis(lease)).Build()).AsInt64()
		if err != nil || reply != 1 {
			return err
		}
		held = true
		extended()
		acks, err = c.Do(ctx, c.B().Wait().Numreplicas(int64(n)).
			Timeout(ceilMillis(timeout)).Build()).AsInt64()
		return err
	})
	return held, acks, err
}

// call runs one function, and loads the library if it is missing: at first use, and once more if
// it has gone since.
func (f *functions) call(ctx context.Context, command, function string, keys []string, args ...string) rueidis.RedisResult {
	if err := f.loader.ensure(ctx); err != nil {
		return rueidis.NewErrorResult(err)
	}
	// Arbitrary: rueidis itself retries what it knows to be read-only, for as long as ctx allows.
	run := func() rueidis.RedisResult {
		return f.client.Do(ctx, f.client.B().Arbitrary(command, function, strconv.Itoa(len(keys))).
			Keys(keys...).Args(args...).Build())
	}
	result := run()
	if notFound(result.Error()) {
		if err := f.loader.reload(ctx); err != nil {
			return rueidis.NewErrorResult(err)
		}
		result = run()
	}
	return result
}

func (f *functions) ints(ctx context.Context, n int, command, function string, keys []string, args ...string) ([]int64, error) {
	result := f.call(ctx, command, function, keys, args...)
	elements, err := parse(function, result, result.ToArray)
	if err == nil && len(elements) != n {
		err = fmt.Errorf("%s: %w: %d elements, not %d", function, errReply, len(elements), n)
	}
	if err != nil {
		return nil, err
	}
	numbers := make([]int64, n)
	for i := range elements {
		if numbers[i], err = elements[i].ToInt64(); err != nil {
			return nil, unexpected(function, err)
		}
	}
	return numbers, nil
}

func (f *functions) int(ctx context.Context, function string, k keys, args ...string) (int64, error) {
	result := f.call(ctx, "FCALL", function, []string{k.lock, k.queue, k.state}, args...)
	return parse(function, result, result.AsInt64)
}

// parse tells an error of the server or the network from a reply that the library cannot have made.
func parse[T any](function string, result rueidis.RedisResult, as func() (T, error)) (T, error) {
	if err := result.Error(); err != nil && !rueidis.IsRedisNil(err) {
		var none T
		return none, fmt.Errorf("%s: %w", function, err)
	}
	reply, err := as()
	if err != nil {
		err = unexpected(function, err)
	}
	return reply, err
}

func unexpected(function string, err error) error {
	return fmt.Errorf("%s: %w: %w", function, errReply, err)
}

// ceilMillis rounds up to the library's unit, so that a time above zero never becomes zero.
func ceilMillis(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

func millis(d time.Duration) string { return strconv.FormatInt(ceilMillis(d), 10) }
