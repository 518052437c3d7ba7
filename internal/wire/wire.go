// Package wire is the interface between the client and a server. Package redislock implements it on
// rueidis (functions.go), internal/memory without Redis. Code above it knows no commands, replies or texts
// of Redis's errors.
package wire

import (
	"context"
	"errors"
	"math"
	"time"
)

// Never is the length of a lease that never expires, and of a limit that is not set. It is the longest
// duration, so min and Before treat it correctly, and no arithmetic makes a lease endless.
const Never = time.Duration(math.MaxInt64)

// Server is one client's access to the function library. Every call returns when its ctx ends; the server
// may still carry it out (see Error). It is safe for concurrent use.
type Server interface {
	// Acquire takes the lock or queues for it. With a wait of 0 it only tries, and leaves the queue. holders
	// is how many may share the lock, token included; 0: any number; 1: token alone.
	Acquire(ctx context.Context, k Keys, token string, lease, wait time.Duration, holders int) (Acquired, error)
	// Release gives the lock back, or leaves the queue.
	Release(ctx context.Context, k Keys, token string) (Released, error)
	// Extend makes the lease end this long from now, if token is the holder.
	Extend(ctx context.Context, k Keys, token string, lease time.Duration) (Extended, error)
	// ExtendAndWait extends, passes the answer to extended, and waits up to timeout for n replicas. It
	// returns how many have the lease.
	ExtendAndWait(ctx context.Context, k Keys, token string, lease time.Duration, n int,
		timeout time.Duration, extended func(Extended)) (acks int, err error)
	// Reset takes the lock away from its holder. It reports whether somebody held it.
	Reset(ctx context.Context, k Keys) (held bool, err error)
	Inspect(ctx context.Context, k Keys) (State, error)
	// Locks returns the keys that begin with prefix and may be held locks, some more than once. With an
	// error, some may be missing.
	Locks(ctx context.Context, prefix string) ([]string, error)
	// Pop blocks until a list has signals. It returns about most of them at most, or none after a few
	// seconds.
	Pop(ctx context.Context, list string, most int) ([]Signal, error)
	// Forget deletes signal lists.
	Forget(ctx context.Context, lists []string) error
}

// Provider is a rueidis.Client with Servers of its own: redislocktest's. redislock.New takes one for each
// Locker, with its own signal lists.
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
	Lease    time.Duration // held: the rest of the lease, or Never
	Position int           // not held: the place in the queue, 1 is next; 0: not queued
	CheckIn  time.Duration // queued: call again at the latest after this
	Now      int64         // server time, ms
	List     string        // queued: the signal list, for Pop
	Sent     time.Time     // no later than the answered call was sent
}

// Extended is the answer to Extend.
type Extended struct {
	Held bool
	Sent time.Time // as in Acquired
}

// Released is the answer to Release.
type Released int

// The state of the token before Release.
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
	Holder  string // with the longest lease; "": nobody
	Fence   int64
	TTL     time.Duration // of Holder; -1: never expires; 0: nobody holds the lock
	Held    int           // how many hold it
	Holders []Holder      // may be empty if the lock is held alone
	Waiting int
	Waiters []Waiter
}

// Holder is one holder of a lock.
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

// ErrUnavailable is in each Error that passes.
var ErrUnavailable = errors.New("redis is unavailable")

// Error is the error of every failed call.
type Error struct {
	Err      error
	Passes   bool // the same call may succeed later by itself
	Answered bool // the server did not carry out the call, and will not
}

func (e *Error) Error() string {
	if e.Passes {
		return ErrUnavailable.Error() + ": " + e.Err.Error()
	}
	return e.Err.Error()
}

// Unwrap includes ErrUnavailable if the error passes.
func (e *Error) Unwrap() []error {
	if e.Passes {
		return []error{ErrUnavailable, e.Err}
	}
	return []error{e.Err}
}

// Passes tells whether the same call may succeed later by itself: the network or the server has a passing
// problem.
func Passes(err error) bool { return errors.Is(err, ErrUnavailable) }

// MayArrive tells whether the server may have carried out a call in spite of this error, or still may.
func MayArrive(err error) bool {
	if err == nil {
		return false
	}
	var e *Error
	return !errors.As(err, &e) || !e.Answered
}
