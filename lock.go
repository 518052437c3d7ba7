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
// is enough. All waiters of a Locker share one blocked connection, in a cluster one per lock that
// is waited for.
type Locker struct {
	opts    Options
	server  wire.Server
	hub     *hub
	leavers *leavers
	ctx     context.Context // ends when Close waits no longer
	stop    context.CancelFunc

	// Mutexes are taken in this order: hub.mu before leavers.mu before this one; Lock.mu before this one,
	// and never together with hub.mu. watch.mu and loader.mu stand alone. None is held over a call to
	// Redis or to the user's code.
	mu     sync.Mutex
	closed bool
	done   chan struct{} // closed when Close is through
	held   map[*Lock]struct{}
	bg     sync.WaitGroup // what Close waits for: calls, held locks, and work that goes on after a call
}

// New returns a Locker. It does not talk to Redis yet: the function library is loaded at first use.
// You still own client; close it after the Locker.
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

// Acquire takes the lock, and waits for it if need be, first come first served. It gives up only
// when ctx or WithWait ends, the Locker is closed, or Redis answers with an error that will not pass;
// trouble with the network or a failover only makes it wait longer, and it keeps its place as far as the
// server still knows it. A lock is not reentrant: a holder that acquires it again waits for itself.
//
// Errors: ErrNotAcquired or ErrUnavailable together with ctx's own, ErrClosed, ErrNotReplicated, ErrLost,
// *VersionError, or Redis's. After an error the lock is not held, and nothing waits for it: the
// queue has been left, and a lock that was granted meanwhile has been passed on. If Redis does not
// answer within a second, that goes on in the background until it is done, or the place and the lease have
// run out.
func (l *Locker) Acquire(ctx context.Context, name string, opts ...Option) (*Lock, error) {
	return l.obtain(ctx, name, l.opts.request("acquire", opts...), false)
}

// TryAcquire takes the lock if it can be had now and nobody waits for it, otherwise it returns
// ErrNotAcquired at once. Other errors are those of Acquire. A call that gets no answer is made three
// times, then the error is ErrUnavailable.
func (l *Locker) TryAcquire(ctx context.Context, name string, opts ...Option) (*Lock, error) {
	r := l.opts.request("try to acquire", opts...)
	r.limited, r.limit = true, 0
	return l.obtain(ctx, name, r, false)
}

// Do acquires the lock, calls fn and releases the lock, also if fn panics. The context that fn gets
// ends when ctx does or the lock may be lost, see Lock.Context; the lock is renewed until fn returns.
//
// It returns nil only if fn returned nil and the lock was held until Do gave it back. Otherwise the error
// is Acquire's; or fn's, joined with that of the release, with ErrLost if the context had ended with it,
// whatever the release said, and with ErrClosed if Close ended it.
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

// State is what Inspect sees.
type State struct {
	Name    string
	Holder  string        // the holder's token, "" if nobody holds the lock
	Fence   int64         // the last fencing token given out, 0 if none is known
	TTL     time.Duration // what is left of the lease; -1: never expires; 0: nobody holds the lock
	Held    int           // how many hold it: several with WithHolders or WithShared
	Holders []Holder      // the first 1,000 of them. Holder is the one with the longest lease, TTL what is left of it
	Waiting int           // how many wait
	Waiters []Waiter      // the first 1,000 of them, in order
}

// Holder is one of those who hold a lock.
type Holder struct {
	Token string
	TTL   time.Duration // what is left of its own lease; -1: never expires
}

// Waiter is one place in the queue of a lock.
type Waiter struct {
	Token    string
	Waited   time.Duration // since it arrived
	LapsesIn time.Duration // its place is lost unless it calls before
	Lease    time.Duration // that it asked for, 0: never expires
	Signal   string        // the list where it is told
	Holders  int           // how many may hold the lock together with it, itself included; 0: any number
}

// Inspect shows a lock and its queue. It changes nothing.
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

// Reset takes the lock away from whoever holds it and hands it to the next waiter. It reports
// whether somebody held it. The former holder learns it at its next renewal; until then only the
// fencing token keeps its writes out.
func (l *Locker) Reset(ctx context.Context, name string) (bool, error) {
	r, err := l.check("reset", name)
	if err != nil {
		return false, err
	}
	held, err := l.server.Reset(ctx, r.keys)
	return held, r.wrap(err)
}

// ResetAll resets every lock with this Locker's prefix that somebody holds, and returns how many
// these were. It looks for them with SCAN on every primary, so a lock that is taken meanwhile may
// be missed; so may those of a cluster node that has joined since client last looked, which
// ClusterOption.ShardsRefreshInterval of rueidis makes it do. It leaves alone what the library did not
// write: a key without a fencing token beside it. After an error, those that it counted have been reset.
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

// Close ends the Locker. Waiters get ErrClosed. The Context of each held lock ends with ErrClosed, and the
// lock is no longer renewed. What Acquire gave is released at once. What Do took is released when its fn
// has returned, so it is never handed on under a running fn.
//
// Close returns when all that is done, after 6 s at the latest: what is not released by then is left to
// its lease, or released when its fn returns. A second Close waits for the first. The client stays open.
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
		lock.end(ErrClosed) // all are told before the first is handed on
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

// background has Close wait for something, until bg.Done. False: the Locker is closed already.
func (l *Locker) background() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.bg.Add(1)
	return true
}

// hold has Close wait for the end of this lock, see Lock.left. False: the Locker is closed already.
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

// check is for a call without options.
func (l *Locker) check(op, name string) (*request, error) {
	r := l.opts.request(op)
	err := r.complete(l.opts.Prefix, name)
	if err == nil && l.isClosed() {
		err = r.wrap(ErrClosed)
	}
	return r, err
}

// Lock is the proof that a lock was taken. Its methods are safe for concurrent use.
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
	watch      *watch          // nil: nobody observes
	holding
}

// Name returns the name of the lock.
func (l *Lock) Name() string { return l.keys.Name }

// Token returns what Redis knows the holder by. Whoever has it can go on with the lock, see
// WithToken.
func (l *Lock) Token() string { return l.token }

// Fence returns the fencing token: a number that is greater for each grant of this name, and the same for all
// who hold the lock together. Send it with every write to what the lock protects, and have older ones refused
// there: then a holder that lost the lock without noticing (it was stopped, say) can do no harm.
func (l *Lock) Fence() int64 { return l.fence }

// Context returns a context that ends when the lock is released, or may be lost: then its
// context.Cause is ErrLost, and its text says which limit it was. It carries the values of Acquire's ctx but does not end with it, unless
// in Do.
//
// It ends ahead of Deadline, by a tenth of the lease and 500 ms at most: stop in that time. A timer of
// its own ends it, so nothing that hangs (a call, the network, another goroutine, Options.Observe) can
// hold it up. So it ends before the server can give the lock to somebody else, even if this
// machine's clock runs slower than the server's, by less than this:
//
//	lease        5 s or less   10 s   1 min    2 min    16 min
//	slower by    10 %          5 %    0.8 %    0.4 %    0.05 %, the most by which NTP slews a clock
//
// Two things make it too late: a process or a machine that stands still, and a server's clock that is
// put forward. After a Reset or the loss of the key, it ends with the next renewal.
func (l *Lock) Context() context.Context { return l.ctx }

// Deadline returns until when the lock is surely held, by this machine's monotonic clock; false if
// it never expires. Renewal moves it. It is never later than the end of the lease on the server, unless
// that one's clock is put forward meanwhile (a failover to a server whose clock is ahead does that, too).
func (l *Lock) Deadline() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lease.term.deadline(), l.lease.term.length != wire.Never
}

// Release gives the lock back and hands it to the next waiter. Context ends before. Only ctx's
// values count, not its end: if Redis does not answer, Release tries for up to 5 s and then returns
// that error; the lease runs out by itself, and Release can be called again.
//
// It returns nil if the lock was held until now (or until Close gave it back), and ErrNotHeld if it had
// been lost or released: the sure sign of a loss, since Context ends with this call if it had not noticed
// before. WithMinHold keeps the lock from others for longer.
func (l *Lock) Release(ctx context.Context) error {
	if l == nil {
		return fmt.Errorf("redislock: release: %w: the lock is nil", ErrNotHeld)
	}
	return l.giveBack(ctx, false)
}

// Detach ends Context and the renewal, and leaves the lock to its lease: for another process that goes on
// with it, see WithToken. It returns until when that is possible. After it, Release still gives the lock
// back, if nobody has gone on with it.
func (l *Lock) Detach() time.Time {
	l.mu.Lock()
	deadline := l.lease.term.deadline()
	first := l.leave(releasing, nil)
	l.mu.Unlock()
	if first {
		l.mayRequeue = false // who goes on with it may hold it for long
		l.left(EventReleased, nil, deadline)
	}
	return deadline
}

// Extend has the lease end this long from now; renewal goes on with it. At least 1 ms, rounded up
// to whole milliseconds, cut short by WithMaxHold, and no shorter than what is left of WithMinHold. It returns ErrNotHeld if the lock is lost or
// released; Context ends then.
//
// An error of Redis means that nothing has changed. After any other error (ErrUnavailable) the call may
// have been carried out, or may still arrive: then the shorter lease counts, for renewal, for Deadline, and
// for each later Deadline of this lock, whatever longer lease is asked for.
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
