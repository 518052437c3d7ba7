package redislock

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// Errors come wrapped in text that names the operation and the lock; test for them with
// errors.Is and errors.As. An error that is none of these is what Redis said.
var (
	// ErrNotAcquired says that somebody holds the lock or waits for it: TryAcquire, WithWait(0), or a
	// wait whose ctx (or WithWait) ended, after the server had said so; then errors.Is finds ctx's own
	// error as well. The caller does not hold the lock, and nothing waits for it.
	ErrNotAcquired = errors.New("not acquired")

	// ErrQueueFull is the ErrNotAcquired of WithQueueLimit. The queue was left.
	ErrQueueFull = fmt.Errorf("%w: the queue is full", ErrNotAcquired)

	// ErrUnavailable says that nobody answered, or that Redis answered with an error that passes
	// (LOADING, CLUSTERDOWN and the like): so nothing is known of the lock. Every call can return it.
	// When a ctx (or WithWait) ended a wait, errors.Is finds ctx's own error as well.
	ErrUnavailable = wire.ErrUnavailable

	// ErrNotHeld is returned by Release and Extend if the lock had been lost before: its lease ran
	// out, it was reset or released elsewhere, or its key is gone.
	ErrNotHeld = errors.New("not held")

	// ErrLost is the context.Cause of Lock.Context when the lock may be lost: somebody else may hold it
	// soon, or holds it already. The text says which limit it was: the lease, the maximum hold, or that
	// it was taken away. Do returns it if that was before fn returned. Acquire returns it if every grant
	// had run out when it arrived: the lease is too short for this network.
	ErrLost = errors.New("lease lost")

	// ErrClosed is returned by all calls of a Locker after Close, and to those who wait during it;
	// it is the context.Cause of the locks that Close released.
	ErrClosed = errors.New("locker is closed")

	// ErrNotReplicated is returned by Acquire and TryAcquire if fewer replicas than WithReplicas
	// asks for confirmed the grant in time. The lock was released.
	ErrNotReplicated = errors.New("not replicated")
)

// VersionError says that a Redis node has no function library that this package can work with, and
// what a DBA can do about it. All calls of a Locker return it until that is done.
type VersionError struct {
	Node   string // host:port of the node, or the path of its socket
	Have   string // the library's version there, "" if there is none of ours
	Want   string // the version of this package's library
	Reason string // what is in the way
	Err    error  // what Redis said, nil if that was no error

	replaceable bool // by ours
}

func (e *VersionError) Error() string {
	where := "-s " + e.Node
	if i := strings.LastIndexByte(e.Node, ':'); i >= 0 && !strings.HasPrefix(e.Node, "/") {
		where = "-h " + strings.Trim(e.Node[:i], "[]") + " -p " + e.Node[i+1:]
	}
	reason := e.Reason
	if e.Err != nil {
		reason += ": " + e.Err.Error()
	}
	return fmt.Sprintf("node %s: %s (need version %s of the function library \"lock\"; "+
		"to load it: redis-cli %s -x FUNCTION LOAD REPLACE < lua/lock.lua)", e.Node, reason, e.Want, where)
}

// Unwrap returns what Redis said.
func (e *VersionError) Unwrap() error { return e.Err }

// wrap names the operation and the lock.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redislock: %s %q: %w", op, name, err)
}

// join is errors.Join in one line.
func join(errs ...error) (all error) {
	for _, err := range errs {
		switch {
		case all == nil:
			all = err
		case err != nil:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

// The rest is all that this package knows of Redis's error texts.

// code is the first word of an error that Redis replied with, "" for any other error.
func code(err error) string {
	if err == nil {
		return ""
	}
	var reply *rueidis.RedisError
	if errors.As(err, &reply) && !reply.IsNil() {
		word, _, _ := strings.Cut(reply.Error(), " ")
		return word
	}
	return ""
}

func says(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

func notFound(err error) bool       { return says(err, "Function not found") }
func alreadyExists(err error) bool  { return says(err, "already exists") }
func unknownCommand(err error) bool { return says(err, "unknown command") }

// classify makes a wire.Error of what a call failed with.
func classify(err error) error {
	var version *VersionError
	e := &wire.Error{Err: err}
	if errors.As(err, &e) {
		return err
	}
	switch code(err) {
	case "LOADING", "BUSY", "READONLY", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
		"UNBLOCKED", "MASTERDOWN":
		e.Passes, e.Answered = true, true
	case "":
		e.Answered = errors.As(err, &version)
		e.Passes = !e.Answered
	default:
		e.Answered = true
	}
	return e
}
