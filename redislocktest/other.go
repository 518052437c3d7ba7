package redislocktest

import (
	"fmt"
	"time"

	"github.com/seed-ee05a192/redislock/internal/memory"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

const (
	otherLease = 10 * time.Second
	otherWait  = 30 * time.Second
	otherLook  = time.Second    // how often somebody else calls
	otherLimit = 24 * time.Hour // a test that waits longer waits for ever
)

// Other is another process, which no outage affects. It holds a lock or waits for it until Release or Kill.
// After a day the test fails, because in a bubble it would wait for ever. An Other is safe for concurrent
// use.
type Other struct {
	server *Server
	keys   wire.Keys
	token  string
	list   string
	timer  *time.Timer
	start  time.Time
	held   bool // it knows that it holds the lock
	gone   bool
}

// Hold makes an Other take a free lock, with a lease of 10 s, and renew it until its Release. If the lock is
// not free, the test ends.
func (s *Server) Hold(name string) *Other {
	s.t.Helper()
	if state := s.State(name); state.Holder != "" || state.Waiting > 0 {
		s.t.Fatalf("redislocktest: Hold %q: it is not free: %q holds it, %d wait", name, state.Holder, state.Waiting)
	}
	return s.other(name)
}

// Queue makes an Other wait for a lock that is not free. When its turn comes, it holds the lock as after
// Hold. If the lock is free, the test ends.
func (s *Server) Queue(name string) *Other {
	s.t.Helper()
	if state := s.State(name); state.Holder == "" && state.Waiting == 0 {
		s.t.Fatalf("redislocktest: Queue %q: nobody holds it", name)
	}
	return s.other(name)
}

func (s *Server) other(name string) *Other {
	s.t.Helper()
	keys := s.keys(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.others) + 1
	o := &Other{server: s, keys: keys, token: fmt.Sprint("somebody-", n), list: fmt.Sprint(s.prefix, "-signal:somebody-", n), start: time.Now()}
	s.others = append(s.others, o)
	o.look()
	return o
}

// Token returns its token, as Server.State shows it.
func (o *Other) Token() string { return o.token }

// Holds tells whether it holds the lock now.
func (o *Other) Holds() bool { return o.server.State(o.keys.Name).Holder == o.token }

// Release gives the lock to the next waiter, or leaves the queue. If it neither holds the lock nor waits for
// it, the test fails.
func (o *Other) Release() {
	o.server.t.Helper()
	o.server.mu.Lock()
	defer o.server.mu.Unlock()
	o.leave()
	var reply any
	o.server.shared.Do(func(m *memory.Server) { reply = o.call(m, "lock_release", o.token) })
	if reply == int64(0) {
		o.server.t.Errorf("redislocktest: Release %q: %s neither holds it nor waits for it", o.keys.Name, o.token)
	}
}

// Kill simulates its death: its lease runs out within 10 s, or its place in the queue within 30 s.
func (o *Other) Kill() {
	o.server.mu.Lock()
	defer o.server.mu.Unlock()
	o.leave()
}

// leave needs server.mu.
func (o *Other) leave() {
	o.gone = true
	o.timer.Stop()
}

// look renews the lease or keeps the place. It needs server.mu.
func (o *Other) look() {
	if o.gone {
		return
	}
	if time.Since(o.start) > otherLimit {
		o.leave()
		o.server.t.Errorf("redislocktest: %s has been at %q for a day: does the test wait for it?", o.token, o.keys.Name)
		return
	}
	lease, wait := fmt.Sprint(otherLease.Milliseconds()), fmt.Sprint(otherWait.Milliseconds())
	o.server.shared.Do(func(m *memory.Server) {
		for popped := true; popped; {
			_, popped = m.Pop(o.list).(string)
		}
		if o.held {
			o.gone = o.call(m, "lock_extend", o.token, lease) == int64(0) // Lose took it away
			return
		}
		reply, _ := o.call(m, "lock_acquire", o.token, lease, wait).([]any)
		o.held = reply != nil && reply[0] == int64(1)
	})
	switch {
	case o.gone:
	case o.timer == nil:
		o.timer = time.AfterFunc(otherLook, func() {
			o.server.mu.Lock()
			defer o.server.mu.Unlock()
			o.look()
		})
	default:
		o.timer.Reset(otherLook)
	}
}

func (o *Other) call(m *memory.Server, function string, args ...string) any {
	keys := []string{o.keys.Lock, o.keys.Queue, o.keys.State}
	if function == "lock_acquire" {
		keys = append(keys, o.list)
	}
	return m.Call(function, keys, args, func(string) bool { return true })
}
