package redislock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// LoadMode says how a Locker treats the function library in Redis.
type LoadMode int

const (
	// LoadIfNeeded loads the library on every primary that has none, or an older one of the same
	// major version. It needs the right to FUNCTION LOAD. Without this right, calls return a
	// *VersionError.
	LoadIfNeeded LoadMode = iota
	// LoadVerify loads nothing. If the library is missing, older or of another major version, calls
	// return a *VersionError.
	LoadVerify
	// LoadNever loads nothing and checks nothing, not even the eviction policy. If the library is
	// missing, calls return a *VersionError.
	LoadNever
)

const (
	// lookFor limits the check of one of several primaries, so a primary that hangs does not delay the others.
	lookFor = 2 * time.Second
	// retryWithin is how soon a call is repeated during a round: its own primary may be ready already.
	retryWithin = 100 * time.Millisecond
)

// Load puts the function library on every primary that client knows. A Locker does this by itself at
// first use, unless Options.LoadMode says otherwise. On each primary, Load
//
//   - loads the library if it is missing,
//   - replaces an older version of the same major version,
//   - keeps the same or a newer version, so two versions of an app do not fight,
//   - changes nothing and returns a *VersionError if it finds another major version, or somebody else's
//     library or functions with our names.
//
// Replicas get the library from their primaries. Load skips nodes that do not answer within 2 s, as long
// as one node does. The Locker loads there when a call finds the library missing. After another error,
// some primaries may have the library.
func Load(ctx context.Context, client rueidis.Client) error {
	l := newLoader(client, LoadIfNeeded, nil)
	r := l.look(0)
	var err error
	select {
	case <-r.done:
		err = r.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("redislock: load the function library: %w", err)
	}
	return nil
}

// primaries runs do on each primary of client, concurrently, and returns the errors. limit is for each of
// several nodes; 0: none. Some users may not ask whether a node is a primary. So with more than one node,
// READONLY is no error.
func primaries(ctx context.Context, client rueidis.Client, limit time.Duration,
	do func(context.Context, string, rueidis.Client) error,
) []error {
	nodes := client.Nodes()
	failed := make(chan error, len(nodes))
	for addr, node := range nodes {
		if len(nodes) == 1 {
			limit = 0
		}
		go func() {
			err := within(ctx, limit, func(ctx context.Context) error {
				if len(nodes) > 1 && isReplica(ctx, node) {
					return nil
				}
				return do(ctx, addr, node)
			})
			if len(nodes) > 1 && code(err) == "READONLY" {
				err = nil
			}
			var version *VersionError
			if err != nil && !errors.As(err, &version) {
				err = fmt.Errorf("on %s: %w", addr, err)
			}
			failed <- err
		}()
	}
	var errs []error
	for range nodes {
		if err := <-failed; err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// within runs do, and returns at the end of ctx or limit even if do hangs. limit 0: none.
func within(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err, late := ending(ctx, func() error { return do(ctx) })
	return cmp.Or(err, late)
}

func isReplica(ctx context.Context, node rueidis.Client) bool {
	role, err := node.Do(ctx, node.B().Arbitrary("ROLE").Build()).ToArray()
	if err != nil || len(role) == 0 {
		return false
	}
	name, _ := role[0].ToString()
	return name == "slave"
}

// loader loads or checks the library as LoadMode says: at first use, and when a function is missing.
type loader struct {
	client rueidis.Client
	mode   LoadMode
	logger *slog.Logger
	ready  atomic.Bool  // a round has succeeded
	rounds atomic.Int64 // how many are over

	mu       sync.Mutex        // not held during a call
	round    *round            // under way; nil: none
	evicting map[string]string // the policy of nodes that evict keys, by address
}

// round is one check of all primaries. All callers that ask meanwhile share it.
type round struct {
	done chan struct{}
	err  error // set before done is closed
}

func newLoader(client rueidis.Client, mode LoadMode, logger *slog.Logger) *loader {
	return &loader{client: client, mode: mode, logger: logger, evicting: make(map[string]string)}
}

// ensure waits for the first successful round.
func (l *loader) ensure(ctx context.Context) error {
	for l.mode != LoadNever {
		rounds := l.rounds.Load()
		if l.ready.Load() {
			break
		}
		r := l.look(rounds)
		if r == nil {
			continue
		}
		select {
		case <-r.done:
			return r.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// missing is for a call that found a node without the library. rounds is l.rounds before the call. It
// returns when the caller should repeat the call, with l.rounds of now; or the error that makes it useless.
func (l *loader) missing(ctx context.Context, rounds int64) (int64, error) {
	r := l.look(rounds)
	if r == nil {
		return l.rounds.Load(), nil // a round has ended since: it may have loaded there
	}
	soon := time.NewTimer(retryWithin)
	defer soon.Stop()
	select {
	case <-r.done:
		var version *VersionError
		if l.mode == LoadNever && errors.As(r.err, &version) && version.Have != "" {
			return l.rounds.Load(), nil
		}
		return l.rounds.Load(), r.err
	case <-soon.C:
		return rounds, nil
	case <-ctx.Done():
		return rounds, ctx.Err()
	}
}

// look joins the round under way, or begins one. It returns nil if more than these rounds are over.
func (l *loader) look(rounds int64) *round {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rounds.Load() > rounds { // under mu: else one that has just ended is followed by another
		return nil
	}
	if l.round == nil {
		l.round = &round{done: make(chan struct{})}
		go l.run(l.round)
	}
	return l.round
}

func (l *loader) run(r *round) {
	do := l.compare
	if l.mode == LoadIfNeeded {
		do = l.loadOn
	}
	nodes := len(l.client.Nodes())
	r.err = verdict(nodes, primaries(context.Background(), l.client, lookFor, do))
	first := r.err == nil && l.ready.CompareAndSwap(false, true)
	l.mu.Lock()
	l.round = nil
	l.rounds.Add(1)
	evicting := l.evictingNodes()
	l.mu.Unlock()
	close(r.done)
	if first && len(evicting) > 0 && l.logger != nil {
		l.logger.Warn("redislock: Redis may evict locks when its memory is full: then two can hold one lock, and waiters lose "+
			"their places. CONFIG SET maxmemory-policy noeviction, or give the locks a Redis of their own", "nodes", evicting)
	}
}

// verdict ignores unreachable primaries as long as one can be reached.
func verdict(nodes int, errs []error) error {
	unreachable := 0
	for _, err := range errs {
		if err := classify(err); !wire.Passes(err) {
			return err
		}
		unreachable++
	}
	if unreachable > 0 && unreachable == nodes {
		return join(errs...)
	}
	return nil
}

// evictingNodes needs mu.
func (l *loader) evictingNodes() (nodes []string) {
	for addr, policy := range l.evicting {
		nodes = append(nodes, addr+" "+policy)
	}
	slices.Sort(nodes)
	return nodes
}

func (l *loader) loadOn(ctx context.Context, addr string, node rueidis.Client) error {
	// More than one pass only if others load at the same moment.
	for range 3 {
		err := l.compare(ctx, addr, node)
		var wrong *VersionError
		if !errors.As(err, &wrong) || !wrong.replaceable {
			return err
		}
		load := node.B().FunctionLoad().FunctionCode(source).Build()
		if wrong.Have != "" {
			load = node.B().FunctionLoad().Replace().FunctionCode(source).Build()
		}
		err = node.Do(ctx, load).Error()
		switch {
		case code(err) == "NOPERM":
			wrong.Reason += ", and this user may not load it"
			wrong.Err = err
			return wrong
		case !alreadyExists(err):
			return err
		}
		// The name of the library, or of a function, is taken: by somebody else, or by our library just now.
		taken := err
		if err = l.compare(ctx, addr, node); errors.As(err, &wrong) && wrong.Have == "" {
			wrong.Reason, wrong.Err = "the name is taken by somebody else's library, see FUNCTION LIST", taken
			return wrong
		}
	}
	return errors.New("others keep replacing the library")
}

// compare returns a *VersionError if this package cannot work with the node's library. It also notes
// the node's eviction policy.
func (l *loader) compare(ctx context.Context, addr string, node rueidis.Client) error {
	have, policy, err := askVersion(ctx, node)
	if policy != "" && policy != "noeviction" {
		l.mu.Lock()
		l.evicting[addr] = policy
		l.mu.Unlock()
	}
	wrong := &VersionError{Node: addr, Have: have, Want: Version, Err: err}
	theirs, ok := parseVersion(have)
	ours, _ := parseVersion(Version)
	switch {
	case notFound(err):
		wrong.Have, wrong.Reason, wrong.replaceable = "", "the library is missing", true // rueidis puts the error's text into have
	case unknownCommand(err):
		return fmt.Errorf("functions need Redis 7.0 or newer, or Valkey: %w", err)
	case rueidis.IsParseErr(err):
		wrong.Have, wrong.Reason = "unknown", "lock_version is somebody else's"
	case err != nil:
		return err
	case !ok || theirs[0] != ours[0]:
		wrong.Reason = fmt.Sprintf("it has version %q, of another major version or not ours", have)
	case slices.Compare(theirs[:], ours[:]) < 0:
		wrong.Reason, wrong.replaceable = "it has the older version "+have, true
	default:
		return nil
	}
	return wrong
}

// askVersion also asks for the eviction policy: "" if the server or the user's rights hide it.
func askVersion(ctx context.Context, node rueidis.Client) (version, policy string, err error) {
	replies := node.DoMulti(ctx,
		node.B().Arbitrary("FCALL_RO", "lock_version", "0").Build(),
		node.B().Arbitrary("INFO", "memory").Build())
	info, _ := replies[1].ToString()
	_, policy, _ = strings.Cut(info, "maxmemory_policy:")
	policy, _, _ = strings.Cut(policy, "\r\n")
	version, err = replies[0].ToString()
	return version, policy, err
}

// libraryVersion is MAJOR.MINOR.PATCH.
type libraryVersion [3]int

func parseVersion(text string) (v libraryVersion, ok bool) {
	parts := strings.Split(text, ".")
	if len(parts) != len(v) {
		return v, false
	}
	for i, part := range parts {
		var err error
		if v[i], err = strconv.Atoi(part); err != nil {
			return v, false
		}
	}
	return v, true
}
