package systemtest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// elsewhere is a primary that does not have the slot of a key.
func elsewhere(c *redistest.Cluster, key string) *redistest.Server {
	owner := c.Owner(key)
	for _, p := range c.Primaries() {
		if p != owner {
			return p
		}
	}
	return nil
}

// waysToMove are how a slot with locks goes to another primary: key by key on every server, and in one step
// where the server can do that.
func waysToMove() (entries []any) {
	keyByKey := func(c *redistest.Cluster, key string) error { return c.Move(key, elsewhere(c, key), func(int) {}) }
	entries = append(entries, Entry("key by key", keyByKey))
	if redistest.MovesAtOnce() {
		atOnce := func(c *redistest.Cluster, key string) error { return c.MoveAtOnce(key, elsewhere(c, key)) }
		entries = append(entries, Entry("in one step", Label("at-once"), atOnce))
	}
	return entries
}

var _ = Describe("a slot that moves", func() {
	DescribeTable("back and forth under load: a confirmed lock is not lost, and the order is kept",
		append([]any{func(ctx SpecContext, move func(*redistest.Cluster, string) error) {
			c, addr := failingCluster()
			key := KeysOf("x")[0]
			crew := newCrew(ctx, addr, "x")

			// The load: locks in the same slot that are taken and given back all the time.
			var moves, grants atomic.Int64
			loaded, stop := context.WithCancel(ctx)
			workers := make(chan error, 9)
			for i := range cap(workers) {
				name, locker := fmt.Sprintf("%d{x}", i%3), crewLocker(addr)
				go func() {
					for loaded.Err() == nil {
						err := locker.Do(ctx, name, func(context.Context, *redislock.Lock) error {
							grants.Add(1)
							return nil
						})
						// A busy machine takes longer than 2 s for the keys: see docs/guarantees.md, "A slot that moves".
						if err != nil && !errors.Is(err, redislock.ErrLost) {
							workers <- err
							return
						}
					}
					workers <- nil
				}()
			}
			mover := make(chan error, 1)
			go func() {
				for loaded.Err() == nil {
					if err := move(c, key); err != nil {
						mover <- err
						return
					}
					moves.Add(1)
				}
				mover <- nil
			}()
			// More moves and grants between any two turns.
			goOn := func() {
				GinkgoHelper()
				moved, granted := moves.Load(), grants.Load()
				Eventually(ctx, func() bool { return moves.Load() > moved && grants.Load() > granted }).
					WithTimeout(minute).Should(BeTrue())
			}
			for len(crew.waiting) > 0 {
				goOn()
				crew.nobodyElse()
				Expect(crew.lock.Context().Err()).NotTo(HaveOccurred())
				Expect(crew.lock.Release(ctx)).To(Succeed())
				crew.next(ctx, 0)
			}
			goOn()
			Expect(crew.lock.Release(ctx)).To(Succeed())
			stop()
			Eventually(ctx, mover).WithTimeout(minute).Should(Receive(BeNil()))
			for range cap(workers) {
				Eventually(ctx, workers).WithTimeout(minute).Should(Receive(BeNil()))
			}
		}}, waysToMove()...)...)

	It("key by key for longer than the silence of those who wait: they keep their places", func(ctx SpecContext) {
		c, addr := failingCluster()
		client := Connect(addr)
		Expect(redislock.Load(ctx, client)).To(Succeed())
		k := KeysOf("x")
		from := c.Owner(k[0])
		raw := RawLock{Client: client, Lock: k[0], Queue: k[1], State: k[2]}
		raw.Contended("first", "second")
		// They have been silent for 13 s: nobody can check in during the move.
		for _, token := range []string{"first", "second"} {
			entry := AsText(Redis(client, "HGET", raw.State, "@"+token))
			called, rest, _ := strings.Cut(entry, " ")
			ms, err := strconv.ParseInt(called, 10, 64)
			Expect(err).NotTo(HaveOccurred())
			Expect(Redis(client, "HSET", raw.State, "@"+token, fmt.Sprint(ms-13_000)+" "+rest).Error()).NotTo(HaveOccurred())
		}
		Expect(c.Move(k[0], elsewhere(c, k[0]), func(moved int) {
			defer GinkgoRecover()
			if moved == 0 {
				at := raw.With(Directly(from.Addr()))
				Expect(at.Call("lock_acquire", "first", 1000, Long).Error()).To(MatchError(HavePrefix("TRYAGAIN")))
				Expect(at.Release("h")).To(Equal(int64(1)))
			}
		})).To(Succeed())
		Expect(raw.Acquire("second", 1000, Long)).To(Queued(1))
		Expect(raw.Inspect().Holder).To(Equal("first"), "told as soon as the slot had moved")
	})
})
