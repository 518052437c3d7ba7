package redislock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Options are the settings of a Locker, and the defaults of the options of each call. The zero
// value is a good choice.
type Options struct {
	// Prefix begins the keys: Prefix:{NAME}, Prefix-queue:{NAME} and so on. No braces. Default "lock".
	Prefix string
	// Lease is how long a lock outlives its holder's last sign of life. Renewal keeps it going every
	// third of this, so it only ends by itself if the holder dies or is cut off. At least 1 ms;
	// rounded up to whole milliseconds. Default 10 s.
	Lease time.Duration
	// WithoutExpiry: a lock is held until it is released or reset, even if its holder has died. See the
	// option of that name.
	WithoutExpiry bool
	// WithoutRenewal: the lease ends once, Lease after the grant.
	WithoutRenewal bool
	// MaxHold ends renewal this long after the grant, and with it the lock; Lock.Context ends ahead of
	// that. Default 0: no limit.
	MaxHold time.Duration
	// Owner is a readable label that tokens begin with, for whoever looks at the queue. Default none.
	Owner string
	// Replicas is how many replicas must have confirmed a grant before Acquire returns, and
	// ReplicaTimeout how long to wait for them. Default 0: none.
	Replicas       int
	ReplicaTimeout time.Duration
	// WaitTTL is how long the place of a waiter is kept after its last sign of life. It checks in
	// every third of this at the latest. At least 100 ms. Default 30 s. Where more than some hundred
	// of a Locker wait for one lock, it is longer, so that they do not keep Redis busy.
	WaitTTL time.Duration
	// LoadMode says what to do if Redis lacks the function library. Default LoadIfNeeded.
	LoadMode LoadMode
	// Logger gets one warning, at first use, if Redis may evict locks when its memory is full (any
	// maxmemory-policy but noeviction), and nothing else. A user who may not call INFO is not told,
	// nor is one with LoadNever. Default slog.Default().
	Logger *slog.Logger
	// Observe is told what only the lock knows: how long a call waited, that the lock was handed over,
	// how long it was held, that it was lost. See Event, and LogEvents for one that writes to a log.
	// Default nil: nothing is measured.
	//
	// Its ctx has the values of Acquire's ctx (a trace, say) and does not end. It is called by the
	// goroutine that acquires, extends or releases, before that call returns; when a lease cannot be
	// kept, by a goroutine of its own that Close waits for; by those of Close, before that returns.
	// Context has ended before an end is told. The events of one lock come in order, one after the other; those of several at the
	// same time. It must not block, since the others wait for it, and not call the Locker or its
	// locks, which can deadlock. A panic goes up to the caller, and Acquire's has no lock then; in
	// the goroutines of renewal and Close it ends the process.
	Observe func(ctx context.Context, e Event)
}

const (
	defaultPrefix  = "lock"
	defaultLease   = 10 * time.Second
	defaultWaitTTL = 30 * time.Second
	minWaitTTL     = 100 * time.Millisecond
)

func (o Options) withDefaults() (Options, error) {
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if o.Lease == 0 {
		o.Lease = defaultLease
	}
	if o.WaitTTL == 0 {
		o.WaitTTL = defaultWaitTTL
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	switch {
	case strings.ContainsAny(o.Prefix, "{}"):
		return o, fmt.Errorf("redislock: Options.Prefix %q must not contain braces, "+
			"they are for the hash tag of the name", o.Prefix)
	case o.WaitTTL < minWaitTTL:
		return o, fmt.Errorf("redislock: Options.WaitTTL %v is under the minimum of %v", o.WaitTTL, minWaitTTL)
	case o.LoadMode < LoadIfNeeded || o.LoadMode > LoadNever:
		return o, fmt.Errorf("redislock: Options.LoadMode %d is none of the modes", o.LoadMode)
	}
	if err := o.request().check(); err != nil {
		return o, fmt.Errorf("redislock: Options: %w", err)
	}
	return o, nil
}

func (o Options) request() *request {
	r := &request{
		lease:     o.Lease,
		renew:     !o.WithoutRenewal,
		maxHold:   o.MaxHold,
		owner:     o.Owner,
		replicas:  o.Replicas,
		ackWithin: o.ReplicaTimeout,
	}
	if o.WithoutExpiry {
		r.lease = 0
	}
	return r
}

// Option changes one call of Acquire, TryAcquire or Do.
type Option func(*request)

// WithLease sets the lease of this lock, see Options.Lease. At least 1 ms; rounded up to whole
// milliseconds.
func WithLease(d time.Duration) Option {
	return func(r *request) {
		r.lease = d
		if d == 0 {
			r.bad = errors.New("a lease of 0: it must be at least 1ms; " +
				"for a lock that never expires use WithoutExpiry")
		}
	}
}

// WithoutExpiry gives a lock that is held until it is released or reset: if its holder dies, somebody
// has to Reset it. Likewise after a failover that loses the release, or if a call gets through only
// after its waiter gave up (its connection broke while the server stood still).
func WithoutExpiry() Option { return func(r *request) { r.lease = 0 } }

// WithoutRenewal gives a lock that ends by itself one lease after the grant, unless Extend is called.
func WithoutRenewal() Option { return func(r *request) { r.renew = false } }

// WithOwner puts a readable label before the random part of the token. It is for whoever looks at
// the queue, and means nothing to the lock.
func WithOwner(label string) Option { return func(r *request) { r.owner = label } }

// WithToken uses the caller's own token, any bytes but none. Whoever has it is this holder, or this
// waiter, in whatever process: it can go on with the lock, extend it and release it. So it must be
// hard to guess, and not be used for two waits at once. All who use it must ask for the same lease: one
// process's shorter lease ends the lock before the Deadline of another, which is not told. A handed-over
// lock costs one more round trip, because a signal for an earlier wait with the same token could be
// mistaken for it.
func WithToken(token string) Option {
	return func(r *request) {
		r.token = token
		if token == "" {
			r.bad = errors.New("an empty token")
		}
	}
}

// WithMaxHold ends renewal d after the grant, and with it the lock. At least 1 ms.
func WithMaxHold(d time.Duration) Option {
	return func(r *request) {
		r.maxHold = d
		if d == 0 {
			r.bad = errors.New("a maximum hold of 0: it must be at least 1ms")
		}
	}
}

// WithReplicas has the grant confirmed by n replicas within timeout, before the call returns. With
// fewer, the lock is released and the error is ErrNotReplicated. It costs a connection and two
// more round trips. A failover to one of those replicas keeps the lock; see WAIT in Redis's
// documentation for what else can happen.
func WithReplicas(n int, timeout time.Duration) Option {
	return func(r *request) { r.replicas, r.ackWithin = n, timeout }
}

// request is what one call asks for.
type request struct {
	keys      keys
	lease     time.Duration // 0: never expires
	renew     bool
	maxHold   time.Duration // 0: no limit
	owner     string
	token     string // the caller's own, or made by the Locker
	ownToken  bool   // the caller's own
	replicas  int
	ackWithin time.Duration
	bad       error // the first misuse of an option
}

// check refuses what Redis could not do as it was asked.
func (r *request) check() error {
	bad := r.bad
	switch {
	case bad != nil:
	case r.lease < 0, r.lease > 0 && r.lease < time.Millisecond:
		bad = fmt.Errorf("a lease of %v: it must be at least 1ms", r.lease)
	case r.maxHold < 0, r.maxHold > 0 && r.maxHold < time.Millisecond:
		bad = fmt.Errorf("a maximum hold of %v: it must be at least 1ms", r.maxHold)
	case r.replicas < 0:
		bad = fmt.Errorf("%d replicas", r.replicas)
	case r.replicas > 0 && r.ackWithin < time.Millisecond:
		bad = fmt.Errorf("a timeout of %v for %d replicas: it must be at least 1ms", r.ackWithin, r.replicas)
	}
	return bad
}
