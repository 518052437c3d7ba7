package redislock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/rueidis"
)

// LoadMode says what a Locker does about the function library in Redis.
type LoadMode int

const (
	// LoadIfNeeded loads the library on every primary that has none or an older one of the same
	// major version. It needs the right to FUNCTION LOAD there; without it, calls return a
	// *VersionError.
	LoadIfNeeded LoadMode = iota
	// LoadVerify loads nothing: where the library is missing, older or of another major version,
	// calls return a *VersionError.
	LoadVerify
	// LoadNever neither loads nor looks, at the eviction policy neither. If the library is missing,
	// calls return a *VersionError.
	LoadNever
)

// Load puts the function library on every primary that client knows: where it is missing, it is
// loaded; an older version of the same major version is replaced; the same or a newer one is left
// alone, so it is never downgraded and two versions of an app do not fight. Another major version,
// or somebody else's library or functions under our names, is a *VersionError and nothing changes
// there. A Locker does this by itself at first use, unless Options.LoadMode says otherwise.
//
// In a cluster, replicas get the library from their primaries, and nodes that cannot be reached
// are passed over as long as one can: what they lack is loaded when a call meets it.
func Load(ctx context.Context, client rueidis.Client) error {
	return newLoader(client, LoadIfNeeded, nil).look(ctx)
}

// eachNode runs do on the primaries of client. Whether a node is one, not every user may ask: so with
// more than one node, READONLY is no error either.
func eachNode(ctx context.Context, client rueidis.Client, do func(context.Context, string, rueidis.Client) error) error {
	var unreachable []error
	nodes := client.Nodes()
	for addr, node := range nodes {
		if len(nodes) > 1 && isReplica(ctx, node) {
			continue
		}
		err := do(ctx, addr, node)
		var version *VersionError
		switch {
		case err == nil, len(nodes) > 1 && code(err) == "READONLY":
		case errors.As(err, &version):
			return err
		case transient(err):
			unreachable = append(unreachable, fmt.Errorf("redislock: function library on %s: %w", addr, err))
		default:
			return fmt.Errorf("redislock: function library on %s: %w", addr, err)
		}
	}
	if len(unreachable) > 0 && len(unreachable) == len(nodes) {
		return errors.Join(unreachable...)
	}
	return nil
}

func (l *loader) loadOn(ctx context.Context, addr string, node rueidis.Client) error {
	// More than one round only if others load at the same moment.
	for range 3 {
		err := l.compare(ctx, addr, node)
		var version *VersionError
		if !errors.As(err, &version) || version.Have != "" && !older(version.Have, Version) {
			return err
		}
		if version.Have == "" {
			err = node.Do(ctx, node.B().FunctionLoad().FunctionCode(source).Build()).Error()
		} else {
			err = node.Do(ctx, node.B().FunctionLoad().Replace().FunctionCode(source).Build()).Error()
		}
		if code(err) == "NOPERM" {
			version.Reason += ", and this user may not load it: " + err.Error()
			return version
		}
		if err == nil || !strings.Contains(err.Error(), "already exists") {
			return err
		}
		// The library, or one of its functions, is there: somebody else's, or loaded just now.
		taken := err.Error()
		if err = l.compare(ctx, addr, node); errors.As(err, &version) && version.Have == "" {
			version.Reason = "the name is taken by somebody else's library, see FUNCTION LIST: " + taken
			return version
		}
	}
	return errors.New("others keep replacing the library")
}

// compare returns a *VersionError if this package cannot work with the library on a node as it is.
// It notes how the node evicts keys.
func (l *loader) compare(ctx context.Context, addr string, node rueidis.Client) error {
	have, policy, err := askVersion(ctx, node)
	if policy != "" && policy != "noeviction" {
		l.evicting[addr] = policy
	}
	wrong := &VersionError{Node: addr, Have: have, Want: Version}
	switch {
	case notFound(err):
		wrong.Have = "" // rueidis puts the error's text there
		wrong.Reason = "the library is missing"
	case err != nil && strings.Contains(err.Error(), "unknown command"):
		return fmt.Errorf("functions need Redis 7.0 or newer, or Valkey: %w", err)
	case rueidis.IsParseErr(err):
		wrong.Have, wrong.Reason = "unknown", "lock_version is somebody else's"
	case err != nil:
		return err
	case !valid(have) || major(have) != major(Version):
		wrong.Reason = fmt.Sprintf("it has version %q, of another major version or not ours", have)
	case older(have, Version):
		wrong.Reason = "it has the older version " + have
	default:
		return nil
	}
	return wrong
}

func notFound(err error) bool {
	return err != nil && strings.Contains(err.Error(), "Function not found")
}

func numbers(version string) (n [3]int, ok bool) {
	parts := strings.Split(version, ".")
	if len(parts) != len(n) {
		return n, false
	}
	for i, part := range parts {
		var err error
		if n[i], err = strconv.Atoi(part); err != nil {
			return n, false
		}
	}
	return n, true
}

func valid(version string) bool {
	_, ok := numbers(version)
	return ok
}

func major(version string) int {
	n, _ := numbers(version)
	return n[0]
}

// older tells whether a is an older version than b, of the same major version.
func older(a, b string) bool {
	x, okA := numbers(a)
	y, okB := numbers(b)
	return okA && okB && x[0] == y[0] && (x[1] < y[1] || x[1] == y[1] && x[2] < y[2])
}

// loader does what LoadMode says, once, and again when a function turns out to be missing.
type loader struct {
	client   rueidis.Client
	mode     LoadMode
	logger   *slog.Logger
	done     atomic.Bool
	mu       sync.Mutex
	evicting map[string]string // the policy of nodes that evict keys, by address
}

func newLoader(client rueidis.Client, mode LoadMode, logger *slog.Logger) *loader {
	return &loader{client: client, mode: mode, logger: logger, evicting: make(map[string]string)}
}

func (l *loader) look(ctx context.Context) error {
	if l.mode == LoadIfNeeded {
		return eachNode(ctx, l.client, l.loadOn)
	}
	return eachNode(ctx, l.client, l.compare)
}

func (l *loader) ensure(ctx context.Context) error {
	if l.done.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done.Load() {
		return nil
	}
	if l.mode != LoadNever {
		if err := l.look(ctx); err != nil {
			return err
		}
	}
	l.done.Store(true)
	l.warnOfEviction(ctx)
	return nil
}

func (l *loader) warnOfEviction(ctx context.Context) {
	if len(l.evicting) == 0 {
		return
	}
	var nodes []string
	for addr, policy := range l.evicting {
		nodes = append(nodes, addr+" "+policy)
	}
	slices.Sort(nodes)
	l.logger.WarnContext(ctx, "redislock: Redis may evict locks when its memory is full: then two can hold one lock, and waiters lose "+
		"their places. CONFIG SET maxmemory-policy noeviction, or give the locks a Redis of their own", "nodes", nodes)
}

// reload is called when a function was not found. The one who comes first loads for all.
func (l *loader) reload(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.look(ctx)
	var version *VersionError
	if l.mode == LoadNever && errors.As(err, &version) && version.Have != "" {
		return nil
	}
	return err
}
