package redislock

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// Errors come wrapped in text that names the operation and the lock. Test for them with errors.Is and
// errors.As. All other errors are answers of Redis, or say which argument is wrong.
var (
	// ErrNotAcquired says that somebody holds the lock or waits for it. Acquire, TryAcquire and Do
	// return it. The caller does not hold the lock and has no place in the queue. If ctx or WithWait
	// ended a wait, errors.Is also finds ctx's own error.
	ErrNotAcquired = errors.New("not acquired")

	// ErrQueueFull is the ErrNotAcquired of WithQueueLimit: too many wait already.
	ErrQueueFull = fmt.Errorf("%w: the queue is full", ErrNotAcquired)

	// ErrUnavailable says that nobody answered, or that Redis answered with an error that passes
	// (LOADING, CLUSTERDOWN and the like). Nothing is known of the lock. Every call can return it. If
	// ctx or WithWait ended a wait, errors.Is also finds ctx's own error.
	ErrUnavailable = wire.ErrUnavailable

	// ErrNotHeld says that the lock had been lost before: its lease ran out, somebody reset or released
	// it, or its key is gone. Release and Extend return it.
	ErrNotHeld = errors.New("not held")

	// ErrLost says that somebody else may hold the lock now or soon. The text says why: the lease, the
	// maximum hold, or that somebody took the lock away. It is the context.Cause of Lock.Context. Do
	// returns it if the lock was lost before fn returned. Acquire returns it if every grant had run out
	// when it arrived: the lease is too short for this network.
	ErrLost = errors.New("lease lost")

	// ErrClosed says that the Locker is closed. Waiters and all later calls return it. It is the
	// context.Cause of the locks that Close released.
	ErrClosed = errors.New("locker is closed")

	// ErrNotReplicated says that fewer replicas than WithReplicas asks for confirmed the grant in time.
	// Acquire, TryAcquire and Do return it. The lock was released.
	ErrNotReplicated = errors.New("not replicated")
)

// VersionError says that this package cannot work with the function library on a Redis node, and how a
// DBA repairs that. All calls of a Locker return it until then.
type VersionError struct {
	Node   string // host:port of the node, or the path of its socket
	Have   string // the library's version there, "" if the node has none of ours
	Want   string // the version of this package's library
	Reason string // why the package cannot work with it
	Err    error  // the error that Redis answered, or nil

	replaceable bool // this package may replace it
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

// Unwrap returns the error that Redis answered, or nil.
func (e *VersionError) Unwrap() error { return e.Err }

// wrap names the operation and the lock.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redislock: %s %q: %w", op, name, err)
}

// join is errors.Join, with a text of one line.
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

// Only the rest of this file knows Redis's error texts.

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

// classify turns the error of a call into a wire.Error.
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
