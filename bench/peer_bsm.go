package main

import (
	"context"
	"errors"
	"time"

	bsm "github.com/bsm/redislock"
	goredis "github.com/redis/go-redis/v9"
)

// peerLease is the lease of the peers that have no default.
const peerLease = 10 * time.Second

type bsmLocker struct {
	client *goredis.Client
	locker *bsm.Client
	retry  time.Duration
}

func openBSM(t target) (locker, error)     { return newBSM(t, 100*time.Millisecond) }
func openBSMFast(t target) (locker, error) { return newBSM(t, time.Millisecond) }

func newBSM(t target, retry time.Duration) (locker, error) {
	client, err := t.goRedis()
	if err != nil {
		return nil, err
	}
	return bsmLocker{client, bsm.New(client), retry}, nil
}

func (b bsmLocker) lock(ctx context.Context, name string) (func() error, error) {
	for {
		lock, err := b.locker.Obtain(ctx, name, peerLease, &bsm.Options{RetryStrategy: bsm.LinearBackoff(b.retry)})
		switch {
		case err == nil:
			return func() error { return lock.Release(context.WithoutCancel(ctx)) }, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		}
		// Without a deadline it gives up after the lease: who wants to wait longer calls again.
	}
}

func (b bsmLocker) close() { _ = b.client.Close() }
