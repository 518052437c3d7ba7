package main

import (
	"context"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"
)

type caching struct{ locker rueidislock.Locker }

// openMajority is rueidislock with its defaults: two of three keys, also on one server.
func openMajority(t target) (locker, error) { return openCaching(t, rueidislock.LockerOption{}) }

// openOneKey is what its README recommends for one server.
func openOneKey(t target) (locker, error) {
	return openCaching(t, rueidislock.LockerOption{KeyMajority: 1, NoLoopTracking: true})
}

func openCaching(t target, o rueidislock.LockerOption) (locker, error) {
	o.ClientBuilder = func(ours rueidis.ClientOption) (rueidis.Client, error) {
		return t.rueidis(func(c *rueidis.ClientOption) {
			c.ClientTrackingOptions, c.OnInvalidations = ours.ClientTrackingOptions, ours.OnInvalidations
			c.PipelineMultiplex = ours.PipelineMultiplex
		})
	}
	l, err := rueidislock.NewLocker(o)
	return caching{l}, err
}

// patience is until one that waits calls again. It might for ever: in v1.0.79, one whose acquire took
// longer than TryNextAfter (20 ms) waits for news of keys, though it may be that nobody holds them.
const patience = 5 * time.Second

func (c caching) lock(ctx context.Context, name string) (func() error, error) {
	for {
		waiting, giveUp := context.WithTimeout(ctx, patience)
		_, unlock, err := c.locker.WithContext(waiting, name)
		if err == nil {
			return func() error {
				unlock() // returns when the lock is released
				giveUp()
				return nil
			}, nil
		}
		giveUp()
		if waiting.Err() == nil || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (c caching) close() { c.locker.Close() }
