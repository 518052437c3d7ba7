// A process whose wall clock can be stepped: it is built with a package time that has Step, see
// clock_client_test.go. It does what its input says, and answers each line with one.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

func main() {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("ADDR")}, DisableCache: true})
	must(err)
	locker, err := redislock.New(client, redislock.Options{Lease: 3 * time.Second, MaxHold: time.Minute})
	must(err)

	var lock *redislock.Lock
	acquired := make(chan *redislock.Lock, 1)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var word string
		var n int64
		_, _ = fmt.Sscan(lines.Text(), &word, &n)
		switch word {
		case "step": // n seconds off; answers with the time
			time.Step(n)
			fmt.Println(time.Now().Unix())
		case "acquire":
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
				defer cancel()
				lock, err := locker.Acquire(ctx, os.Getenv("NAME"))
				must(err)
				acquired <- lock
			}()
			fmt.Println("asked")
		case "held": // answers with the fencing token, and how long the lock is surely held
			if lock == nil {
				lock = <-acquired
			}
			fmt.Println(lock.Fence(), left(lock))
		case "renewed": // n times from now on; answers in the same way
			for ; n > 0; n-- {
				before, _ := lock.Deadline()
				for now := before; !now.After(before) && lock.Context().Err() == nil; now, _ = lock.Deadline() {
					time.Sleep(time.Millisecond)
				}
			}
			fmt.Println(lock.Fence(), left(lock))
		case "release":
			must(lock.Release(context.Background()))
			lock = nil
			fmt.Println("released")
		}
	}
}

// left is 0 if the lock is lost.
func left(lock *redislock.Lock) int64 {
	deadline, _ := lock.Deadline()
	if lock.Context().Err() != nil {
		return 0
	}
	return time.Until(deadline).Milliseconds()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
