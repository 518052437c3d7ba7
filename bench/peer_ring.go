package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/rueidis"
)

// The ring is no lock but the limit of what a lock with hand-over can reach: n clients pass one
// token round. Client i waits in BLPOP on its own list; to pass the token on, it does RPUSH to the
// list of client i+1. A hand-over is one round trip, as with the lock: RPUSH in, the reply of
// another one's BLPOP out. A cycle is two commands, where the lock needs three (it has to queue).
// It is on rueidis as the lock is, so that what is seen is the lock's cost and not the client's.
//
// "ring" makes two calls, as a user would: RPUSH, and when that is answered, BLPOP. "ring piped"
// sends both in one write on one connection, so that its client is back in the queue at once.
// "ring of three" makes the calls of a lock without the lock: FCALL of a function that does nothing,
// BLPOP, FCALL of one that does the RPUSH. "ring of twenty" has these two functions run the twenty
// commands that lock_acquire and lock_release run in a cycle, with fixed arguments and no thought in
// between: the limit of what a lock can reach that keeps in Redis what this one keeps there.
const (
	ringName       = "ring"
	pipedRingName  = "ring piped"
	threeRingName  = "ring of three"
	twentyRingName = "ring of twenty"
)

func isRing(name string) bool {
	return slices.Contains([]string{ringName, pipedRingName, threeRingName, twentyRingName}, name)
}

type ringClient struct {
	client    rueidis.Client
	dedicated rueidis.DedicatedClient // of the piped ring
	giveBack  func()
	own, next int
	first     bool   // has to put the token into the ring
	enter     string // the functions by which it queues and pushes, if it does
	pass      string
	passing   string // piped: the list to push to with the next call
	name      string
	list      string // its own
}

func openRing(t target, i, n int, name string) (locker, error) {
	client, err := t.rueidis()
	if err != nil {
		return nil, err
	}
	r := &ringClient{client: client, own: i, next: (i + 1) % n, first: i == 0}
	switch name {
	case pipedRingName:
		r.dedicated, r.giveBack = client.Dedicate()
	case threeRingName:
		r.enter, r.pass = "bare_enter", "bare_push"
	case twentyRingName:
		r.enter, r.pass = "bare_enqueue", "bare_hand_over"
	}
	if r.enter != "" {
		err = loadBare(client)
	}
	return r, err
}

func ringList(name string, i int) string { return fmt.Sprintf("ring:%s:%d", name, i) }

// lock waits for the token. It leaves a BLPOP behind when ctx ends: then the ring is done with.
func (r *ringClient) lock(ctx context.Context, name string) (func() error, error) {
	own, next := ringList(name, r.own), ringList(name, r.next)
	r.name, r.list = name, own
	if r.first {
		r.first = false
		if err := r.push(ctx, own); err != nil {
			return nil, err
		}
	}
	if r.enter != "" {
		keys := append((&rawLock{name: name}).keys(), own)
		enter := r.client.B().Fcall().Function(r.enter).Numkeys(4).Key(keys...).Arg(own, longLease, longWait).Build()
		if err := r.client.Do(ctx, enter).Error(); err != nil {
			return nil, err
		}
	}
	blpop := r.client.B().Blpop().Key(own).Timeout(0).Build()
	var err error
	switch {
	case r.dedicated == nil:
		err = r.client.Do(ctx, blpop).Error()
	case r.passing != "":
		push := r.client.B().Rpush().Key(r.passing).Element("token").Build()
		r.passing = ""
		replies := r.dedicated.DoMulti(ctx, push, blpop)
		err = errors.Join(replies[0].Error(), replies[1].Error())
	default:
		err = r.dedicated.Do(ctx, blpop).Error()
	}
	if err != nil {
		return nil, err
	}
	return func() error {
		if r.dedicated != nil {
			r.passing = next
			return nil
		}
		return r.push(context.WithoutCancel(ctx), next)
	}, nil
}

// flush passes the token on, when lock is not called again.
func (r *ringClient) flush(ctx context.Context) error {
	if r.passing == "" {
		return nil
	}
	next := r.passing
	r.passing = ""
	return r.push(ctx, next)
}

func (r *ringClient) push(ctx context.Context, list string) error {
	if r.pass != "" {
		return r.client.Do(ctx, (&rawLock{name: r.name}).call(r.client, r.pass, r.list, list)).Error()
	}
	return r.client.Do(ctx, r.client.B().Rpush().Key(list).Element("token").Build()).Error()
}

func (r *ringClient) close() {
	if r.list != "" {
		keys := append((&rawLock{name: r.name}).keys(), r.list)
		r.client.Do(context.Background(), r.client.B().Del().Key(keys...).Build())
	}
	if r.giveBack != nil {
		r.giveBack()
	}
	r.client.Close()
}
