package redislock

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

//go:embed lua/lock.lua
var source string

// Version is the version of the function library that this package embeds and works with.
const Version = "1.0.0"

// Source returns the text of the function library lua/lock.lua, to load it with another tool.
func Source() string { return source }

const (
	// blockFor is how long one BLPOP blocks. It limits how long signals are missed if BLPOP is blocked on a
	// demoted primary.
	blockFor = 2 * time.Second
	// blockGrace is how late BLPOP's reply may be before we close the connection. CLIENT PAUSE or a silent
	// network can delay it for longer.
	blockGrace = 2 * time.Second
	// popMax limits the elements of one reply.
	popMax = 1000
	// closingFor is how long rueidis may return ErrClosing without being closed: it does so during a failover.
	closingFor = 2 * time.Second
)

// functions is the wire.Server on rueidis: one typed method per function of the library. Only this file
// encodes arguments and decodes replies.
type functions struct {
	client  rueidis.Client
	loader  *loader
	logger  *slog.Logger
	prefix  string
	id      string                    // part of the names of our signal lists
	all     string                    // the signal list for all locks
	perLock atomic.Bool               // each lock has a signal list of its own: the server checks slots
	closing atomic.Pointer[time.Time] // since when each call has failed with ErrClosing; nil: the last did not
	demoted atomic.Bool               // the warning was written
	leaving atomic.Bool               // a QUIT is under way
	left    atomic.Pointer[time.Time] // when the last QUIT was answered; nil: none was sent
}

var _ wire.Server = (*functions)(nil)

func newFunctions(client rueidis.Client, opts Options) *functions {
	f := &functions{
		client: client,
		loader: newLoader(client, opts.LoadMode, opts.Logger),
		logger: opts.Logger,
		prefix: opts.Prefix,
		id:     randomID(64), // short, because the entry of each waiter contains it
	}
	f.all = f.prefix + "-signal:" + f.id
	f.perLock.Store(client.Mode() == rueidis.ClientModeCluster)
	return f
}

// list is the signal list for a lock.
func (f *functions) list(k wire.Keys) string {
	if f.perLock.Load() {
		return f.prefix + "-signal:" + k.Tagged + ":" + f.id
	}
	return f.all
}

func (f *functions) Acquire(ctx context.Context, k wire.Keys, token string, lease, wait time.Duration, holders int) (wire.Acquired, error) {
	const function = "lock_acquire"
	list := f.list(k)
	args := []string{token, leaseMillis(lease), millis(wait), strconv.Itoa(holders)}
	if holders == 1 {
		args = args[:3] // an older library does not know the fourth
	}
	r := f.call(ctx, "FCALL", function, []string{k.Lock, k.Queue, k.State, list}, args...)
	if code(r.Error()) == "CROSSSLOT" && f.perLock.CompareAndSwap(false, true) {
		return f.Acquire(ctx, k, token, lease, wait, holders) // a cluster, although Mode says standalone
	}
	n, err := ints(r)
	if err == nil && len(n) != 4 {
		err = fmt.Errorf("%d elements, not 4", len(n))
	}
	if err != nil {
		return wire.Acquired{}, fault(function, r, err)
	}
	span := time.Duration(n[2]) * time.Millisecond
	a := wire.Acquired{Held: n[0] == 1, Now: n[3], Sent: r.sent}
	switch {
	case !a.Held:
		a.Position, a.CheckIn, a.List = int(n[1]), span, list
	case n[2] > 0:
		a.Fence, a.Lease = n[1], span
	case n[2] == -1 && lease == wire.Never:
		a.Fence, a.Lease = n[1], wire.Never
	default: // a lease of 0 must not become one that never expires
		return wire.Acquired{}, fault(function, r, fmt.Errorf("a lease of %d ms", n[2]))
	}
	return a, nil
}

func (f *functions) Release(ctx context.Context, k wire.Keys, token string) (wire.Released, error) {
	n, _, err := f.int(ctx, "lock_release", k, token)
	return wire.Released(n), err
}

func (f *functions) Extend(ctx context.Context, k wire.Keys, token string, lease time.Duration) (wire.Extended, error) {
	n, sent, err := f.int(ctx, "lock_extend", k, token, leaseMillis(lease))
	return wire.Extended{Held: n == 1, Sent: sent}, err
}

// ExtendAndWait works on a connection of its own, because WAIT counts only the writes of its connection. It
// closes connections to a demoted server and takes the next one: the pool may have several of them.
func (f *functions) ExtendAndWait(ctx context.Context, k wire.Keys, token string, lease time.Duration, n int,
	timeout time.Duration, extended func(wire.Extended),
) (acks int, err error) {
	type reply struct {
		acks int64
		err  error
	}
	once := func(c rueidis.DedicatedClient) (r reply) {
		sent := time.Now().Add(-time.Millisecond) // as in call
		var held int64
		held, r.err = c.Do(ctx, c.B().Fcall().Function("lock_extend").Numkeys(3).
			Key(k.Lock, k.Queue, k.State).Arg(token, leaseMillis(lease)).Build()).AsInt64()
		if code(r.err) == "READONLY" {
			c.Do(ctx, c.B().Arbitrary("QUIT").Build())
		}
		if r.err == nil {
			extended(wire.Extended{Held: held == 1, Sent: sent})
		}
		if held == 1 {
			r.acks, r.err = c.Do(ctx, c.B().Wait().Numreplicas(int64(n)).Timeout(ceilMillis(timeout)).Build()).AsInt64()
		}
		return r
	}
	r, err := ending(ctx, func() (r reply) {
		for retry := (backoff{}); ; {
			_ = f.client.Dedicated(func(c rueidis.DedicatedClient) error {
				r = once(c)
				return nil
			})
			if code(r.err) != "READONLY" {
				return r
			}
			select {
			case <-time.After(retry.next()):
			case <-ctx.Done():
				return r
			}
		}
	})
	if err = errors.Join(err, r.err); err != nil {
		return 0, classify(fmt.Errorf("lock_extend and WAIT: %w", err))
	}
	return int(r.acks), nil
}

func (f *functions) Reset(ctx context.Context, k wire.Keys) (bool, error) {
	n, _, err := f.int(ctx, "lock_reset", k)
	return n == 1, err
}

func (f *functions) Inspect(ctx context.Context, k wire.Keys) (wire.State, error) {
	const function = "lock_inspect"
	r := f.call(ctx, "FCALL_RO", function, []string{k.Lock, k.Queue, k.State})
	state, err := parseState(r)
	if err != nil {
		return wire.State{}, fault(function, r, err)
	}
	return state, nil
}

func parseState(r answer) (state wire.State, err error) {
	fields, err := r.AsMap()
	number := func(name string) (n int64) {
		if err == nil {
			field := fields[name]
			n, err = field.AsInt64()
		}
		return n
	}
	ttl := time.Duration(number("ttl_ms")) * time.Millisecond
	state.Fence, state.Waiting = number("fence"), int(number("waiting"))
	if err != nil {
		return state, err
	}
	holder, list, together := fields["holder"], fields["waiters"], fields["holders"]
	if state.Holder, err = holder.ToString(); err != nil {
		return state, err
	}
	if state.Holder != "" {
		state.TTL, state.Held = max(ttl, -1), 1
	}
	waiters, err := list.ToArray()
	for i := 0; i < len(waiters) && err == nil; i++ {
		var waiter wire.Waiter
		waiter, err = parseWaiter(&waiters[i])
		state.Waiters = append(state.Waiters, waiter)
	}
	if _, knows := fields["held"]; !knows || err != nil { // an older library
		return state, err
	}
	state.Held = int(number("held"))
	holders, bad := together.ToArray()
	for err = errors.Join(err, bad); len(holders) > 0 && err == nil; holders = holders[1:] {
		var h wire.Holder
		h, err = parseHolder(&holders[0])
		state.Holders = append(state.Holders, h)
	}
	return state, err
}

func parseHolder(entry *rueidis.RedisMessage) (h wire.Holder, err error) {
	fields, err := entry.ToArray()
	if err != nil || len(fields) < 2 {
		return h, errors.Join(err, fmt.Errorf("a holder of %d fields", len(fields)))
	}
	ms, err := fields[1].AsInt64()
	if err != nil {
		return h, err
	}
	h.TTL = max(time.Duration(ms)*time.Millisecond, -1)
	h.Token, err = fields[0].ToString()
	return h, err
}

func parseWaiter(entry *rueidis.RedisMessage) (w wire.Waiter, err error) {
	fields, err := entry.ToArray()
	if err != nil || len(fields) < 5 {
		return w, errors.Join(err, fmt.Errorf("a waiter of %d fields", len(fields)))
	}
	for i, span := range []*time.Duration{&w.Waited, &w.LapsesIn, &w.Lease} {
		ms, err := fields[i+1].AsInt64()
		if err != nil {
			return w, err
		}
		*span = time.Duration(ms) * time.Millisecond
	}
	w.Holders = 1
	if len(fields) > 5 { // an older library does not know it
		holders, err := fields[5].AsInt64()
		if err != nil {
			return w, err
		}
		w.Holders = int(holders)
	}
	if w.Token, err = fields[0].ToString(); err == nil {
		w.Signal, err = fields[4].ToString()
	}
	return w, err
}

// Pop makes one round trip for all pending signals.
func (f *functions) Pop(ctx context.Context, list string, most int) ([]wire.Signal, error) {
	// rueidis heeds the end of ctx during a blocking call only if ctx has no deadline.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.AfterFunc(blockFor+blockGrace, cancel)
	defer timer.Stop()
	block := f.client.B().Blpop().Key(list).Timeout(blockFor.Seconds()).Build()
	var results []rueidis.RedisResult
	sent := time.Now()
	if most > 1 {
		results = f.client.DoMulti(ctx, block, f.client.B().Lpop().Key(list).Count(int64(min(most, popMax))).Build())
	} else {
		results = []rueidis.RedisResult{f.client.Do(ctx, block)}
	}
	elements, err := results[0].AsStrSlice()
	if rueidis.IsRedisNil(err) {
		return nil, nil
	}
	if err != nil {
		f.leaveDemoted(err, sent, false)
		return nil, classify(fmt.Errorf("BLPOP: %w", err))
	}
	elements = elements[min(1, len(elements)):] // the first is the list
	if len(results) > 1 {
		more, _ := results[1].AsStrSlice() // check-ins make up for signals lost with an error
		elements = append(elements, more...)
	}
	var signals []wire.Signal
	for _, element := range elements {
		if s, ok := parseSignal(element); ok {
			signals = append(signals, s)
		}
	}
	return signals, nil
}

// parseSignal reads FENCE DEADLINE_MS TOKEN. False: the library did not write it.
func parseSignal(element string) (wire.Signal, bool) {
	fence, rest, _ := strings.Cut(element, " ")
	deadline, token, _ := strings.Cut(rest, " ")
	s := wire.Signal{Token: token}
	var err1, err2 error
	s.Fence, err1 = strconv.ParseInt(fence, 10, 64)
	s.Deadline, err2 = strconv.ParseInt(deadline, 10, 64)
	return s, err1 == nil && err2 == nil && token != ""
}

func (f *functions) Forget(ctx context.Context, lists []string) error {
	_, err := ending(ctx, func() (none struct{}) {
		for _, list := range lists {
			if f.client.Do(ctx, f.client.B().Unlink().Key(list).Build()).Error() != nil {
				return // they expire
			}
		}
		return none
	})
	return err
}

func (f *functions) Locks(ctx context.Context, prefix string) ([]string, error) {
	var mu sync.Mutex
	var keys []string
	errs := primaries(ctx, f.client, 0, func(ctx context.Context, _ string, node rueidis.Client) error {
		// Held alone, a lock is a string; held together, a sorted set.
		alone, err1 := scan(ctx, node, globEscape(prefix)+"*", "string")
		together, err2 := scan(ctx, node, globEscape(prefix)+"*", "zset")
		mu.Lock()
		defer mu.Unlock()
		keys = append(append(keys, alone...), together...)
		return cmp.Or(err1, err2)
	})
	mu.Lock()
	defer mu.Unlock()
	if err := join(errs...); err != nil {
		return slices.Clone(keys), classify(fmt.Errorf("SCAN: %w", err))
	}
	return keys, nil
}

// scan returns all keys of a node with this type and pattern, some more than once.
func scan(ctx context.Context, node rueidis.Client, pattern, kind string) (keys []string, err error) {
	var cursor uint64
	for {
		page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).
			Match(pattern).Count(1000).Type(kind).Build()).AsScanEntry()
		keys = append(keys, page.Elements...)
		if cursor = page.Cursor; err != nil || cursor == 0 {
			return keys, err
		}
	}
}

// globEscape makes SCAN take a prefix literally.
func globEscape(prefix string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `\`, `\\`, `^`, `\^`, `-`, `\-`).Replace(prefix)
}

// answer is a reply, and the time when its call was sent.
type answer struct {
	rueidis.RedisResult
	sent time.Time
}

// call runs one function. It loads the library at first use, and again if it has disappeared.
func (f *functions) call(ctx context.Context, command, function string, keys []string, args ...string) answer {
	a, err := ending(ctx, func() answer {
		if err := f.loader.ensure(ctx); err != nil {
			return answer{RedisResult: rueidis.NewErrorResult(err)}
		}
		first := f.loader.rounds.Load()
		for rounds := first; ; {
			// Arbitrary: rueidis retries known read-only commands by itself, for as long as ctx allows.
			// Sent a millisecond sooner: Redis 8 may remove a key in its last one.
			a := answer{sent: time.Now().Add(-time.Millisecond)}
			a.RedisResult = f.client.Do(ctx, f.client.B().Arbitrary(command, function, strconv.Itoa(len(keys))).
				Keys(keys...).Args(args...).Build())
			err := a.Error()
			if !notFound(err) || rounds > first+1 { // others keep removing the library
				f.leaveDemoted(err, a.sent, true)
				return a
			}
			if rounds, err = f.loader.missing(ctx, rounds); err != nil {
				return answer{RedisResult: rueidis.NewErrorResult(err)}
			}
		}
	})
	if err != nil {
		a.RedisResult = rueidis.NewErrorResult(err)
	}
	if err = a.Error(); f.isClosed(err) {
		a.RedisResult = rueidis.NewErrorResult(&wire.Error{Err: err, Answered: true})
	}
	return a
}

// ending returns the result of do, or ctx's error as soon as ctx ends. rueidis ignores ctx while it dials,
// or waits for a connection that another call dials.
func ending[T any](ctx context.Context, do func() T) (result T, err error) {
	if ctx.Done() == nil {
		return do(), nil
	}
	done := make(chan T, 1)
	go func() { done <- do() }()
	select {
	case result = <-done:
		return result, nil
	case <-ctx.Done():
		return result, ctx.Err()
	}
}

// leaveDemoted closes a connection to a server that has been demoted behind a single address (a DNS name,
// a proxy). rueidis keeps such connections as long as they work. QUIT needs no right, and ends the
// connection that answers it: any of the pipelined ones, if QUIT has a key; of the dedicated ones, the
// last used. QUIT may hit a connection to the new primary and break other calls under way. So there is
// one QUIT at a time, and only for a call that was sent after the last QUIT.
func (f *functions) leaveDemoted(err error, sent time.Time, pipelined bool) {
	if code(err) != "READONLY" || f.client.Mode() != rueidis.ClientModeStandalone {
		return
	}
	if f.demoted.CompareAndSwap(false, true) {
		f.logger.Warn("redislock: the server is a replica now: its connections are given up, one after the other. "+
			"rueidis.ClientOption.ConnLifetime shortens this", "error", err)
	}
	if last := f.left.Load(); last != nil && sent.Before(*last) || !f.leaving.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer func() {
			now := time.Now()
			f.left.Store(&now)
			f.leaving.Store(false)
		}()
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		if pipelined {
			f.client.Do(ctx, f.client.B().Arbitrary("QUIT").Keys(f.id).Build())
			return
		}
		_ = f.client.Dedicated(func(c rueidis.DedicatedClient) error {
			return c.Do(ctx, c.B().Arbitrary("QUIT").Build()).Error()
		})
	}()
}

// isClosed tells whether the client has returned ErrClosing for closingFor: it also does so briefly during
// a failover.
func (f *functions) isClosed(err error) bool {
	if !errors.Is(err, rueidis.ErrClosing) {
		if f.closing.Load() != nil {
			f.closing.Store(nil)
		}
		return false
	}
	now := time.Now()
	f.closing.CompareAndSwap(nil, &now)
	since := f.closing.Load()
	return since != nil && now.Sub(*since) > closingFor
}

// fault is the error of a call that failed at the server, in the network, or with a reply that the library
// does not make.
func fault(function string, a answer, err error) error {
	if failed := a.Error(); failed != nil && !rueidis.IsRedisNil(failed) {
		return classify(fmt.Errorf("%s: %w", function, failed))
	}
	return &wire.Error{Err: fmt.Errorf("%s: unexpected reply from the function library: %w", function, err)}
}

func ints(a answer) ([]int64, error) {
	elements, err := a.ToArray()
	numbers := make([]int64, len(elements))
	for i := 0; i < len(elements) && err == nil; i++ {
		numbers[i], err = elements[i].ToInt64()
	}
	return numbers, err
}

func (f *functions) int(ctx context.Context, function string, k wire.Keys, args ...string) (int64, time.Time, error) {
	a := f.call(ctx, "FCALL", function, []string{k.Lock, k.Queue, k.State}, args...)
	n, err := a.AsInt64()
	if err != nil {
		err = fault(function, a, err)
	}
	return n, a.sent, err
}

// ceilMillis rounds up to the library's unit, so that a time above zero never becomes zero.
func ceilMillis(d time.Duration) int64 {
	ms := int64(d / time.Millisecond)
	if d%time.Millisecond > 0 {
		ms++
	}
	return ms
}

func millis(d time.Duration) string { return strconv.FormatInt(ceilMillis(d), 10) }

// leaseMillis is a lease as the library's argument. Only wire.Never becomes 0, which never expires.
func leaseMillis(d time.Duration) string {
	if d == wire.Never {
		return "0"
	}
	return millis(max(d, time.Millisecond))
}
