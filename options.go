package redislock

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// Options are the settings of a Locker, and the defaults of the options of each call. The zero
// value is a good choice.
type Options struct {
	// Prefix begins the keys: Prefix:{NAME}, Prefix-queue:{NAME} and so on. No braces. Default "lock".
	Prefix string
	// Lease is how long a lock outlives its holder's last sign of life. Renewal keeps it going every
	// third of this, so it only ends by itself if the holder dies or is cut off. 1 ms to 250 years;
	// rounded up to whole milliseconds. A round trip has to be shorter than half of it, and than 1 s
	// where locks are handed over. Default 10 s.
	Lease time.Duration
	// WithoutExpiry: a lock is held until it is released or reset, even if its holder has died. See the
	// option of that name.
	WithoutExpiry bool
	// WithoutRenewal: the lease ends once, Lease after the grant.
	WithoutRenewal bool
	// MaxHold ends renewal this long after the grant, and with it the lock; Lock.Context ends ahead of
	// that. Default 0: no limit.
	MaxHold time.Duration
	// Owner is a readable label that tokens begin with, for whoever looks at the queue. It is cut to 64
	// bytes. Default HOST:PID of this process.
	Owner string
	// Replicas is how many replicas must have confirmed a grant before Acquire returns, and
	// ReplicaTimeout how long to wait for them. Default 0: none.
	Replicas       int
	ReplicaTimeout time.Duration
	// WaitTTL is how long the place of a waiter is kept after its last sign of life. It checks in
	// every third of this at the latest. 100 ms to 24 hours. Default 30 s. Where more than some hundred
	// of a Locker wait for one lock, it is longer, so that they do not keep Redis busy.
	WaitTTL time.Duration
	// LoadMode says what to do if Redis lacks the function library. Default LoadIfNeeded.
	LoadMode LoadMode
	// Logger gets warnings, all with the message prefix "redislock:". Once, at first use: Redis may evict
	// locks when its memory is full (any maxmemory-policy but noeviction; a user who may not call INFO is
	// not told, nor is one with LoadNever). Once: the server behind a single address has been demoted. At
	// once, then at most once a minute: a wait goes on although Redis is in trouble. Default
	// slog.Default().
	Logger *slog.Logger
	// Observe is told what only the lock knows: how long a call waited, that the lock was handed over,
	// how long it was held, that it was lost. See Event, and LogEvents for one that writes to a log.
	// Default nil: nothing is measured.
	//
	// Its ctx has the values of Acquire's ctx (a trace, say) and does not end. It is called by the
	// goroutine that acquires, extends or releases, before that call returns; when a lease cannot be
	// kept, by a goroutine of its own that Close waits for; by those of Close, before that returns.
	// (If Observe is at work on the lock already, it is called again when it returns.) Context has ended
	// before an end is told. The events of one lock come in order, one after the other; those of several
	// at the same time. It must not block: the call that it belongs to waits. A panic goes up to the
	// caller, and Acquire's has no lock then; in the goroutines of renewal and Close it ends the process.
	Observe func(ctx context.Context, e Event)
}

const (
	defaultPrefix  = "lock"
	defaultLease   = 10 * time.Second
	defaultWaitTTL = 30 * time.Second
	minWaitTTL     = 100 * time.Millisecond
	// No more than lock.lua takes.
	maxWaitTTL = 24 * time.Hour
	maxLease   = 250 * 365 * 24 * time.Hour
	maxToken   = 16384 // bytes
	maxHolders = 1_000_000_000
	maxOwner   = 64 // bytes; the label is cut
	maxPrefix  = 64 // bytes
)

func (o Options) withDefaults() (Options, error) {
	o.Prefix = cmp.Or(o.Prefix, defaultPrefix)
	o.Lease = cmp.Or(o.Lease, defaultLease)
	o.WaitTTL = cmp.Or(o.WaitTTL, defaultWaitTTL)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Owner == "" {
		host, _ := os.Hostname()
		pid := ":" + strconv.Itoa(os.Getpid())
		o.Owner = cut(host, maxOwner-len(pid)) + pid
	}
	switch {
	case strings.ContainsAny(o.Prefix, "{}:"):
		return o, fmt.Errorf("redislock: Options.Prefix %q must not contain braces, which are for the hash tag of the name, "+
			"nor a colon: two prefixes could name one lock", o.Prefix)
	case slices.ContainsFunc([]string{"-queue", "-state", "-signal"}, func(end string) bool { return strings.HasSuffix(o.Prefix, end) }):
		return o, fmt.Errorf("redislock: Options.Prefix %q must not end like the keys beside a lock: -queue, -state, -signal", o.Prefix)
	case len(o.Prefix) > maxPrefix:
		return o, fmt.Errorf("redislock: Options.Prefix has %d bytes, more than %d", len(o.Prefix), maxPrefix)
	case o.WaitTTL < minWaitTTL || o.WaitTTL > maxWaitTTL:
		return o, fmt.Errorf("redislock: Options.WaitTTL %v must be %v to %v", o.WaitTTL, minWaitTTL, maxWaitTTL)
	case o.LoadMode < LoadIfNeeded || o.LoadMode > LoadNever:
		return o, fmt.Errorf("redislock: Options.LoadMode %d is none of the modes", o.LoadMode)
	}
	if err := o.request("").check(); err != nil {
		return o, fmt.Errorf("redislock: Options: %w", err)
	}
	return o, nil
}

// cut shortens a text to so many bytes, between two characters.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

// Option changes one call of Acquire, TryAcquire, Do, AcquireAll or DoAll.
type Option func(*request)

// WithLease sets the lease of this lock, see Options.Lease: it expires, also if Options.WithoutExpiry is
// set.
func WithLease(d time.Duration) Option { return func(r *request) { r.lease, r.forever = d, false } }

// WithoutExpiry gives a lock that is held until it is released or reset: if its holder dies, somebody
// has to Reset it. The same is true after a failover that loses the release, or if a call gets through
// only after its waiter gave up (its connection broke while the server stood still).
func WithoutExpiry() Option { return func(r *request) { r.forever = true } }

// WithRenewal keeps the lease going, which is the default unless Options.WithoutRenewal is set.
func WithRenewal() Option { return func(r *request) { r.renew = true } }

// WithoutRenewal gives a lock that ends by itself one lease after the grant, unless Extend is called.
func WithoutRenewal() Option { return func(r *request) { r.renew = false } }

// WithOwner puts a readable label before the random part of the token, see Options.Owner; "" puts none. It
// is for whoever looks at the queue, and means nothing to the lock.
func WithOwner(label string) Option { return func(r *request) { r.owner = label } }

// WithToken uses the caller's own token: 1 to 16,384 bytes of any kind. Whoever has it is this holder, or
// this waiter, in whatever process: it can go on with the lock, extend it and release it. So:
//
//   - It must be hard to guess, and must not be used for two waits at once; nor again after a wait that
//     was given up while Redis did not answer, since what undoes that wait may arrive late.
//   - All who use it must ask for the same lease, or all for none that expires: a shorter one ends the
//     lock before the Deadline of another process, which is not told.
//   - To pass a lock on, the first process calls Detach instead of Release, and the second one Acquire
//     with the token before the lease ends.
//   - A call whose ctx ends leaves the queue, but gives a lock back only if it was granted to this very
//     wait: never one that another process holds with the token.
//
// A handed-over lock costs one more round trip, because a signal for an earlier wait with the same token
// could be mistaken for it.
func WithToken(token string) Option {
	return func(r *request) { r.token, r.ownToken = token, true }
}

// WithMaxHold ends renewal d after the grant, and with it the lock. At least 1 ms.
func WithMaxHold(d time.Duration) Option {
	return func(r *request) { r.maxHold, r.noMaxHold = d, false }
}

// WithoutMaxHold sets no limit, which is the default unless Options.MaxHold is set.
func WithoutMaxHold() Option { return func(r *request) { r.noMaxHold = true } }

// WithMinHold keeps the lock from everybody else until d after the grant: also if it is released before, its
// holder dies, or the Locker is closed. So a job runs once per period, however short it is and however far
// the clocks of its machines are apart; with WithHolders(n), it starts n times per period. 0: no such limit,
// which is the default.
//
//   - Release before then counts as one for the caller: Context ends, and so does the renewal. The server
//     ends the lease d after the grant, the next waiter has the lock a second later at the latest.
//   - Every lease is at least what is left of d, whatever WithLease and Extend say.
//   - A handed-over lock costs one more round trip: the server knows of the whole d before the call returns.
//   - A call that returns an error keeps nothing.
//   - WithMaxHold must not be shorter. Reset, a lost key and a failover that loses the grant end it.
//   - It counts from each grant. A caller with the token of the holder has the lock at once, see WithToken.
func WithMinHold(d time.Duration) Option { return func(r *request) { r.minHold = d } }

// WithReplicas has the grant confirmed by n replicas within timeout, before the call returns. With
// fewer, the lock is released and the error is ErrNotReplicated. It costs a connection and two
// more round trips. A failover to one of those replicas keeps the lock; see WAIT in Redis's
// documentation for what else can happen. 0 replicas: none.
func WithReplicas(n int, timeout time.Duration) Option {
	return func(r *request) { r.replicas, r.ackWithin = n, timeout }
}

// WithWait bounds the wait, and not the time that the lock is held: so Do can wait 5 s and then work for
// an hour. 0: only try, as TryAcquire does. When it is over, the error is that of a ctx with this timeout.
func WithWait(d time.Duration) Option { return func(r *request) { r.limit, r.limited = d, true } }

// WithQueueLimit returns ErrQueueFull instead of waiting behind n others or more, as the server counts them at
// the first answer. 0: it never waits. At any n, a lock that can be had is taken.
func WithQueueLimit(n int) Option { return func(r *request) { r.queueLimit = n } }

// WithHolders lets n hold the lock together: this caller, and others who ask for any number of holders, too.
// At least 1, which is alone. All wait in one queue, and nobody overtakes: a caller that wants the lock alone
// waits until all have left, and those behind it wait until it has had the lock.
//
// Each caller's own n counts, at the moment of its grant: so n permits are a WithHolders(n) at each call. Each has a
// lease of its own. Their Fence is the same, and greater than any before.
//
// With a token of the caller's own (WithToken), a call whose ctx ends together with its grant may leave a share to
// its lease: it cannot tell that it was not held before.
func WithHolders(n int) Option { return func(r *request) { r.holders, r.shared = n, false } }

// WithShared is WithHolders without a limit: a reader. A writer asks for the lock alone, that is without this.
func WithShared() Option { return func(r *request) { r.holders, r.shared = 0, true } }

// request is what one call asks for: the options, then checked and completed. After that it does not
// change.
type request struct {
	keys       wire.Keys
	op         string        // for messages
	lease      time.Duration // wire.Never: never expires
	maxHold    time.Duration // wire.Never: no limit
	minHold    time.Duration
	owner      string
	token      string        // the caller's own, or made by the Locker
	limit      time.Duration // of the wait, if it is limited; 0: only try
	queueLimit int           // how many may wait before it
	holders    int           // how many may hold the lock together; 0: any number
	replicas   int
	ackWithin  time.Duration

	// Together, as there may be many waiters.
	limited   bool
	renew     bool
	shared    bool // holders is 0
	ownToken  bool // token is the caller's own
	forever   bool // until completed: lease does not count
	noMaxHold bool // until completed: maxHold does not count
}

func (o Options) request(op string, options ...Option) *request {
	r := &request{
		op:         op,
		lease:      o.Lease,
		forever:    o.WithoutExpiry,
		renew:      !o.WithoutRenewal,
		maxHold:    o.MaxHold,
		noMaxHold:  o.MaxHold == 0,
		owner:      o.Owner,
		holders:    1,
		queueLimit: math.MaxInt,
		replicas:   o.Replicas,
		ackWithin:  o.ReplicaTimeout,
	}
	for _, option := range options {
		option(r)
	}
	return r
}

// complete checks the arguments of a call, before anything is sent, and fills in what is missing.
func (r *request) complete(prefix, name string) (err error) {
	if r.keys, err = keysOf(prefix, name); err == nil {
		err = r.check()
	}
	if err != nil {
		return wrap(r.op, name, err)
	}
	if r.forever {
		r.lease = wire.Never
	}
	if r.noMaxHold {
		r.maxHold = wire.Never
	}
	if !r.ownToken {
		r.token = randomID(128)
		if r.owner != "" {
			r.token = cut(r.owner, maxOwner) + ":" + r.token
		}
	}
	return nil
}

// check refuses what Redis could not do as it was asked.
func (r *request) check() error {
	if err := cmp.Or(r.checkHold(), checkReplicas(r.replicas, r.ackWithin)); err != nil {
		return err
	}
	switch {
	case r.queueLimit < 0:
		return fmt.Errorf("a queue limit of %d: it must not be negative", r.queueLimit)
	case r.ownToken && r.token == "":
		return errors.New("an empty token")
	case len(r.token) > maxToken:
		return fmt.Errorf("a token of %d bytes: it must have at most %d", len(r.token), maxToken)
	case !r.shared && (r.holders < 1 || r.holders > maxHolders):
		return fmt.Errorf("%d holders: there must be at least 1 and at most %d", r.holders, maxHolders)
	case r.limited && r.limit < 0:
		return fmt.Errorf("a wait of %v: it must not be negative", r.limit)
	}
	return nil
}

func (r *request) checkHold() error {
	if err := checkLease(r.lease); err != nil && !r.forever {
		return err
	}
	switch {
	case !r.noMaxHold && (r.maxHold < time.Millisecond || r.maxHold > maxLease):
		return fmt.Errorf("a maximum hold of %v: it must be at least 1ms and at most %v", r.maxHold, maxLease)
	case r.minHold < 0 || r.minHold > maxLease:
		return fmt.Errorf("a minimum hold of %v: it must be at least 0 and at most %v", r.minHold, maxLease)
	case !r.noMaxHold && r.minHold > r.maxHold:
		return fmt.Errorf("a minimum hold of %v: it must be at most the maximum hold, %v", r.minHold, r.maxHold)
	}
	return nil
}

func checkReplicas(n int, timeout time.Duration) error {
	switch {
	case n < 0:
		return fmt.Errorf("%d replicas", n)
	case n > 0 && (timeout < time.Millisecond || timeout > maxLease):
		return fmt.Errorf("a timeout of %v for %d replicas: it must be at least 1ms", timeout, n)
	}
	return nil
}

func checkLease(d time.Duration) error {
	if d < time.Millisecond || d > maxLease {
		return fmt.Errorf("a lease of %v: it must be at least 1ms and at most %v; for a lock that never expires use WithoutExpiry", d, maxLease)
	}
	return nil
}

// firstLease is the lease to ask for, which must not outlast the maximum hold.
func (r *request) firstLease() time.Duration { return min(max(r.lease, r.minHold), r.maxHold) }

// handed is the lease that a lock is handed over with.
func (r *request) handed() time.Duration { return min(r.firstLease(), handedLease) }

// try tells that the request does not queue.
func (r *request) try() bool { return r.limited && r.limit == 0 }

func (r *request) wrap(err error) error { return wrap(r.op, r.keys.Name, err) }

// randomID returns so many random bits as text: nobody guesses 128, and no two of 64 are the same.
func randomID(bits int) string {
	id := make([]byte, bits/8)
	_, _ = rand.Read(id) // never fails, says crypto/rand
	return base64.RawURLEncoding.EncodeToString(id)
}
