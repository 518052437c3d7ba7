package redislock

import (
	"errors"
	"fmt"
	"strings"
)

// keys are the Redis keys of one lock. They share a hash tag, and so a cluster slot.
type keys struct {
	name               string // as the caller gave it, for messages
	lock, queue, state string
	tagged             string // the name with its hash tag
}

// keysOf refuses the names whose keys would not share a slot.
func keysOf(prefix, name string) (keys, error) {
	switch {
	case name == "":
		return keys{}, errors.New("redislock: the name of a lock must not be empty")
	case name[0] == '}':
		return keys{}, fmt.Errorf("redislock: lock %q: the name must not begin with '}', "+
			"its hash tag would be empty", name)
	}
	tagged := name
	if !hasTag(name) {
		tagged = "{" + name + "}"
	}
	// In one piece, as there may be many waiters.
	all := prefix + ":" + tagged + prefix + "-queue:" + tagged + prefix + "-state:" + tagged
	lock := len(prefix) + len(":") + len(tagged)
	queue := lock + len("-queue")
	return keys{
		name:   name,
		lock:   all[:lock],
		queue:  all[lock : lock+queue],
		state:  all[lock+queue:],
		tagged: all[lock-len(tagged) : lock],
	}, nil
}

// hasTag tells whether Redis hashes only a part of the name: what is between its first '{' and the
// next '}', unless that is empty (redis.io, Redis Cluster specification, "Hash tags").
func hasTag(name string) bool {
	_, rest, found := strings.Cut(name, "{")
	if !found {
		return false
	}
	tag, _, found := strings.Cut(rest, "}")
	return found && tag != ""
}

// keysFrom is the way back from a lock's key, for the locks that SCAN finds.
func keysFrom(prefix, key string) (keys, bool) {
	tagged, found := strings.CutPrefix(key, prefix+":")
	if !found || !hasTag(tagged) || tagged[0] == '}' {
		return keys{}, false
	}
	k, err := keysOf(prefix, tagged)
	return k, err == nil
}
