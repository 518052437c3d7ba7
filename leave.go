package redislock

import (
	"context"
	"sync"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// leaveCalls is how many places are given up at the same time.
const leaveCalls = 64

// leavers give up places in queues, and grants that nobody wants any more: at once if Redis answers,
// else in the background for as long as a place or a lease can live.
type leavers struct {
	l *Locker

	mu      sync.Mutex         // held over no call; see Locker for the order
	all     map[string]*leaver // by token
	queue   []*leaver          // not yet called for
	workers int
}

// leaver is a wait that is over, and what it may have left behind.
type leaver struct {
	keys    wire.Keys
	token   string
	lease   time.Duration
	holders int
	ours    bool          // a lock held with the token is this wait's, and is given back
	lives   time.Duration // how long a place or a lease lasts after its last call
	until   time.Time     // there is nothing left to give up
	past    bool          // it is remembered
	done    chan struct{} // closed when it is given up
}

// prepare is for a wait that is over. Its caller has had Close wait for something, and this has it wait
// for the leaver, too.
func (s *leavers) prepare(w *waiter, ours bool) *leaver {
	v := &leaver{
		keys: w.keys, token: w.token, lease: w.firstLease(), holders: w.holders, ours: ours, past: !w.ownToken,
		lives: max(w.kept, min(w.firstLease(), time.Hour)), done: make(chan struct{}),
	}
	s.l.bg.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[v.token] = v
	return v
}

// again is for a wait that was over before. It does nothing for one that is being given up.
func (s *leavers) again(k wire.Keys, token string) {
	v := &leaver{keys: k, token: token, ours: true, until: time.Now().Add(callTimeout), done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[token] == nil && s.l.background() {
		s.all[token] = v
		s.enqueue(v)
	}
}

// add is for a leaver whose last call is over: its answer may have come late, and with it a new place.
func (s *leavers) add(v *leaver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.until = time.Now().Add(v.lives)
	s.enqueue(v)
}

// enqueue needs mu.
func (s *leavers) enqueue(v *leaver) {
	s.queue = append(s.queue, v)
	if s.workers < leaveCalls {
		s.workers++
		go s.work()
	}
}

// awaitEarlier is for a new wait with a token of the caller's own: an earlier wait with the same token
// must not give up the place of this one.
func (s *leavers) awaitEarlier(ctx context.Context, token string) {
	s.mu.Lock()
	v := s.all[token]
	s.mu.Unlock()
	if v == nil {
		return
	}
	select {
	case <-v.done:
	case <-ctx.Done():
	}
}

// take is the next one to be given up; nil: none.
func (s *leavers) take() *leaver {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		s.workers--
		return nil
	}
	v := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	return v
}

func (s *leavers) work() {
	var retry backoff
	for v := s.take(); v != nil; v = s.take() {
		if err := s.call(v); err == nil || !wire.Passes(err) || s.l.ctx.Err() != nil {
			s.finish(v)
			retry = backoff{}
			continue
		}
		s.mu.Lock()
		s.queue = append(s.queue, v)
		s.mu.Unlock()
		select {
		case <-time.After(retry.next()):
		case <-s.l.ctx.Done():
		}
	}
}

// call gives up one place.
func (s *leavers) call(v *leaver) error {
	if time.Now().After(v.until) {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.l.ctx, callTimeout)
	defer cancel()
	if !v.ours {
		// Somebody else may hold the lock with this token: this only leaves the queue.
		reply, err := s.l.server.Acquire(ctx, v.keys, v.token, v.lease, 0, v.holders)
		if err != nil || !reply.Held || reply.Fence/1000 != reply.Now {
			return err
		}
		v.ours = true // granted by this very call
	}
	_, err := s.l.server.Release(ctx, v.keys, v.token)
	return err
}

func (s *leavers) finish(v *leaver) {
	defer s.l.bg.Done()
	s.mu.Lock()
	if s.all[v.token] == v {
		delete(s.all, v.token)
	}
	s.mu.Unlock()
	if v.past {
		s.l.hub.remember(v.keys, v.token, time.Now())
	}
	close(v.done)
}

// await waits for a leaver, but not for long.
func (v *leaver) await(atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-v.done:
	case <-timer.C:
	}
}
