package redislock

import (
	"errors"
	"fmt"
	"strings"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// maxName limits the name of a lock, in bytes: the keys of each waiter contain it.
const maxName = 4096

// keysOf refuses a name whose keys would not share a slot.
func keysOf(prefix, name string) (wire.Keys, error) {
	switch {
	case name == "":
		return wire.Keys{}, errors.New("the name of a lock must not be empty")
	case name[0] == '}':
		return wire.Keys{}, errors.New("the name must not begin with '}', its hash tag would be empty")
	case len(name) > maxName:
		return wire.Keys{}, fmt.Errorf("the name has %d bytes, more than %d", len(name), maxName)
	}
	tagged := name
	if !hasTag(name) {
		tagged = "{" + name + "}"
	}
	// One allocation for all keys: there may be many waiters.
	all := prefix + ":" + tagged + prefix + "-queue:" + tagged + prefix + "-state:" + tagged
	lock := len(prefix) + len(":") + len(tagged)
	queue := lock + len("-queue")
	return wire.Keys{
		Name:   name,
		Lock:   all[:lock],
		Queue:  all[lock : lock+queue],
		State:  all[lock+queue:],
		Tagged: all[lock-len(tagged) : lock],
	}, nil
}

// hasTag tells whether Redis hashes only a part of the name: the text between its first '{' and the
// next '}', if that is not empty (redis.io, Redis Cluster specification, "Hash tags").
func hasTag(name string) bool {
	_, rest, found := strings.Cut(name, "{")
	if !found {
		return false
	}
	tag, _, found := strings.Cut(rest, "}")
	return found && tag != ""
}

// keysFrom is the inverse of keysOf, for the locks that SCAN finds. False: key is not the key of a lock.
func keysFrom(prefix, key string) (wire.Keys, bool) {
	tagged, found := strings.CutPrefix(key, prefix+":")
	if !found || !hasTag(tagged) || tagged[0] == '}' {
		return wire.Keys{}, false
	}
	k, err := keysOf(prefix, tagged)
	return k, err == nil
}
