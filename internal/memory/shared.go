package memory

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

const (
	popFor   = 2 * time.Second // Pop returns none after this
	popGrace = 2 * time.Second // after that, no answer is an error
)

// Shared is a Server with many clients, on the clock of package time. In a testing/synctest bubble
// that is the clock of the bubble. It has no goroutines, and is safe for concurrent use.
type Shared struct {
	mu       sync.Mutex // nobody blocks while holding it
	server   *Server
	ahead    time.Duration
	replicas int
	arrivals map[string]chan struct{} // by signal list: closed when a signal comes
	clients  int
}

// NewShared returns an empty server. As many replicas confirm a write as a caller asks for.
func NewShared(version string) *Shared {
	return &Shared{server: New(version), replicas: 1 << 30, arrivals: map[string]chan struct{}{}}
}

// Do runs one step on the server, at the present time. The step must not block.
func (s *Shared) Do(step func(*Server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.SetClock(time.Now().Add(s.ahead).UnixMicro())
	step(s.server)
	for list, arrived := range s.arrivals {
		if s.server.lists[list] != nil {
			close(arrived)
			delete(s.arrivals, list)
		}
	}
}

// StepClock puts the server's clock forward, or back.
func (s *Shared) StepClock(by time.Duration) {
	s.mu.Lock()
	s.ahead += by
	s.mu.Unlock()
	s.Do(func(*Server) {})
}

// SetReplicas says how many replicas confirm a write.
func (s *Shared) SetReplicas(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replicas = n
}

// Network carries the calls of a client, or loses them.
type Network interface {
	// Carry carries a call to the server, by calling serve: now, never, or later, even after Carry itself
	// has returned. It returns nil if serve has returned and the client has the reply. Otherwise it returns
	// an error, at the end of ctx at the latest. An error that is not a *wire.Error passes.
	Carry(ctx context.Context, call string, serve func()) error
}

// Client is the wire.Server of one client of the server.
type Client struct {
	shared  *Shared
	network Network
	list    string // its signal list
}

var _ wire.Server = (*Client)(nil)

// Client returns a new client, with a signal list of its own.
func (s *Shared) Client(prefix string, network Network) *Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients++
	return &Client{shared: s, network: network, list: fmt.Sprintf("%s-signal:%d", prefix, s.clients)}
}

// Acquire is lock_acquire.
func (c *Client) Acquire(ctx context.Context, k wire.Keys, token string, lease, wait time.Duration, holders int) (wire.Acquired, error) {
	args := []string{token, millis(lease), millis(wait), strconv.Itoa(holders)}
	if holders == 1 {
		args = args[:3]
	}
	reply, sent, err := fcall[[]any](ctx, c, "lock_acquire", []string{k.Lock, k.Queue, k.State, c.list}, args...)
	if err != nil {
		return wire.Acquired{}, err
	}
	span := time.Duration(number(reply[2])) * time.Millisecond
	a := wire.Acquired{Held: number(reply[0]) == 1, Now: number(reply[3]), Sent: sent}
	switch {
	case !a.Held:
		a.Position, a.CheckIn, a.List = int(number(reply[1])), span, c.list
	case span < 0:
		a.Fence, a.Lease = number(reply[1]), wire.Never
	default:
		a.Fence, a.Lease = number(reply[1]), span
	}
	return a, nil
}

// Release is lock_release.
func (c *Client) Release(ctx context.Context, k wire.Keys, token string) (wire.Released, error) {
	n, _, err := fcall[int64](ctx, c, "lock_release", ownKeys(k), token)
	return wire.Released(n), err
}

// Extend is lock_extend.
func (c *Client) Extend(ctx context.Context, k wire.Keys, token string, lease time.Duration) (wire.Extended, error) {
	n, sent, err := fcall[int64](ctx, c, "lock_extend", ownKeys(k), token, millis(lease))
	return wire.Extended{Held: n == 1, Sent: sent}, err
}

// ExtendAndWait waits for the timeout if there are not enough replicas, as WAIT does.
func (c *Client) ExtendAndWait(ctx context.Context, k wire.Keys, token string, lease time.Duration, n int,
	timeout time.Duration, extended func(wire.Extended),
) (int, error) {
	e, err := c.Extend(ctx, k, token, lease)
	if err != nil {
		return 0, err
	}
	extended(e)
	var acks int
	look := func() error {
		return c.carry(ctx, "WAIT", func() {
			c.shared.mu.Lock()
			defer c.shared.mu.Unlock()
			acks = min(n, c.shared.replicas)
		})
	}
	if err = look(); err == nil && acks < n {
		select {
		case <-time.After(timeout):
			err = look()
		case <-ctx.Done():
			err = c.fault("WAIT", ctx.Err())
		}
	}
	if err != nil {
		return 0, err
	}
	return acks, nil
}

// Reset is lock_reset.
func (c *Client) Reset(ctx context.Context, k wire.Keys) (bool, error) {
	n, _, err := fcall[int64](ctx, c, "lock_reset", ownKeys(k))
	return n == 1, err
}

// Inspect is lock_inspect.
func (c *Client) Inspect(ctx context.Context, k wire.Keys) (wire.State, error) {
	reply, _, err := fcall[[]any](ctx, c, "lock_inspect", ownKeys(k))
	if err != nil {
		return wire.State{}, err
	}
	fields := map[string]any{}
	for i := 0; i+1 < len(reply); i += 2 {
		fields[reply[i].(string)] = reply[i+1]
	}
	ms := func(v any) time.Duration { return time.Duration(number(v)) * time.Millisecond }
	state := wire.State{Holder: fields["holder"].(string), Fence: number(fields["fence"]), Waiting: int(number(fields["waiting"]))}
	if state.Holder != "" {
		state.TTL, state.Held = max(ms(fields["ttl_ms"]), -1), 1
	}
	if held, knows := fields["held"]; knows {
		state.Held = int(number(held))
		for _, holder := range fields["holders"].([]any) {
			h := holder.([]any)
			state.Holders = append(state.Holders, wire.Holder{Token: h[0].(string), TTL: max(ms(h[1]), -1)})
		}
	}
	for _, waiter := range fields["waiters"].([]any) {
		w := waiter.([]any)
		holders := 1
		if len(w) > 5 {
			holders = int(number(w[5]))
		}
		state.Waiters = append(state.Waiters, wire.Waiter{
			Token: w[0].(string), Waited: ms(w[1]), LapsesIn: ms(w[2]), Lease: ms(w[3]), Signal: w[4].(string), Holders: holders,
		})
	}
	return state, nil
}

// Locks returns the keys of held locks.
func (c *Client) Locks(ctx context.Context, prefix string) (keys []string, err error) {
	var found []string
	err = c.carry(ctx, "SCAN", func() {
		c.shared.Do(func(s *Server) {
			for _, l := range s.locks {
				if (l.holder != "" || len(l.shares) > 0) && strings.HasPrefix(l.lockKey, prefix) {
					found = append(found, l.lockKey)
				}
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Pop is BLPOP, and LPOP for the rest.
func (c *Client) Pop(ctx context.Context, list string, most int) ([]wire.Signal, error) {
	ctx, cancel := context.WithTimeout(ctx, popFor+popGrace)
	defer cancel()
	timer := time.NewTimer(popFor)
	defer timer.Stop()
	for late := false; ; {
		var popped answer[[]wire.Signal]
		var arrived chan struct{}
		err := c.carry(ctx, "BLPOP", func() { popped, arrived = c.shared.pop(list, most) })
		if err != nil {
			return nil, err
		}
		if popped.failure != "" || len(popped.reply) > 0 || late {
			return popped.reply, popped.err("BLPOP")
		}
		select {
		case <-arrived:
		case <-timer.C:
			late = true
		case <-ctx.Done():
			return nil, c.fault("BLPOP", ctx.Err())
		}
	}
}

// pop also returns a channel that is closed when an empty list gets an element.
func (s *Shared) pop(list string, most int) (popped answer[[]wire.Signal], arrived chan struct{}) {
	s.Do(func(server *Server) {
		for len(popped.reply) < max(most, 1) {
			switch element := server.Pop(list).(type) {
			case string:
				words := strings.SplitN(element, " ", 3)
				popped.reply = append(popped.reply, wire.Signal{Fence: integer(words[0]), Deadline: integer(words[1]), Token: words[2]})
				continue
			case Failure:
				popped.failure = element
			}
			break
		}
		if arrived = s.arrivals[list]; arrived == nil {
			arrived = make(chan struct{})
			s.arrivals[list] = arrived
		}
	})
	return popped, arrived
}

// Forget is DEL.
func (c *Client) Forget(ctx context.Context, lists []string) error {
	return c.carry(ctx, "DEL", func() {
		c.shared.Do(func(s *Server) {
			for _, list := range lists {
				s.Delete(list)
			}
		})
	})
}

// answer is a reply of the server, or its failure.
type answer[T any] struct {
	reply   T
	failure Failure
}

func (a answer[T]) err(function string) error {
	if a.failure == "" {
		return nil
	}
	return &wire.Error{Err: fmt.Errorf("%s: %s", function, a.failure), Answered: true}
}

// fcall runs a function of the library. It also returns when it was sent.
func fcall[T any](ctx context.Context, c *Client, function string, keys []string, args ...string) (reply T, sent time.Time, err error) {
	sent = time.Now()
	var got answer[T] // its own variable: it may be set after the end of this call
	err = c.carry(ctx, function, func() {
		c.shared.Do(func(s *Server) {
			reply := s.Call(function, keys, args, func(string) bool { return true })
			got.failure, _ = reply.(Failure)
			got.reply, _ = reply.(T)
		})
	})
	if err != nil {
		return reply, sent, err
	}
	return got.reply, sent, got.err(function)
}

func (c *Client) carry(ctx context.Context, call string, serve func()) error {
	if err := c.network.Carry(ctx, call, serve); err != nil {
		return c.fault(call, err)
	}
	return nil
}

func (c *Client) fault(call string, err error) error {
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return err
	}
	return &wire.Error{Err: fmt.Errorf("%s: %w", call, err), Passes: true}
}

func ownKeys(k wire.Keys) []string { return []string{k.Lock, k.Queue, k.State} }

// millis is a time in whole milliseconds, rounded up so that it does not become zero.
func millis(d time.Duration) string {
	if d == wire.Never {
		return "0"
	}
	return strconv.FormatInt(int64((d+time.Millisecond-1)/time.Millisecond), 10)
}

func number(v any) int64 {
	n, _ := v.(int64)
	return n
}

func integer(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}
