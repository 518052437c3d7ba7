package vectors

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

// client is what redislock.New is given.
type client struct {
	rueidis.Client
	server *server
}

func (c client) Wire(string) wire.Server { return c.server }

// server answers as its script says, and notes what it is asked.
type server struct {
	wire.Server // nobody asks for the rest
	start       time.Time

	mu      sync.Mutex
	actions []action
	asking  action // the last call of lock_acquire
	lock    *redislock.Lock
	pending []*call
	token   string
	signals chan []wire.Signal
	stopped chan struct{}
}

// call waits for its answer.
type call struct {
	function string
	answer   chan step
}

func newServer() *server {
	return &server{start: time.Now(), signals: make(chan []wire.Signal, 100), stopped: make(chan struct{})}
}

func (s *server) note(a action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.at = time.Since(s.start)
	s.actions = append(s.actions, a)
}

func (s *server) holds(lock *redislock.Lock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lock = lock
}

func (s *server) seen() (*redislock.Lock, action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lock, s.asking
}

// stop has each call fail from now on, so that the client ends.
func (s *server) stop() []action {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.stopped)
	return append([]action(nil), s.actions...)
}

var errStopped = &wire.Error{Err: errors.New("the vector is over"), Answered: true}

// ask notes a call and waits for its answer.
func (s *server) ask(ctx context.Context, function, token string, args ...any) (reply []int64, sent time.Time, err error) {
	c := &call{function: function, answer: make(chan step, 1)}
	a := action{Call: function, Args: append([]any{"TOKEN"}, args...)}
	s.mu.Lock()
	s.token = cmp.Or(s.token, token)
	s.pending = append(s.pending, c)
	if function == "acquire" {
		s.asking = a
	}
	s.mu.Unlock()
	select {
	case <-s.stopped:
		return nil, sent, errStopped
	default:
	}
	s.note(a)
	sent = time.Now()
	select {
	case step := <-c.answer:
		if step.Event == "error" {
			return nil, sent, &wire.Error{Err: errors.New(step.Error), Passes: step.Passes, Answered: step.Answered}
		}
		return step.Reply, sent, nil
	case <-ctx.Done():
		err = &wire.Error{Err: ctx.Err(), Passes: true}
	case <-s.stopped:
		err = errStopped
	}
	s.forget(c)
	return nil, sent, err
}

func (s *server) forget(gone *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.pending {
		if c == gone {
			s.pending = append(s.pending[:i:i], s.pending[i+1:]...)
			return
		}
	}
}

// answer is for the oldest call of that function. Without a call, the answer came too late.
func (s *server) answer(step step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.pending {
		if c.function == step.To {
			s.pending = append(s.pending[:i:i], s.pending[i+1:]...)
			c.answer <- step
			return
		}
	}
}

// tell sends a signal. TOKEN stands for the client's.
func (s *server) tell(text string) {
	fence, rest, _ := strings.Cut(text, " ")
	deadline, token, _ := strings.Cut(rest, " ")
	s.mu.Lock()
	defer s.mu.Unlock()
	if token == "TOKEN" {
		token = s.token
	}
	signal := wire.Signal{Token: token}
	var err1, err2 error
	signal.Fence, err1 = strconv.ParseInt(fence, 10, 64)
	signal.Deadline, err2 = strconv.ParseInt(deadline, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		panic(err)
	}
	s.signals <- []wire.Signal{signal}
}

func millis(d time.Duration) int64 {
	if d == wire.Never {
		return 0
	}
	return d.Milliseconds()
}

func (s *server) Acquire(ctx context.Context, _ wire.Keys, token string, lease, wait time.Duration, holders int) (wire.Acquired, error) {
	args := []any{millis(lease), millis(wait)}
	if holders != 1 { // else it is not sent: an older library does not know it
		args = append(args, holders)
	}
	n, sent, err := s.ask(ctx, "acquire", token, args...)
	if err != nil {
		return wire.Acquired{}, err
	}
	if len(n) != 4 {
		panic(fmt.Sprint("not a reply of lock_acquire: ", n))
	}
	a := wire.Acquired{Held: n[0] == 1, Now: n[3], Sent: sent}
	switch {
	case !a.Held:
		a.Position, a.CheckIn, a.List = int(n[1]), ms(n[2]), "signals"
	case n[2] == -1:
		a.Fence, a.Lease = n[1], wire.Never
	default:
		a.Fence, a.Lease = n[1], ms(n[2])
	}
	return a, nil
}

func (s *server) Extend(ctx context.Context, _ wire.Keys, token string, lease time.Duration) (wire.Extended, error) {
	n, sent, err := s.ask(ctx, "extend", token, millis(lease))
	return wire.Extended{Held: err == nil && n[0] == 1, Sent: sent}, err
}

func (s *server) Release(ctx context.Context, _ wire.Keys, token string) (wire.Released, error) {
	n, _, err := s.ask(ctx, "release", token)
	if err != nil {
		return 0, err
	}
	return wire.Released(n[0]), nil
}

func (s *server) Pop(ctx context.Context, _ string, _ int) ([]wire.Signal, error) {
	select {
	case signals := <-s.signals:
		return signals, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.stopped:
		return nil, errStopped
	}
}

func (s *server) Forget(context.Context, []string) error { return nil }
