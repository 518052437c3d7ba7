// Package wire is the seam between the client and a server: all that a client can ask, and be told.
// redislock implements it on rueidis (functions.go), redislocktest in memory. Nothing above it knows
// commands, replies, signal lists or the texts of Redis's errors.
package wire

import (
	"context"
	"errors"
	"math"
	"time"
)

// Never is the length of a lease that never expires, and of a limit that there is not. It is the
// longest duration, so min and Before treat it right, and no lease becomes endless by arithmetic.
const Never = time.Duration(math.MaxInt64)

// Server is one client's access to the function library. Every call ends with its ctx, whatever it
// waits for; it may still be carried out then (see Error). It is safe for concurrent use.
type Server interface {
	// Acquire takes the lock or queues for it. With a wait of 0 it only tries, and leaves the queue. So many
	// holders may have the lock together, token included; 0: any number; 1: token alone.
	Acquire(ctx context.Context, k Keys, token string, lease, wait time.Duration, holders int) (Acquired, error)
	// Release gives the lock back, or leaves the queue.
	Release(ctx context.Context, k Keys, token string) (Released, error)
	// Extend has the lease end this long from now, if token is the holder.
	Extend(ctx context.Context, k Keys, token string, lease time.Duration) (Extended, error)
	// ExtendAndWait is Extend, whose answer goes to extended; then n replicas are waited for until
	// timeout. It returns how many have the lease.
	ExtendAndWait(ctx context.Context, k Keys, token string, lease time.Duration, n int,
		timeout time.Duration, extended func(Extended)) (acks int, err error)
	// Reset takes the lock away from its holder. It reports whether somebody held it.
	Reset(ctx context.Context, k Keys) (held bool, err error)
	Inspect(ctx context.Context, k Keys) (State, error)
	// Locks returns the keys that begin with prefix and may be those of held locks, some more than once.
	// With an error, these are not all.
	Locks(ctx context.Context, prefix string) ([]string, error)
	// Pop blocks until signals come to a list. It returns those that are there, about most at most, or
	// none after a few seconds.
	Pop(ctx context.Context, list string, most int) ([]Signal, error)
	// Forget deletes signal lists.
	Forget(ctx context.Context, lists []string) error
}

// Provider is a rueidis.Client that redislock.New takes a Server from: that of redislocktest. Each
// Locker has a Server of its own, with signal lists of its own.
type Provider interface {
	Wire(prefix string) Server
}

// Keys are the Redis keys of one lock. They share a hash tag, and so a cluster slot.
type Keys struct {
	Name               string // as the caller gave it, for messages
	Lock, Queue, State string
	Tagged             string // the name with its hash tag
}

// Acquired is the answer to Acquire.
type Acquired struct {
	Held     bool
	Fence    int64         // held: the fencing token
	Lease    time.Duration // held: what is left of the lease, or Never
	Position int           // not held: the place in the queue, 1 is next; 0: not queued
	CheckIn  time.Duration // queued: call again at the latest after this
	Now      int64         // server time, ms
	List     string        // queued: where signals come, for Pop
	Sent     time.Time     // when the call that was answered was sent
}

// Extended is the answer to Extend.
type Extended struct {
	Held bool
	Sent time.Time // as in Acquired
}

// Released is the answer to Release.
type Released int

// What the token was until Release.
const (
	NotMine Released = iota
	WasHeld
	WasQueued
)

// Signal tells of a hand-over. With a Fence of 0 it only asks the waiter to call.
type Signal struct {
	Fence    int64
	Deadline int64 // server time, ms
	Token    string
}

// State is the answer to Inspect.
type State struct {
	Holder  string // "": nobody. Of several, the one with the longest lease
	Fence   int64
	TTL     time.Duration // of Holder; -1: never expires; 0: nobody holds the lock
	Held    int           // how many hold it
	Holders []Holder      // of them; may be empty if one holds it alone
	Waiting int
	Waiters []Waiter
}

// Holder is one of those who hold a lock.
type Holder struct {
	Token string
	TTL   time.Duration // as in State
}

// Waiter is one place in the queue.
type Waiter struct {
	Token                   string
	Waited, LapsesIn, Lease time.Duration // a Lease of 0: never expires
	Signal                  string
	Holders                 int // as in Acquire
}

// ErrUnavailable is found in each Error that passes.
var ErrUnavailable = errors.New("redis is unavailable")

// Error is how each call fails.
type Error struct {
	Err      error
	Passes   bool // the same call may succeed later, without anybody's doing
	Answered bool // the call was not carried out, and will not be
}

func (e *Error) Error() string {
	if e.Passes {
		return ErrUnavailable.Error() + ": " + e.Err.Error()
	}
	return e.Err.Error()
}

// Unwrap also has ErrUnavailable, if the error passes.
func (e *Error) Unwrap() []error {
	if e.Passes {
		return []error{ErrUnavailable, e.Err}
	}
	return []error{e.Err}
}

// Passes tells whether the same call may succeed later without anybody's doing: the network is in
// trouble, or the server is in a state that passes.
func Passes(err error) bool { return errors.Is(err, ErrUnavailable) }

// MayArrive tells whether a call may have been carried out in spite of this error, or may still be.
func MayArrive(err error) bool {
	if err == nil {
		return false
	}
	var e *Error
	return !errors.As(err, &e) || !e.Answered
}
