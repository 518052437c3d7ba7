package redislocktest

import (
	"context"
	"errors"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// silence is how long a Redis client waits for an answer before it closes the connection.
const silence = 10 * time.Second

var (
	errKilled   = errors.New("redislocktest: the process was killed")
	errRefused  = errors.New("redislocktest: connection refused")
	errReset    = errors.New("redislocktest: connection reset, the reply is lost")
	errNoAnswer = errors.New("redislocktest: no answer for 10s")
)

// Down begins a silent outage: until Up, no call of a Locker gets an answer. A call fails when its ctx ends,
// or after 10 s, as with a Redis client. The server itself goes on: leases run out, and Others (Hold, Queue)
// notice nothing.
func (s *Server) Down() { s.outage(true, false) }

// Refuse begins an outage in which each call fails at once, as after a crash of Redis.
func (s *Server) Refuse() { s.outage(false, true) }

// Up ends an outage. The server carries out the calls that still wait for an answer.
func (s *Server) Up() { s.outage(false, false) }

func (s *Server) outage(silent, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent != nil {
		close(s.silent)
		s.silent = nil
	}
	if silent {
		s.silent = make(chan struct{})
	}
	s.refused = refused
}

// LoseReply makes the server carry out the next call, but its reply is lost with the connection.
func (s *Server) LoseReply() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose++
}

// Delay sets the round trip of each call from now on: one half to the server, one half back.
func (s *Server) Delay(roundTrip time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = roundTrip
}

// network is the connection between one client and the server.
type network struct{ *Client }

// Carry implements memory.Network.
func (n network) Carry(ctx context.Context, call string, serve func()) error {
	if err := n.travel(ctx); err != nil {
		return err
	}
	serve()
	if err := n.travel(ctx); err != nil {
		return err
	}
	s := n.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lose > 0 && call != "BLPOP" && !n.isAdmin {
		s.lose--
		return errReset
	}
	return nil
}

// travel takes a call to the server, or its reply back.
func (n network) travel(ctx context.Context) error {
	if n.isAdmin {
		return nil
	}
	s := n.server
	var giveUp <-chan time.Time
	for {
		s.mu.Lock()
		killed, silent, refused, delay := n.killed, s.silent, s.refused, s.delay
		s.mu.Unlock()
		var arrived <-chan time.Time
		switch {
		case killed:
			return &wire.Error{Err: errKilled, Answered: true}
		case refused:
			return errRefused
		case silent == nil && delay == 0:
			return ctx.Err()
		case silent == nil:
			arrived = time.After(delay / 2)
		case giveUp == nil:
			giveUp = time.After(silence)
		}
		select {
		case <-arrived:
			return nil
		case <-silent:
		case <-n.dead:
		case <-giveUp:
			return errNoAnswer
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
