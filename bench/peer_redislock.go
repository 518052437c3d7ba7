package main

import (
	"context"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

type ours struct {
	client rueidis.Client
	locker *redislock.Locker
}

func openOurs(t target) (locker, error) {
	client, err := t.rueidis()
	if err != nil {
		return nil, err
	}
	l, err := redislock.New(client, redislock.Options{})
	if err != nil {
		client.Close()
		return nil, err
	}
	return ours{client, l}, nil
}

func (o ours) lock(ctx context.Context, name string) (func() error, error) {
	lock, err := o.locker.Acquire(ctx, name)
	if err != nil {
		return nil, err
	}
	return func() error { return lock.Release(ctx) }, nil
}

func (o ours) close() {
	o.locker.Close()
	o.client.Close()
}
