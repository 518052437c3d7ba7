// Package redislock is a distributed lock for Redis 7 and Valkey: first come, first served; handed
// over in one round trip and never free while somebody waits; with leases that renew themselves,
// a context that ends when the lock may be lost, and fencing tokens.
//
// All that decides who holds a lock is in a Redis Function library, lua/lock.lua, which this
// package loads. The Go side calls, waits and keeps time.
package redislock

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// callTimeout bounds what must be tried even though the caller's ctx has ended: to release a lock,
// to leave a queue.
const callTimeout = 5 * time.Second

// Locker takes locks through one rueidis client. It is safe for concurrent use; one per process
// is enough. All waiters of a Locker share one blocked connection, in a cluster one per lock that
// is waited for.
type Locker struct {
	client rueidis.Client
	opts   Options
	fn     functions
	hub    *hub

	mu     sync.Mutex
	closed bool
	held   map[*Lock]struct{}
	bg     sync.WaitGroup // what Close waits for: held locks, and work that goes on after a call
}

// New returns a Locker. It does not talk to Redis yet: the function library is loaded at first use.
// The client stays the caller's, to be closed after the Locker.
func New(client rueidis.Client, options Options) (*Locker, error) {
	if client == nil {
		return nil, errors.New("redislock: New: the client is nil")
	}
	opts, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Locker{
		client: client,
		opts:   opts,
		fn:     functions{client: client, loader: newLoader(client, opts.LoadMode, opts.Logger)},
		hub:    newHub(client, opts.Prefix),
		held:   make(map[*Lock]struct{}),
	}
	l.hub.pass = l.pass
	return l, nil
}

// Acquire takes the lock, and waits for it if need be, first come first served. It gives up only
// when ctx ends, the Locker is closed, or Redis answers with an error that will not pass; trouble
// with the network or a failover only makes it wait longer, and it keeps its place as far as the
// server still knows it.
//
// Errors: ErrNotAcquired together with ctx's own, ErrClosed, ErrNotReplicated, ErrLost,
// *VersionError, or Redis's. After an error the lock is not held, and nothing waits for it: the
// queue has been left, and a lock that was granted meanwhile has been passed on. If Redis does not
// answer, this goes on for up to 5 s in the background; then the place in the queue lapses, and
// the lease runs out.
func (l *Locker) Acquire(ctx context.Context, name string, opts ...Option) (*Lock, error) {
	return l.obtain(ctx, name, opts, false)
}

// TryAcquire takes the lock if nobody holds it and nobody waits for it, otherwise it returns
// ErrNotAcquired at once. Other errors are those of Acquire. Trouble with the network is retried
// twice.
func (l *Locker) TryAcquire(ctx context.Context, name string, opts ...Option) (*Lock, error) {
	return l.obtain(ctx, name, opts, true)
}

// Do acquires the lock, calls fn and releases the lock, also if fn panics. The context that fn gets
// ends when ctx does or the lock may be lost, see Lock.Context; the lock is renewed until fn returns.
//
// The error is Acquire's, or fn's joined with that of the release. ErrLost says that the lock may have
// been lost before fn returned: Context had ended with it, or the release found out (then the error is
// ErrNotHeld, too). ErrClosed says that Close ended it.
func (l *Locker) Do(ctx context.Context, name string, fn func(ctx context.Context, lock *Lock) error, opts ...Option) (err error) {
	lock, err := l.Acquire(ctx, name, opts...)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { lock.end(context.Cause(ctx)) })
	defer func() {
		stop()
		err = errors.Join(err, lock.finish(ctx))
	}()
	return fn(lock.Context(), lock)
}

// State is what Inspect sees.
type State struct {
	Name    string
	Holder  string        // the holder's token, "" if nobody holds the lock
	Fence   int64         // the last fencing token given out, 0 if none is known
	TTL     time.Duration // what is left of the lease; -1: never expires; 0: nobody holds the lock
	Waiting int           // how many wait
	Waiters []Waiter      // the first 1,000 of them, in order
}

// Waiter is one place in the queue of a lock.
type Waiter struct {
	Token    string
	Waited   time.Duration // since it arrived
	LapsesIn time.Duration // its place is lost unless it calls before
	Lease    time.Duration // that it asked for, 0: never expires
	Signal   string        // the list where it is told
}

// Inspect shows a lock and its queue. It changes nothing.
func (l *Locker) Inspect(ctx context.Context, name string) (State, error) {
	r, err := l.request("inspect", name)
	if err != nil {
		return State{}, err
	}
	state, err := l.fn.inspect(ctx, r.keys)
	return state, wrap("inspect", r, err)
}

// Reset takes the lock away from whoever holds it and hands it to the next waiter. It reports
// whether somebody held it. The former holder learns it at its next renewal; until then only the
// fencing token keeps its writes out.
func (l *Locker) Reset(ctx context.Context, name string) (bool, error) {
	r, err := l.request("reset", name)
	if err != nil {
		return false, err
	}
	held, err := l.fn.reset(ctx, r.keys)
	return held, wrap("reset", r, err)
}

// ResetAll resets every lock with this Locker's prefix that somebody holds, and returns how many
// these were. It looks for them with SCAN on every primary, so a lock that is taken meanwhile may
// be missed; so may those of a cluster node that has joined since client last looked, which
// ClusterOption.ShardsRefreshInterval of rueidis makes it do. After an error, those that it counted
// have been reset.
func (l *Locker) ResetAll(ctx context.Context) (int, error) {
	if l.isClosed() {
		return 0, fmt.Errorf("redislock: reset all: %w", ErrClosed)
	}
	count := 0
	seen := make(map[string]bool)
	for addr, node := range l.client.Nodes() {
		if isReplica(ctx, node) {
			continue
		}
		err := scan(ctx, node, globEscape(l.opts.Prefix)+":*", func(key string) error {
			k, ours := keysFrom(l.opts.Prefix, key)
			if !ours || seen[key] {
				return nil
			}
			seen[key] = true
			held, err := l.fn.reset(ctx, k)
			if held {
				count++
			}
			return err
		})
		if err != nil {
			return count, fmt.Errorf("redislock: reset all on %s, after %d locks: %w", addr, count, err)
		}
	}
	return count, nil
}

func isReplica(ctx context.Context, node rueidis.Client) bool {
	role, err := node.Do(ctx, node.B().Arbitrary("ROLE").Build()).ToArray()
	if err != nil || len(role) == 0 {
		return false
	}
	name, _ := role[0].ToString()
	return name == "slave"
}

// scan calls do for every string key of a node that matches the pattern, for some more than once.
func scan(ctx context.Context, node rueidis.Client, pattern string, do func(key string) error) error {
	var cursor uint64
	for {
		page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).
			Match(pattern).Count(1000).Type("string").Build()).AsScanEntry()
		if err != nil {
			return err
		}
		for _, key := range page.Elements {
			if err := do(key); err != nil {
				return err
			}
		}
		if cursor = page.Cursor; cursor == 0 {
			return nil
		}
	}
}

// Close ends the Locker: those who wait get ErrClosed, held locks are no longer renewed and are
// released, the blocked connection is closed. It returns when all that is done, after 6 s at the
// latest if Redis does not answer. (Who waits with a ctx that cannot end may be told only when the
// client has given up a call under way.) The client stays open.
func (l *Locker) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	locks := make([]*Lock, 0, len(l.held))
	for lock := range l.held {
		locks = append(locks, lock)
	}
	l.bg.Add(len(locks))
	l.mu.Unlock()

	for _, lock := range locks {
		lock.end(ErrClosed) // nothing renews it any more
	}
	l.hub.refuse()
	for _, lock := range locks {
		go func() {
			defer l.bg.Done()
			_ = lock.Release(context.Background()) // what can't be released runs out
		}()
	}
	done := make(chan struct{})
	go func() {
		l.bg.Wait()
		l.hub.close()
		close(done)
	}()
	timeout := time.NewTimer(callTimeout + time.Second)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
		l.hub.stop()
	}
}

func (l *Locker) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// background counts what Close has to wait for. False: the Locker is closed already.
func (l *Locker) background() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.bg.Add(1)
	return true
}

// request is for a call without options.
func (l *Locker) request(op, name string) (*request, error) {
	r := l.opts.request()
	return r, l.complete(r, op, name)
}

// complete checks the arguments of a call, before anything is sent, and makes a token if there is none.
func (l *Locker) complete(r *request, op, name string) (err error) {
	if r.keys, err = keysOf(l.opts.Prefix, name); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return wrap(op, r, err)
	}
	if l.isClosed() {
		return wrap(op, r, ErrClosed)
	}
	r.ownToken = r.token != ""
	if !r.ownToken {
		r.token = randomID(128)
		if r.owner != "" {
			r.token = r.owner + ":" + r.token
		}
	}
	return nil
}

func wrap(op string, r *request, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redislock: %s %q: %w", op, r.keys.name, err)
}

// randomID returns so many random bits as text: nobody guesses 128, and no two of 64 are the same.
func randomID(bits int) string {
	id := make([]byte, bits/8)
	_, _ = rand.Read(id) // never fails, says crypto/rand
	return base64.RawURLEncoding.EncodeToString(id)
}

// globEscape has SCAN take a prefix literally.
func globEscape(prefix string) string {
	escaped := make([]byte, 0, len(prefix))
	for i := range len(prefix) {
		switch prefix[i] {
		case '*', '?', '[', ']', '\\', '^', '-':
			escaped = append(escaped, '\\')
		}
		escaped = append(escaped, prefix[i])
	}
	return string(escaped)
}
