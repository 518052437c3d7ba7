package redislock

import (
	"context"
	"sync"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// leaveCalls limits the concurrent calls of leavers.
const leaveCalls = 64

// leavers give up places in queues, and grants that nobody wants: at once if Redis answers, otherwise in
// the background for as long as a place or a lease can live.
type leavers struct {
	l *Locker

	mu      sync.Mutex         // not held during a call; see Locker for the order
	all     map[string]*leaver // by token
	queue   []*leaver          // waiting for a worker
	workers int
}

// leaver undoes a wait that is over: it may still have a place or the lock.
type leaver struct {
	keys    wire.Keys
	token   string
	lease   time.Duration
	holders int
	ours    bool          // a lock held with the token belongs to this wait: give it back
	lives   time.Duration // how long a place or a lease lasts after its last call
	until   time.Time     // after this, nothing is left to give up
	past    bool          // hub remembers the wait
	done    chan struct{} // closed when everything is given up
}

// prepare returns the leaver of a wait that is over. Close already waits for the caller, and from now on
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

// again gives up a wait that ended before, unless its leaver is still at work.
func (s *leavers) again(k wire.Keys, token string) {
	v := &leaver{keys: k, token: token, ours: true, until: time.Now().Add(callTimeout), done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[token] == nil && s.l.background() {
		s.all[token] = v
		s.enqueue(v)
	}
}

// add queues a leaver when the wait's last call is over: a late call may have made a new place.
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

// awaitEarlier waits for the leaver of an earlier wait with the same token (WithToken). Otherwise it could
// give up the place of the new wait.
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

// take returns the next leaver in the queue, or nil.
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
		// Another process may hold the lock with this token. A try only leaves the queue.
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

// await waits for a leaver, for a limited time.
func (v *leaver) await(atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-v.done:
	case <-timer.C:
	}
}
