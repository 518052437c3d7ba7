package main

import (
	"context"
	"crypto/rand"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// peerLease is the lease of the peers that have no default.
const peerLease = 10 * time.Second

func newToken() string { return rand.Text()[:22] }

// python is the algorithm of python-redis-lock: SET NX EX; who does not get it waits in BLPOP on
// one list that all share, and tries again. A release deletes the lock and the list, and pushes one
// element. Who comes by at that moment is first, and the one that was woken waits again.
type python struct{ client rueidis.Client }

func openPython(t target) (locker, error) {
	client, err := t.rueidis()
	return python{client}, err
}

var pythonRelease = rueidis.NewLuaScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[2])
redis.call('LPUSH', KEYS[2], 1)
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[1])
return 1`)

func (p python) lock(ctx context.Context, name string) (func() error, error) {
	key, signal, token := "lock:"+name, "lock-signal:"+name, newToken()
	for {
		err := p.client.Do(ctx, p.client.B().Set().Key(key).Value(token).Nx().Ex(peerLease).Build()).Error()
		if err == nil {
			return func() error {
				return pythonRelease.Exec(context.WithoutCancel(ctx), p.client, []string{key, signal},
					[]string{token, strconv.FormatInt(peerLease.Milliseconds(), 10)}).Error()
			}, nil
		}
		if rueidis.IsRedisNil(err) {
			err = p.client.Do(ctx, p.client.B().Blpop().Key(signal).Timeout(peerLease.Seconds()).Build()).Error()
		}
		if err != nil && !rueidis.IsRedisNil(err) {
			return nil, err
		}
	}
}

func (p python) close() { p.client.Close() }
