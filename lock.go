package redislock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// Locker takes locks through one rueidis client. It is safe for concurrent use; one per process
// is enough. All waiters of a Locker share one blocked connection, in a cluster one per contended
// lock.
type Locker struct {
	opts    Options
	server  wire.Server
	hub     *hub
	leavers *leavers
	ctx     context.Context // ends when Close waits no longer
	stop    context.CancelFunc

	// The order of the mutexes: hub.mu before leavers.mu before this one; Lock.mu before this one, and
	// never together with hub.mu. watch.mu and loader.mu stand alone. Nobody holds one during a call to
	// Redis or to the user's code.
	mu     sync.Mutex
	closed bool
	done   chan struct{} // closed when Close has finished
	held   map[*Lock]struct{}
	bg     sync.WaitGroup // Close waits for it: calls, held locks, background work
}

// New returns a Locker. It does not talk to Redis yet: the first call loads the function library.
// You still own client; close it after the Locker. The error says which option is wrong.
func New(client rueidis.Client, options Options) (*Locker, error) {
	if client == nil {
		return nil, errors.New("redislock: New: the client is nil")
	}
	opts, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Locker{opts: opts, done: make(chan struct{}), held: make(map[*Lock]struct{})}
	if provider, ok := client.(wire.Provider); ok {
		l.server = provider.Wire(opts.Prefix)
	} else {
		l.server = newFunctions(client, opts)
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.hub = newHub(l)
	l.leavers = &leavers{l: l, all: make(map[string]*leaver)}
	return l, nil
}

// Acquire takes the lock. If the lock is busy, Acquire waits, first come, first served. A lock is not
// reentrant: a holder that acquires it again waits for itself.
//
// The wait ends without the lock only if ctx or WithWait ends, the Locker is closed, or Redis answers
// with a lasting error. It survives network trouble and failovers, and keeps its place as far as the
// server still knows it.
//
// Errors:
//
//   - ErrNotAcquired or ErrUnavailable, together with ctx's own error: ctx or WithWait ended the wait.
//   - ErrClosed, ErrQueueFull, ErrNotReplicated, ErrLost: see there.
//   - *VersionError, or another error that Redis answered.
//
// After an error the caller does not hold the lock, and has no place in the queue. Acquire passes on
// a lock that was granted meanwhile. If Redis does not answer within a second, this cleaning up goes on
// in the background until it succeeds, or until place and lease have run out.
func (l *Locker) Acquire(ctx context.Context, name string, opts ...Option) (*Lock, error) {
	return l.obtain(ctx, name, l.opts.request("acquire", opts...), false)
}

// TryAcquire takes the lock if it can be had now and nobody waits for it. Otherwise it returns
// ErrNotAcquired at once. It tries three times to get an answer, then returns ErrUnavailable. Other
// errors are those of Acquire.
func (l *Locker) TryAcquire(ctx context.Context, name string, opts ...Option) (*Lock, error) {
	r := l.opts.request("try to acquire", opts...)
	r.limited, r.limit = true, 0
	return l.obtain(ctx, name, r, false)
}

// Do acquires the lock, calls fn and releases the lock, also if fn panics. The context of fn ends when
// ctx ends or the lock may be lost, see Lock.Context. Do renews the lock until fn returns.
//
// It returns nil only if fn returned nil and the lock was held until Do gave it back. Otherwise it
// returns Acquire's error, if fn was not called, or these errors joined:
//
//   - fn's error,
//   - the error of the release,
//   - ErrLost, if the lock was lost before the release, whatever the release said,
//   - ErrClosed, if Close ended the context of fn.
func (l *Locker) Do(ctx context.Context, name string, fn func(ctx context.Context, lock *Lock) error, opts ...Option) (err error) {
	lock, err := l.obtain(ctx, name, l.opts.request("do", opts...), true)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { lock.end(context.Cause(ctx)) })
	defer func() {
		stop()
		err = join(err, lock.finish(ctx))
	}()
	return fn(lock.Context(), lock)
}

// State is the result of Inspect.
type State struct {
	Name    string
	Holder  string        // the holder's token, "" if nobody holds the lock
	Fence   int64         // the last fencing token given out, 0 if none is known
	TTL     time.Duration // the rest of the lease; -1: never expires; 0: nobody holds the lock
	Held    int           // how many hold it: several with WithHolders or WithShared
	Holders []Holder      // the first 1,000 of them; the fields Holder and TTL are those of the longest lease
	Waiting int           // how many wait
	Waiters []Waiter      // the first 1,000 of them, in order
}

// Holder is one holder of a lock.
type Holder struct {
	Token string
	TTL   time.Duration // the rest of its own lease; -1: never expires
}

// Waiter is one place in the queue of a lock.
type Waiter struct {
	Token    string
	Waited   time.Duration // since it arrived
	LapsesIn time.Duration // it loses its place then, unless it calls before
	Lease    time.Duration // that it asked for; 0: never expires
	Signal   string        // the list where it is told of its grant
	Holders  int           // how many may share the lock, itself included; 0: any number
}

// Inspect shows a lock and its queue. It changes nothing. Errors: ErrUnavailable, ErrClosed,
// *VersionError, or another error that Redis answered.
func (l *Locker) Inspect(ctx context.Context, name string) (State, error) {
	r, err := l.check("inspect", name)
	if err != nil {
		return State{}, err
	}
	s, err := l.server.Inspect(ctx, r.keys)
	state := State{Name: name, Holder: s.Holder, Fence: s.Fence, TTL: s.TTL, Held: s.Held, Waiting: s.Waiting}
	for _, holder := range s.Holders {
		state.Holders = append(state.Holders, Holder(holder))
	}
	if s.Held == 1 && len(s.Holders) == 0 {
		state.Holders = []Holder{{s.Holder, s.TTL}}
	}
	for _, waiter := range s.Waiters {
		state.Waiters = append(state.Waiters, Waiter(waiter))
	}
	return state, r.wrap(err)
}

// Reset takes the lock away from all its holders and hands it to the next waiter. It reports whether
// somebody held it. A former holder notices at its next renewal; until then only the fencing token
// keeps its writes out. Errors are those of Inspect.
func (l *Locker) Reset(ctx context.Context, name string) (bool, error) {
	r, err := l.check("reset", name)
	if err != nil {
		return false, err
	}
	held, err := l.server.Reset(ctx, r.keys)
	return held, r.wrap(err)
}

// ResetAll resets every held lock with this Locker's prefix, and returns their number. After an error,
// the locks that it counted have been reset. It leaves alone a key without a fencing token beside it,
// as this library did not write it.
//
// It finds the locks with SCAN on every primary, and may miss
//
//   - a lock that somebody takes meanwhile,
//   - the locks of a cluster node that joined since client last looked for nodes. The client does so
//     every ClusterOption.ShardsRefreshInterval of rueidis.
func (l *Locker) ResetAll(ctx context.Context) (int, error) {
	if l.isClosed() {
		return 0, fmt.Errorf("redislock: reset all: %w", ErrClosed)
	}
	count := 0
	lockKeys, err := l.server.Locks(ctx, l.opts.Prefix+":")
	seen := make(map[string]bool)
	for _, key := range lockKeys {
		k, ours := keysFrom(l.opts.Prefix, key)
		if !ours || seen[key] || ctx.Err() != nil {
			continue
		}
		seen[key] = true
		held := false
		state, failed := l.server.Inspect(ctx, k)
		if failed == nil && state.Fence > 0 {
			held, failed = l.server.Reset(ctx, k)
		}
		if held {
			count++
		}
		err = join(err, wrap("reset", key, failed))
	}
	if err = join(err, ctx.Err()); err != nil {
		return count, fmt.Errorf("redislock: reset all, after %d locks: %w", count, err)
	}
	return count, nil
}

// Close ends the Locker. Waiters get ErrClosed. The Context of each held lock ends with ErrClosed, and
// its renewal ends. Close releases at once the locks that Acquire returned. Do releases its own lock
// when fn has returned, so nobody else gets that lock while fn runs.
//
// Close returns when all this is done, after 6 s at the latest. A lock that is still held then ends with
// its lease, or when its fn returns. A second Close waits for the first. The client stays open.
func (l *Locker) Close() {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	locks := make([]*Lock, 0, len(l.held))
	for lock := range l.held {
		locks = append(locks, lock)
	}
	if first {
		l.bg.Add(len(locks))
	}
	l.mu.Unlock()
	if !first {
		<-l.done
		return
	}
	defer close(l.done)
	for _, lock := range locks {
		lock.end(ErrClosed) // all holders know before the first lock is handed on
	}
	l.hub.refuse()
	for _, lock := range locks {
		go func() {
			defer l.bg.Done()
			lock.close()
		}()
	}
	through := make(chan struct{})
	go func() {
		defer close(through)
		l.bg.Wait()
	}()
	timeout := time.NewTimer(callTimeout + time.Second)
	defer timeout.Stop()
	select {
	case <-through:
	case <-timeout.C:
	}
	l.stop()
	l.hub.running.Wait()
	l.hub.forget()
}

func (l *Locker) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// background makes Close wait for bg.Done. False: the Locker is closed already.
func (l *Locker) background() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.bg.Add(1)
	return true
}

// hold makes Close wait for the end of this lock, see Lock.left. False: the Locker is closed already.
func (l *Locker) hold(lock *Lock) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.held[lock] = struct{}{}
	l.bg.Add(1)
	return true
}

func (l *Locker) forget(lock *Lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, lock)
}

// check prepares a call without options.
func (l *Locker) check(op, name string) (*request, error) {
	r := l.opts.request(op)
	err := r.complete(l.opts.Prefix, name)
	if err == nil && l.isClosed() {
		err = r.wrap(ErrClosed)
	}
	return r, err
}

// Lock is a lock that the caller has acquired. Its methods are safe for concurrent use.
type Lock struct {
	locker     *Locker
	keys       wire.Keys
	token      string
	fence      int64
	inDo       bool
	mayRequeue bool            // a failover could put it into the queue again
	ctx        context.Context // of the holder
	end        context.CancelCauseFunc
	calls      context.Context // the values of Acquire's ctx, for the calls that keep the lease
	watch      *watch          // nil: Options.Observe is not set
	holding
}

// Name returns the name of the lock.
func (l *Lock) Name() string { return l.keys.Name }

// Token returns the token by which Redis knows the holder. Another process that has the token can go
// on with the lock, see WithToken.
func (l *Lock) Token() string { return l.token }

// Fence returns the fencing token: a number that grows with each grant of this name. All who hold the
// lock together have the same one. Send it with every write to what the lock protects, and have the
// storage refuse a lower one than it has seen. Then a holder that was suspended, and lost the lock
// without noticing, does no harm.
func (l *Lock) Fence() int64 { return l.fence }

// Context returns a context that ends when the lock is released, or may be lost. After a loss,
// context.Cause is ErrLost, and its text says which limit ended the lock. The context carries the values
// of Acquire's ctx but does not end with it. Only in Do it also ends with Do's ctx.
//
// It ends ahead of Deadline, by a tenth of the lease and at most 500 ms: stop in that time. A timer of
// its own ends it, so a call, the network or a goroutine that hangs cannot hold it up. It ends before the
// server can give the lock to somebody else, even if this machine's clock is slower than the server's by
// less than this:
//
//	lease        5 s or less   10 s   1 min    2 min    16 min
//	slower by    10 %          5 %    0.8 %    0.4 %    0.05 %, the most by which NTP slews a clock
//
// It ends too late if the process or machine stands still, or if the server's clock is put forward.
// After a Reset or the loss of the key, it ends with the next renewal.
func (l *Lock) Context() context.Context { return l.ctx }

// Deadline returns until when the lock is surely held, by this machine's monotonic clock; false if the
// lock never expires. Renewal moves it. The lease on the server does not end sooner, unless the server's
// clock is put forward. A failover to a server whose clock is ahead has the same effect.
func (l *Lock) Deadline() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lease.term.deadline(), l.lease.term.length != wire.Never
}

// Release ends Context, then gives the lock back and hands it to the next waiter. It ignores ctx's
// cancellation and uses only its values. WithMinHold keeps the lock from others for longer.
//
// It returns
//
//   - nil if the lock was held until now, or until Close gave it back,
//   - ErrNotHeld if the lock had been lost or released before,
//   - ErrUnavailable after 5 s without an answer, or another error that Redis answered. Then the lock
//     ends with its lease, or with another Release.
func (l *Lock) Release(ctx context.Context) error {
	if l == nil {
		return fmt.Errorf("redislock: release: %w: the lock is nil", ErrNotHeld)
	}
	return l.giveBack(ctx, false)
}

// Detach ends Context and the renewal, and leaves the lock to its lease. Another process can go on with
// the lock until the time that Detach returns, see WithToken. Release still gives the lock back, if no
// other process has gone on with it.
func (l *Lock) Detach() time.Time {
	l.mu.Lock()
	deadline := l.lease.term.deadline()
	first := l.leave(releasing, nil)
	l.mu.Unlock()
	if first {
		l.mayRequeue = false // the next process may hold it for long
		l.left(EventReleased, nil, deadline)
	}
	return deadline
}

// Extend makes the lease end this long from now, and renewal goes on with this lease. It must be at
// least 1 ms and is rounded up to whole milliseconds. WithMaxHold cuts it short; it is never shorter
// than the rest of WithMinHold.
//
// Errors:
//
//   - ErrNotHeld: the lock was lost or released, and Context has ended.
//   - ErrUnavailable, or ctx's error: if Redis did not answer, it may have carried the call out, or may
//     still do so. From then on the shorter lease counts, for renewal and for each later Deadline.
//   - Another error that Redis answered: nothing has changed.
func (l *Lock) Extend(ctx context.Context, lease time.Duration) error {
	err := checkLease(lease)
	if err == nil {
		err = l.extend(ctx, lease)
	}
	if err != nil {
		return l.wrap("extend", err)
	}
	return nil
}
