package redislocktest

import (
	"context"
	"errors"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// silence is how long a Redis client waits for an answer, until it gives the connection up.
const silence = 10 * time.Second

var (
	errKilled   = errors.New("redislocktest: the process was killed")
	errRefused  = errors.New("redislocktest: connection refused")
	errReset    = errors.New("redislocktest: connection reset, the reply is lost")
	errNoAnswer = errors.New("redislocktest: no answer for 10s")
)

// Down begins an outage without a word: no call of a Locker reaches the server, and none is answered,
// until Up or the end of the call's ctx. As with a Redis client, a call fails after 10 s. The server itself goes
// on: leases run out, and somebody else (Hold, Queue) is not concerned.
func (s *Server) Down() { s.outage(true, false) }

// Refuse begins an outage in which each call fails at once, as after a crash of Redis.
func (s *Server) Refuse() { s.outage(false, true) }

// Up ends an outage. Calls that still wait for an answer are carried out.
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

// LoseReply has the next call carried out, but its reply is lost with the connection.
func (s *Server) LoseReply() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose++
}

// Delay has each call take this long from now on: half of it on the way to the server, half on the way back.
func (s *Server) Delay(roundTrip time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = roundTrip
}

// network is what lies between one client and the server.
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
