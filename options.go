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

// Options are the settings of a Locker, and the defaults for each call. The zero value is a good
// choice.
type Options struct {
	// Prefix begins the keys: Prefix:{NAME}, Prefix-queue:{NAME} and so on. No braces. Default "lock".
	Prefix string
	// Lease is how long a lock outlives its holder's last sign of life. The package renews it every
	// third of that, so it ends by itself only if the holder dies or is cut off. 1 ms to 250 years;
	// rounded up to whole milliseconds. A round trip must be shorter than half a lease, and than 1 s
	// where locks are handed over. Default 10 s.
	Lease time.Duration
	// WithoutExpiry keeps a lock until it is released or reset, even if its holder has died. See the
	// option WithoutExpiry.
	WithoutExpiry bool
	// WithoutRenewal ends each lock one Lease after its grant, unless Extend is called.
	WithoutRenewal bool
	// MaxHold ends renewal this long after the grant, and with it the lock. Lock.Context ends ahead of
	// that. Default 0: no limit.
	MaxHold time.Duration
	// Owner is a readable label at the beginning of each token. It tells an operator who holds the lock.
	// It is cut to 64 bytes. Default HOST:PID of this process.
	Owner string
	// Replicas is how many replicas must have confirmed a grant before Acquire returns, and
	// ReplicaTimeout how long to wait for them. Default 0: none.
	Replicas       int
	ReplicaTimeout time.Duration
	// WaitTTL is how long Redis keeps a waiter's place after its last sign of life. The waiter checks in
	// at least every third of this. 100 ms to 24 hours. Default 30 s. If several hundred waiters of a
	// Locker want one lock, the Locker uses a longer time, to spare Redis.
	WaitTTL time.Duration
	// LoadMode says what to do if Redis lacks the function library. Default LoadIfNeeded.
	LoadMode LoadMode
	// Logger gets warnings. Their messages begin with "redislock:". Default slog.Default().
	//
	//   - Once, at first use: Redis may evict locks when its memory is full, because its
	//     maxmemory-policy is not noeviction. No warning with LoadNever, nor without the right to INFO.
	//   - Once: the server behind a single address has been demoted.
	//   - At once, then at most once a minute: a wait goes on although Redis is in trouble.
	Logger *slog.Logger
	// Observe gets an Event when a lock is acquired, released or lost, and when a call ends without the
	// lock. LogEvents returns an Observe that writes to a log. Default nil: nothing is measured.
	//
	//   - The ctx has the values of Acquire's ctx (a trace, say) and does not end.
	//   - Acquire, Extend, Release and Close call Observe before they return. If a lease cannot be kept,
	//     a goroutine of its own calls it, and Close waits for that.
	//   - Context has ended before Observe learns of the end of a lock.
	//   - The events of one lock come in order, one at a time: the goroutine that is in Observe reports
	//     the next one, too. Events of several locks come concurrently.
	//   - Observe must not block, because the call waits for it.
	//   - A panic reaches the caller; after a panic in Acquire the caller has no lock. In the goroutines of
	//     renewal and Close, a panic ends the process.
	Observe func(ctx context.Context, e Event)
}

const (
	defaultPrefix  = "lock"
	defaultLease   = 10 * time.Second
	defaultWaitTTL = 30 * time.Second
	minWaitTTL     = 100 * time.Millisecond
	// lock.lua accepts no more.
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

// cut shortens a text to at most this many bytes, between two characters.
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

// WithLease sets the lease of this lock, see Options.Lease. It overrides Options.WithoutExpiry.
func WithLease(d time.Duration) Option { return func(r *request) { r.lease, r.forever = d, false } }

// WithoutExpiry keeps the lock until it is released or reset. Somebody must Reset it
//
//   - after its holder died,
//   - after a failover that lost the release, or
//   - if a call arrives after its waiter gave up: its connection broke while the server stood still.
func WithoutExpiry() Option { return func(r *request) { r.forever = true } }

// WithRenewal renews the lease. This is the default unless Options.WithoutRenewal is set.
func WithRenewal() Option { return func(r *request) { r.renew = true } }

// WithoutRenewal ends the lock one lease after the grant, unless Extend is called.
func WithoutRenewal() Option { return func(r *request) { r.renew = false } }

// WithOwner puts a readable label before the random part of the token, see Options.Owner; "" puts none.
// The lock ignores the label.
func WithOwner(label string) Option { return func(r *request) { r.owner = label } }

// WithToken uses the caller's own token: 1 to 16,384 bytes of any kind. Another process with the same
// token is the same holder or waiter: it can go on with the lock, extend it and release it.
//
//   - The token must be hard to guess. Do not use it for two waits at once. Do not use it again after a
//     wait that was given up while Redis did not answer: the call that undoes this wait may arrive late.
//   - All processes with the token must ask for the same lease, or all for WithoutExpiry. A shorter lease
//     ends the lock before the Deadline of another process, which does not learn of it.
//   - To pass a lock on, the first process calls Detach instead of Release. The second one calls Acquire
//     with the token before the lease ends.
//   - A call whose ctx ends leaves the queue. It gives a lock back only if this very wait got it, and
//     never a lock that another process holds with the token.
//
// A handed-over lock costs one more round trip, because its signal could be meant for an earlier wait
// with the same token.
func WithToken(token string) Option {
	return func(r *request) { r.token, r.ownToken = token, true }
}

// WithMaxHold ends renewal d after the grant, and with it the lock; Lock.Context ends ahead of that. At
// least 1 ms.
func WithMaxHold(d time.Duration) Option {
	return func(r *request) { r.maxHold, r.noMaxHold = d, false }
}

// WithoutMaxHold sets no limit, which is the default unless Options.MaxHold is set.
func WithoutMaxHold() Option { return func(r *request) { r.noMaxHold = true } }

// WithMinHold keeps the lock from everybody else until d after the grant, even if it is released before,
// its holder dies, or the Locker is closed. So a job runs once per period, however short it is and
// however far the clocks of its machines differ. With WithHolders(n), it starts n times per period. The
// default is 0: no minimum.
//
//   - An earlier Release ends Context and renewal. The server ends the lease d after the grant. The next
//     waiter has the lock at most a second later.
//   - A lease is never shorter than the rest of d, whatever WithLease and Extend say.
//   - A handed-over lock costs one more round trip, because the server must know d before the call
//     returns.
//   - A call that returns an error keeps nothing.
//   - WithMaxHold must not be shorter. Reset, a lost key and a failover that loses the grant end the
//     minimum hold.
//   - d counts from each grant. A caller with the holder's token has the lock at once, see WithToken.
func WithMinHold(d time.Duration) Option { return func(r *request) { r.minHold = d } }

// WithReplicas waits up to timeout until n replicas have confirmed the grant. If fewer have, the call
// releases the lock and returns ErrNotReplicated. A failover to one of those replicas keeps the lock; see
// WAIT in Redis's documentation for its limits. It costs a connection and two more round trips. 0: none.
func WithReplicas(n int, timeout time.Duration) Option {
	return func(r *request) { r.replicas, r.ackWithin = n, timeout }
}

// WithWait limits the wait, not the time that the lock is held: Do can wait 5 s and then work for an
// hour. 0: only try, as TryAcquire does. When d is over, the error is that of a ctx with this timeout.
func WithWait(d time.Duration) Option { return func(r *request) { r.limit, r.limited = d, true } }

// WithQueueLimit returns ErrQueueFull instead of waiting behind n others or more. The server counts them
// at the first answer. 0: the call never waits. A lock that can be had is taken at any n.
func WithQueueLimit(n int) Option { return func(r *request) { r.queueLimit = n } }

// WithHolders lets n callers hold the lock together: this one, and others that use WithHolders or
// WithShared. At least 1, which is alone. All wait in one queue, and nobody overtakes. A caller that wants
// the lock alone waits until all holders have left. Callers behind it wait until it has had the lock.
//
// The caller's own n counts, at the moment of its grant. For n permits, use WithHolders(n) at each call.
// Each holder has a lease of its own. All have the same Fence, which is greater than any before.
//
// With WithToken, a call whose ctx ends together with its grant may leave a share to its lease: the call
// cannot tell this grant from an earlier one with the same token.
func WithHolders(n int) Option { return func(r *request) { r.holders, r.shared = n, false } }

// WithShared is WithHolders without a limit, for a reader. A writer leaves this option out.
func WithShared() Option { return func(r *request) { r.holders, r.shared = 0, true } }

// request is the arguments of one call: first the options, then checked and completed. After complete it
// does not change.
type request struct {
	keys       wire.Keys
	op         string        // for messages
	lease      time.Duration // wire.Never: never expires
	maxHold    time.Duration // wire.Never: no limit
	minHold    time.Duration
	owner      string
	token      string        // the caller's own, or made by the Locker
	limit      time.Duration // of the wait, if it is limited; 0: only try
	queueLimit int           // how many may wait in front
	holders    int           // how many may hold the lock together; 0: any number
	replicas   int
	ackWithin  time.Duration

	// The booleans are together to save memory: there may be many waiters.
	limited   bool
	renew     bool
	shared    bool // holders is 0
	ownToken  bool // token is the caller's own
	forever   bool // until complete: ignore lease
	noMaxHold bool // until complete: ignore maxHold
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

// complete checks the arguments before anything is sent, and fills in the missing ones.
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

// check refuses arguments that Redis cannot honour.
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

// firstLease is the lease to ask for. It does not outlast the maximum hold.
func (r *request) firstLease() time.Duration { return min(max(r.lease, r.minHold), r.maxHold) }

// handed is the lease with which a lock is handed over.
func (r *request) handed() time.Duration { return min(r.firstLease(), handedLease) }

// try tells that the request does not queue.
func (r *request) try() bool { return r.limited && r.limit == 0 }

func (r *request) wrap(err error) error { return wrap(r.op, r.keys.Name, err) }

// randomID returns random bits as text. 128 bits are safe against guessing, 64 against collision.
func randomID(bits int) string {
	id := make([]byte, bits/8)
	_, _ = rand.Read(id) // never fails, says crypto/rand
	return base64.RawURLEncoding.EncodeToString(id)
}
