package main

import (
	"context"

	"github.com/redis/rueidis"
)

// bareLibrary has functions that run the commands of lock.lua's and decide nothing: what is above
// their cost is what this library could save without keeping less in Redis. TestBare sees to it
// that the commands are the same. bare_enter and bare_push have none of them.
const bareLibrary = `#!lua name=bare
redis.register_function('bare_enter', function() return { 0, 1, 1000, 1795457705672 } end)
redis.register_function('bare_push', function(keys, args) return redis.call('RPUSH', args[2], args[1]) end)

redis.register_function('bare_enqueue', function(keys, args)
  redis.call('HMGET', keys[3], 'fence', 'last')
  redis.call('GETRANGE', keys[1], '0', '16384')
  redis.call('TIME')
  redis.call('LLEN', keys[4])
  redis.call('ZADD', keys[2], 'NX', '1795457705672123', args[1])
  redis.call('ZCARD', keys[2])
  redis.call('PEXPIRE', keys[2], '30000', 'GT')
  redis.call('HSET', keys[3], '@' .. args[1], '1795457705672 30000 10000 lock-signal:AbCdEfGhIjK', 'last', '1795457705672123')
  return { 0, 1, 1000, 1795457705672 }
end)

redis.register_function('bare_hand_over', function(keys, args)
  redis.call('GETRANGE', keys[1], '0', '16384')
  local first = redis.call('ZRANGE', keys[2], '0', '0')[1] or args[1]
  redis.call('TIME')
  redis.call('HMGET', keys[3], 'fence', '@' .. first)
  redis.call('RPUSH', args[2], '1795457705672123 1795457705672 AbCdEfGhIjKlMnOpQrStUv')
  redis.call('PEXPIRE', args[2], '3200000') -- the token rests here between slices
  redis.call('SET', keys[1], first, 'PX', '2000')
  redis.call('ZREM', keys[2], first)
  redis.call('HDEL', keys[3], '@' .. first)
  redis.call('HSET', keys[3], 'fence', '1795457705672123')
  redis.call('PEXPIRE', keys[3], '630000', 'GT')
  redis.call('PTTL', keys[3]) -- it lives longer already: those who wait here keep their places for long
  return 1
end)

redis.register_function('bare_acquire', function(keys, args)
  redis.call('HMGET', keys[3], 'fence', 'last')
  redis.call('GETRANGE', keys[1], '0', '16384')
  redis.call('TIME')
  redis.call('ZRANGE', keys[2], '0', '0')
  redis.call('HSET', keys[3], 'fence', '1795457705672123')
  redis.call('SET', keys[1], args[1], 'PX', '10000')
  redis.call('PEXPIRE', keys[3], '610000')
  return { 1, 1795457705672123, 10000, 1795457705672 }
end)

redis.register_function('bare_release', function(keys)
  redis.call('GETRANGE', keys[1], '0', '16384')
  redis.call('ZRANGE', keys[2], '0', '0')
  redis.call('HGET', keys[3], 'fence')
  redis.call('UNLINK', keys[1])
  redis.call('PEXPIRE', keys[3], '600000')
  return 1
end)
`

func loadBare(c rueidis.Client) error {
	return c.Do(context.Background(), c.B().FunctionLoad().Replace().FunctionCode(bareLibrary).Build()).Error()
}

// bareName is a free lock without a lock: two calls that run what lock_acquire and lock_release do.
const bareName = "two bare functions"

type bare struct{ client rueidis.Client }

func openBare(t target) (locker, error) {
	client, err := t.rueidis()
	if err != nil {
		return nil, err
	}
	if err := loadBare(client); err != nil {
		client.Close()
		return nil, err
	}
	return bare{client}, nil
}

func (b bare) lock(ctx context.Context, name string) (func() error, error) {
	l := &rawLock{name: name}
	token := newToken()
	acquire := b.client.B().Fcall().Function("bare_acquire").Numkeys(4).Key(append(l.keys(), "lock-signal:AbCdEfGhIjK")...).
		Arg(token, longLease, longWait).Build()
	if _, err := b.client.Do(ctx, acquire).ToArray(); err != nil {
		return nil, err
	}
	return func() error { return b.client.Do(ctx, l.call(b.client, "bare_release", token)).Error() }, nil
}

func (b bare) close() { b.client.Close() }
