package virtualtest

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

var silentLogger = slog.New(slog.DiscardHandler)

var (
	errKilled   = errors.New("the process was killed")
	errRefused  = errors.New("connection refused")
	errReset    = errors.New("connection reset")
	errNoAnswer = errors.New("no answer")
	errFatal    = errors.New("WRONGTYPE or the like: an error that does not pass")
)

// silence is how long a Redis client waits for an answer.
const silence = 10 * time.Second

// server is the wire.Server of a process. The judges are told of each call, and of its answer.
type server struct {
	wire.Server
	p *process
}

// call is one call to the server, as its witness sees it.
type call struct {
	p           *process
	function    string
	keys        wire.Keys
	token       string
	lease, wait time.Duration
	holders     int
	told        *told // of this wait or hold; nil: it is over
	sent        time.Time
	served      int64 // the step; 0: not yet
	givenUp     bool
}

type callKey struct{}

// begin has the witness know a call. It returns the ctx that carries it.
func (s *server) begin(ctx context.Context, c *call) context.Context {
	w := s.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	c.p, c.sent = s.p, time.Now()
	if t, _ := ctx.Value(toldKey{}).(*told); t != nil {
		c.told = t
		if c.function == "lock_extend" && !t.given.IsZero() && t.given.Before(c.sent) {
			w.fail(verdicts, "%s is extended after its Release", c.token)
		}
		if t.wait == nil {
			t.wait = w.waitOf(c)
			t.wait.users++
			t.wait.told, t.wait.own = t, t.own
		}
	}
	return context.WithValue(ctx, callKey{}, c)
}

func (s *server) Acquire(ctx context.Context, k wire.Keys, token string, lease, wait time.Duration, holders int) (wire.Acquired, error) {
	c := &call{function: "lock_acquire", keys: k, token: token, lease: lease, wait: wait, holders: holders}
	reply, err := s.Server.Acquire(s.begin(ctx, c), k, token, lease, wait, holders)
	s.p.w.answered(c, err, reply.Held, "%v %d", reply.Held, reply.Fence)
	return reply, err
}

func (s *server) Release(ctx context.Context, k wire.Keys, token string) (wire.Released, error) {
	c := &call{function: "lock_release", keys: k, token: token}
	reply, err := s.Server.Release(s.begin(ctx, c), k, token)
	s.p.w.answered(c, err, false, "%d", reply)
	return reply, err
}

func (s *server) Extend(ctx context.Context, k wire.Keys, token string, lease time.Duration) (wire.Extended, error) {
	c := &call{function: "lock_extend", keys: k, token: token, lease: lease}
	reply, err := s.Server.Extend(s.begin(ctx, c), k, token, lease)
	s.p.w.answered(c, err, reply.Held, "%v", reply.Held)
	return reply, err
}

func (s *server) ExtendAndWait(ctx context.Context, k wire.Keys, token string, lease time.Duration, n int,
	timeout time.Duration, extended func(wire.Extended),
) (int, error) {
	c := &call{function: "lock_extend", keys: k, token: token, lease: lease}
	return s.Server.ExtendAndWait(s.begin(ctx, c), k, token, lease, n, timeout, func(reply wire.Extended) {
		s.p.w.answered(c, nil, reply.Held, "%v", reply.Held)
		extended(reply)
	})
}

func (s *server) Reset(ctx context.Context, k wire.Keys) (bool, error) {
	c := &call{function: "lock_reset", keys: k}
	return s.Server.Reset(s.begin(ctx, c), k)
}

// network is the link of a process, as memory.Network.
type network struct{ p *process }

// fate is what becomes of one call.
type fate struct {
	there, back    time.Duration
	request, reply bool // lost
	late           bool // a request that was given up or lost arrives all the same
	after          time.Duration
	refused        error
}

func (n network) fate(command string) (f fate) {
	w, p := n.p.w, n.p
	w.mu.Lock()
	defer w.mu.Unlock()
	way := func(most time.Duration) time.Duration { return time.Duration(w.rnd.Int64N(int64(most) + 1)) }
	f.there, f.back = way(w.storm.delay), way(w.storm.delay)
	if !w.calm.IsZero() {
		return f
	}
	if w.rnd.Float64() < w.storm.lose {
		f.request = w.rnd.IntN(2) == 0
		f.reply = !f.request
	}
	f.late = w.rnd.Float64() < w.storm.late
	f.after = way([]time.Duration{time.Millisecond, 100 * time.Millisecond, 2 * time.Second, latest}[w.rnd.IntN(4)])
	if w.rnd.IntN(20) == 0 {
		f.there += way(2 * time.Second)
	}
	if w.rnd.IntN(20) == 0 {
		f.back += way(2 * time.Second)
	}
	if command != "BLPOP" && command != "DEL" && w.storm.missing != nil {
		f.refused = &wire.Error{Err: w.storm.missing, Passes: true, Answered: true}
	} else if p.fatal > 0 {
		p.fatal--
		f.refused = &wire.Error{Err: errFatal, Answered: true}
	}
	return f
}

// Carry implements memory.Network.
func (n network) Carry(ctx context.Context, command string, serve func()) error {
	w := n.p.w
	w.steps.Add(1)
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil || command == "WAIT" {
		c = &call{p: n.p, function: command}
	}
	f := n.fate(command)
	arrive := func() {
		w.steps.Add(1)
		w.serve(c, serve)
	}
	giveUp := func(err error) error {
		w.lost(c, "request", err)
		if f.late && n.p.ctx.Err() == nil {
			time.AfterFunc(f.after, arrive)
		}
		return err
	}
	if err := n.travel(ctx, f.there); err != nil {
		return giveUp(err)
	}
	switch {
	case f.refused != nil:
		w.refuse(c, f.refused)
		return f.refused
	case f.request:
		return giveUp(errReset)
	}
	arrive()
	err := n.travel(ctx, f.back)
	if err == nil && f.reply {
		err = errReset
	}
	if err != nil {
		w.lost(c, "reply", err)
		return err
	}
	w.steps.Add(1)
	return nil
}

// travel is one way of a call over the link.
func (n network) travel(ctx context.Context, delay time.Duration) error {
	w, p := n.p.w, n.p
	var giveUp <-chan time.Time
	for {
		w.mu.Lock()
		silent, refused := p.silent, p.refused
		w.mu.Unlock()
		var arrived <-chan time.Time
		switch {
		case p.ctx.Err() != nil:
			return &wire.Error{Err: errKilled, Answered: true}
		case refused:
			return errRefused
		case silent == nil && delay == 0:
			return ctx.Err()
		case silent == nil:
			arrived = time.After(delay)
		case giveUp == nil:
			giveUp = time.After(silence)
		}
		select {
		case <-arrived:
			return nil
		case <-silent:
		case <-p.ctx.Done():
		case <-giveUp:
			return errNoAnswer
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
