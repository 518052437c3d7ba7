package main

import (
	"context"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// caching is the algorithm of rueidislock as its documentation describes it, with one key
// (KeyMajority 1, for one server) and NoLoopTracking: SET NX PXAT, and a GET of the key which has
// the server tell this client of its next change; then it tries again. The module itself was not to
// be had where this was written.
type caching struct {
	client rueidis.Client
	del    *rueidis.Lua

	mu      sync.Mutex
	changed map[string]chan struct{} // by key; of capacity 1
}

const (
	cachingValidity = 5 * time.Second
	cachingRetry    = cachingValidity / 2 // when no notification comes
)

func openCaching(t target) (locker, error) {
	c := &caching{changed: make(map[string]chan struct{}), del: delIfMine}
	var err error
	c.client, err = t.rueidis(func(o *rueidis.ClientOption) {
		o.ClientTrackingOptions = []string{"OPTOUT", "NOLOOP"}
		o.OnInvalidations = c.invalidated
	})
	return c, err
}

var delIfMine = rueidis.NewLuaScript(`return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0`)

func (c *caching) invalidated(messages []rueidis.RedisMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wake := func(ch chan struct{}) {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	if messages == nil { // the connection is gone
		for _, ch := range c.changed {
			wake(ch)
		}
	}
	for _, m := range messages {
		if key, err := m.ToString(); err == nil && c.changed[key] != nil {
			wake(c.changed[key])
		}
	}
}

// watch returns what is told of changes of the key. One wait for a name at a time.
func (c *caching) watch(key string) chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan struct{}, 1)
	c.changed[key] = ch
	return ch
}

func (c *caching) unwatch(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.changed, key)
}

func (c *caching) lock(ctx context.Context, name string) (func() error, error) {
	key, token := "rueidislock:0:"+name, newToken()
	changed := c.watch(key)
	defer c.unwatch(key)
	timer := time.NewTimer(cachingRetry)
	defer timer.Stop()
	for {
		until := time.Now().Add(cachingValidity).UnixMilli()
		replies := c.client.DoMulti(ctx,
			c.client.B().Set().Key(key).Value(token).Nx().PxatMillisecondsTimestamp(until).Build(),
			c.client.B().Get().Key(key).Build())
		err := replies[0].Error()
		if err == nil {
			return func() error {
				return c.del.Exec(context.WithoutCancel(ctx), c.client, []string{key}, []string{token}).Error()
			}, nil
		}
		if !rueidis.IsRedisNil(err) {
			return nil, err
		}
		timer.Reset(cachingRetry)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *caching) close() { c.client.Close() }
