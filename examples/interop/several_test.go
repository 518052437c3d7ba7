package interop_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// severalNames are taken together. `x` and `{x}` are one lock, and sorted by its key, not by either name. The bytes of
// U+FF21 come before those of U+1F600, and its UTF-16 units after them.
var severalNames = []string{"x", "{x}", "y", "\uff21", "\U0001f600"}

var _ = Describe("Go, Python and Node.js processes that take several locks at once", func() {
	It("never wait for each other in a circle, in 10,000 rounds", func(ctx SpecContext) {
		const rounds, users = 10_000, 4
		names, err := json.Marshal(severalNames)
		Expect(err).NotTo(HaveOccurred())
		f := newFleet(ctx, startServer().Addr())
		f.env = append(f.env, "NAMES="+string(names), fmt.Sprint("ROUNDS=", rounds), fmt.Sprint("USERS=", users),
			// A circle would last for ever, as leases are renewed.
			fmt.Sprint("PATIENCE=", soon.Milliseconds()))
		workers := []*worker{f.start("go several"), f.start("python several"), f.start("node several")}
		total := 0
		for _, w := range workers {
			Eventually(w.over).WithTimeout(4*time.Minute).Should(BeClosed(), w.kind)
			Expect(w.lines()).To(HaveExactElements(HavePrefix("done ")), w.kind)
			var done int
			_, err := fmt.Sscanf(w.lines()[0], "done %d", &done)
			Expect(err).NotTo(HaveOccurred())
			Expect(done).To(BeNumerically(">", rounds/20), "%s took part", w.kind)
			total += done
		}
		Expect(total).To(Equal(rounds))
		for _, name := range severalNames {
			f.name = name
			Expect(f.state(ctx)).To(And(HaveField("Held", 0), HaveField("Waiting", 0)))
		}
	}, SpecTimeout(5*time.Minute))
})

// takeSeveral is the worker in Go.
func takeSeveral() {
	fail := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(os.Getenv(name), 10, 64)
		fail(err)
		return n
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("ADDR")}, DisableCache: true})
	fail(err)
	defer client.Close()
	locker, err := redislock.New(client, redislock.Options{})
	fail(err)
	defer locker.Close()
	var names []string
	fail(json.Unmarshal([]byte(os.Getenv("NAMES")), &names))
	patience := redislock.WithWait(time.Duration(number("PATIENCE")) * time.Millisecond)
	rounds := number("ROUNDS")

	ctx := context.Background()
	var done atomic.Int64
	var all sync.WaitGroup
	for range number("USERS") {
		all.Go(func() {
			for {
				round, err := client.Do(ctx, client.B().Incr().Key("rounds").Build()).AsInt64()
				fail(err)
				if round > rounds {
					return
				}
				some := append([]string{}, names...)
				rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
				done.Add(1)
				err = locker.DoAll(ctx, some[:2+rand.IntN(2)], func(context.Context, []*redislock.Lock) error { return nil }, patience)
				if !errors.Is(err, redislock.ErrLost) { // the machine was too busy
					fail(err)
				}
			}
		})
	}
	all.Wait()
	fmt.Println("done", done.Load())
}
