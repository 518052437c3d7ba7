package main

import (
	"context"
	"net/url"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// etcd is a yardstick of another kind: a lock of a store that keeps each write on disk before it
// answers, and on a majority of its nodes.
type etcd struct {
	client  *clientv3.Client
	session *concurrency.Session
}

func openEtcd(t target) (locker, error) {
	u, err := url.Parse(t.url)
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{u.Host}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	return &etcd{client: client}, err
}

func (e *etcd) lock(ctx context.Context, name string) (func() error, error) {
	if err := e.renew(); err != nil {
		return nil, err
	}
	mutex := concurrency.NewMutex(e.session, "/"+name)
	if err := mutex.Lock(ctx); err != nil {
		return nil, err
	}
	return func() error { return mutex.Unlock(context.WithoutCancel(ctx)) }, nil
}

// renew sees to a session, the lease of all locks of a process: a new one if the last has run out.
func (e *etcd) renew() (err error) {
	if e.session != nil {
		select {
		case <-e.session.Done():
		default:
			return nil
		}
	}
	e.session, err = concurrency.NewSession(e.client, concurrency.WithTTL(int(peerLease.Seconds())))
	return err
}

func (e *etcd) close() {
	if e.session != nil {
		_ = e.session.Close()
	}
	_ = e.client.Close()
}
