package redislock

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/rueidis"
)

// Errors come wrapped in text that names the operation and the lock; test for them with
// errors.Is and errors.As. An error that is none of these is what Redis or the network said.
var (
	// ErrNotAcquired is returned by TryAcquire if somebody holds the lock or waits for it, and by
	// Acquire, Do and TryAcquire when ctx ends first; errors.Is then finds ctx's own error as well.
	// The lock is not held and nothing waits for it any more.
	ErrNotAcquired = errors.New("not acquired")

	// ErrNotHeld is returned by Release and Extend if the lock had been lost before: its lease ran
	// out, it was reset or released elsewhere, or its key is gone.
	ErrNotHeld = errors.New("not held")

	// ErrLost is the context.Cause of Lock.Context when the lease could not be kept, or the lock was
	// taken away: somebody else may hold it soon, or holds it already. Do returns it if that was before
	// fn returned. Acquire returns it if every grant had run out when it arrived, which means that the
	// lease is too short for this network.
	ErrLost = errors.New("lease lost")

	// ErrClosed is returned by all calls of a Locker after Close, and to those who wait during it;
	// it is the context.Cause of the locks that Close released.
	ErrClosed = errors.New("locker is closed")

	// ErrNotReplicated is returned by Acquire and TryAcquire if fewer replicas than WithReplicas
	// asks for confirmed the grant in time. The lock was released.
	ErrNotReplicated = errors.New("not replicated")

	// errReleased is an ErrNotHeld that says why: the verdict on the lock came with an earlier Release.
	errReleased = fmt.Errorf("%w: it was released before", ErrNotHeld)

	errReply = errors.New("unexpected reply from the function library")
)

// VersionError says that a Redis node has no function library that this package can work with, and
// what a DBA can do about it. All calls of a Locker return it until that is done.
type VersionError struct {
	Node   string // host:port of the node
	Have   string // the library's version there, "" if there is none of ours
	Want   string // the version of this package's library
	Reason string // what is in the way
}

func (e *VersionError) Error() string {
	host, port := e.Node, "6379"
	if i := strings.LastIndexByte(e.Node, ':'); i >= 0 {
		host, port = strings.Trim(e.Node[:i], "[]"), e.Node[i+1:]
	}
	return fmt.Sprintf("redislock: node %s: %s (need version %s of the function library \"lock\"; "+
		"to load it: redis-cli -h %s -p %s -x FUNCTION LOAD REPLACE < lua/lock.lua)",
		e.Node, e.Reason, e.Want, host, port)
}

// code is the first word of an error that Redis replied with, "" for any other error.
func code(err error) string {
	var reply *rueidis.RedisError
	if errors.As(err, &reply) && !reply.IsNil() {
		word, _, _ := strings.Cut(reply.Error(), " ")
		return word
	}
	return ""
}

// hasNoAnswer tells whether a call may have been carried out in spite of this error, or may still arrive.
func hasNoAnswer(err error) bool {
	var version *VersionError
	return err != nil && code(err) == "" && !errors.As(err, &version)
}

// transient tells whether the same call may succeed later without anybody's doing: the network is
// in trouble, or the server is in a state that passes.
func transient(err error) bool {
	switch code(err) {
	case "LOADING", "BUSY", "READONLY", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
		"UNBLOCKED", "MASTERDOWN":
		return true
	case "":
		var version *VersionError
		return err != nil && !errors.Is(err, errReply) && !errors.As(err, &version)
	}
	return false
}
