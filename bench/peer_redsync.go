package main

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/go-redsync/redsync/v4"
	pool "github.com/go-redsync/redsync/v4/redis/goredis/v9"
	goredis "github.com/redis/go-redis/v9"
)

type redsyncLocker struct {
	client *goredis.Client
	sync   *redsync.Redsync
	opts   []redsync.Option
}

func openRedsync(t target) (locker, error) { return newRedsync(t) }

func openRedsyncFast(t target) (locker, error) {
	return newRedsync(t, redsync.WithRetryDelay(time.Millisecond), redsync.WithTries(math.MaxInt))
}

func newRedsync(t target, opts ...redsync.Option) (locker, error) {
	client, err := t.goRedis()
	if err != nil {
		return nil, err
	}
	return redsyncLocker{client, redsync.New(pool.NewPool(client)), opts}, nil
}

func (r redsyncLocker) lock(ctx context.Context, name string) (func() error, error) {
	releasing := context.WithoutCancel(ctx)
	mutex := r.sync.NewMutex(name, r.opts...)
	for {
		err := mutex.LockContext(ctx)
		var taken *redsync.ErrTaken
		switch {
		case err == nil:
			return func() error {
				_, err := mutex.UnlockContext(releasing)
				return err
			}, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, redsync.ErrFailed) && !errors.As(err, &taken):
			return nil, err
		}
		// It has tried 32 times: who wants to wait longer calls again.
	}
}

func (r redsyncLocker) close() { _ = r.client.Close() }
