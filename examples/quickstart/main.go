// Command quickstart is the program of the README.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:      []string{"127.0.0.1:6379"},
		ConnWriteTimeout: 2 * time.Second, // notice a dead server within seconds
		Dialer:           net.Dialer{Timeout: time.Second, KeepAlive: time.Second},
	})
	if err != nil {
		return err
	}
	defer client.Close()
	locker, err := redislock.New(client, redislock.Options{})
	if err != nil {
		return err
	}
	defer locker.Close()

	// Waits for its turn: at most 5 seconds, then the error is ErrNotAcquired.
	return locker.Do(ctx, "orders", func(ctx context.Context, lock *redislock.Lock) error {
		fmt.Println("my turn, with fencing token", lock.Fence())
		return ctx.Err() // ctx ends when the lock may be lost: pass it to all that you call
	}, redislock.WithWait(5*time.Second))
}
