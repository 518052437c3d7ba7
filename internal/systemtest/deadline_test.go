package systemtest

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// advised are the timeouts of docs/guarantees.md.
func advised(o *rueidis.ClientOption) {
	o.ConnWriteTimeout = 2 * time.Second
	o.Dialer = net.Dialer{Timeout: time.Second, KeepAlive: time.Second}
}

// manyHeld is some locks of one Locker, and when the Context of each of them ended.
type manyHeld struct {
	names []string
	locks map[string]*redislock.Lock
	mu    sync.Mutex
	ended map[string]time.Time
}

// holdMany takes n locks at once.
func holdMany(ctx context.Context, l *redislock.Locker, n int, opts ...redislock.Option) *manyHeld {
	GinkgoHelper()
	m := &manyHeld{locks: map[string]*redislock.Lock{}, ended: map[string]time.Time{}}
	var all sync.WaitGroup
	for range n {
		name := NewName()
		m.names = append(m.names, name)
		all.Go(func() {
			defer GinkgoRecover()
			lock := MustAcquire(ctx, l, name, opts...)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.locks[name] = lock
			context.AfterFunc(lock.Context(), func() {
				now := time.Now()
				m.mu.Lock()
				defer m.mu.Unlock()
				m.ended[name] = now
			})
		})
	}
	all.Wait()
	Expect(m.locks).To(HaveLen(n))
	return m
}

// endOf is when the Context of a lock ended, which it has.
func (m *manyHeld) endOf(name string) (at time.Time) {
	GinkgoHelper()
	Eventually(func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		at = m.ended[name]
		return !at.IsZero()
	}).Should(BeTrue(), name)
	return at
}

// heldTwice are those that somebody else was granted, at this time of the same machine's clock, while
// their Context lived.
func (m *manyHeld) heldTwice(granted map[string]time.Time) (twice []string) {
	GinkgoHelper()
	for name, at := range granted {
		Eventually(m.locks[name].Context().Done()).WithTimeout(5*time.Minute).Should(BeClosed(), name)
		if late := m.endOf(name).Sub(at); late > 0 {
			twice = append(twice, fmt.Sprintf("%s: its Context lived for %v beside the next one's grant", name, late))
		}
	}
	return twice
}

func (m *manyHeld) deadlines() map[string]time.Time {
	all := map[string]time.Time{}
	for name, lock := range m.locks {
		all[name], _ = lock.Deadline()
	}
	return all
}

// renewedOrLost returns when each lock has been renewed once more, or is lost.
func (m *manyHeld) renewedOrLost() {
	GinkgoHelper()
	before := m.deadlines()
	for name, lock := range m.locks {
		Eventually(func() bool {
			now, _ := lock.Deadline()
			return lock.Context().Err() != nil || now.After(before[name])
		}).WithTimeout(2*time.Minute).Should(BeTrue(), name)
	}
}

// waitForAll has l wait for all of these locks. What it returns waits until it has had each of them, and tells
// when the server granted them: the fencing token is that time, in microseconds.
func (m *manyHeld) waitForAll(ctx context.Context, l *redislock.Locker) (granted func() map[string]time.Time) {
	GinkgoHelper()
	var mu sync.Mutex
	at := map[string]time.Time{}
	var all sync.WaitGroup
	for _, name := range m.names {
		all.Go(func() {
			defer GinkgoRecover()
			lock := MustAcquire(ctx, l, name)
			mu.Lock()
			at[name] = time.UnixMicro(lock.Fence())
			mu.Unlock()
			Expect(lock.Release(context.Background())).To(Succeed())
		})
	}
	for _, name := range m.names {
		Eventually(WaitingFor(l, name)).Should(BeNumerically(">=", 1))
	}
	return func() map[string]time.Time {
		all.Wait()
		return at
	}
}

// Nobody acts past the deadline: whatever a holder's renewal hangs in, its Context has ended when
// somebody else is granted the lock.
var _ = Describe("Context has ended before the next one's grant", func() {
	for i := range Topologies {
		here := &Topologies[i]
		if here.Name == "sentinel" {
			continue // it is standalone with watchers
		}
		for name, change := range map[string]func(*rueidis.ClientOption){
			"rueidis' timeouts":    func(*rueidis.ClientOption) {},
			"the advised timeouts": advised,
		} {
			DescribeTable("though connections break and new ones are silent, with "+name+" ["+here.Name+"]", Label(here.Name),
				func(ctx SpecContext, lease time.Duration) {
					s, _, stop, err := here.Own()
					Expect(err).NotTo(HaveOccurred())
					DeferCleanup(stop)
					network := NewProxy(s.Addr())
					first, err := redislock.New(Connect(network.Addr(), change), redislock.Options{})
					Expect(err).NotTo(HaveOccurred())
					DeferCleanup(first.Close)

					held := holdMany(ctx, first, 30, redislock.WithLease(lease))
					second := NewLocker(s.Addr())
					// The calls of a waiter have no end: a dial of such a call holds up renewals.
					busy := MustAcquire(ctx, second, NewName())
					waiter := Acquiring(ctx, first, busy.Name(), 1)
					granted := held.waitForAll(ctx, second)
					network.BlackHole(true)
					network.CutAll()
					Expect(held.heldTwice(granted())).To(BeEmpty())
					network.BlackHole(false)
					Expect(busy.Release(ctx)).To(Succeed())
					Expect((<-waiter).Release(ctx)).To(Succeed())
				},
				Entry("lease 3 s", 3*time.Second),
				Entry("lease 10 s", 10*time.Second),
			)
		}
	}

	It("though 1,000 tries find the library flushed", func(ctx SpecContext) {
		s := OwnServer()
		network := NewProxy(s.Addr())
		first, second := NewLocker(network.Addr()), NewLocker(s.Addr())
		held := holdMany(ctx, first, 300, redislock.WithLease(3*time.Second))
		ending, cancel := context.WithCancel(ctx)
		defer cancel()
		network.SetDelay(2500 * time.Microsecond) // 5 ms a round trip
		granted := map[string]time.Time{}
		var mu sync.Mutex
		var waiting sync.WaitGroup
		for _, name := range held.names {
			waiting.Go(func() {
				lock, err := second.Acquire(ending, name)
				if err != nil {
					return // the first one kept it
				}
				mu.Lock()
				granted[name] = time.UnixMicro(lock.Fence())
				mu.Unlock()
				_ = lock.Release(context.Background())
			})
		}
		for _, name := range held.names {
			Eventually(WaitingFor(second, name)).Should(Equal(1))
		}
		// In the middle of a round of renewals: the others find the library missing, as the tries do.
		client := Connect(s.Addr())
		before := held.deadlines()
		Eventually(func() (renewed int) {
			for name, now := range held.deadlines() {
				if now.After(before[name]) {
					renewed++
				}
			}
			return renewed
		}).WithPolling(time.Millisecond).Should(BeNumerically(">=", len(held.names)/10))
		Expect(Redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		var tries sync.WaitGroup
		for range 1000 {
			tries.Go(func() {
				if lock, err := first.TryAcquire(ctx, NewName()); err == nil {
					_ = lock.Release(ctx)
				}
			})
		}
		tries.Wait()
		held.renewedOrLost() // once, of a call that hung in the loader
		held.renewedOrLost()
		cancel()
		waiting.Wait()
		Expect(held.heldTwice(granted)).To(BeEmpty())
	})

	It("though one node of a cluster hangs and the library is gone on another one", func(ctx SpecContext) {
		c, err := redistest.StartCluster(3, 0, Calm)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(c.Stop)
		client := Connect(c.Addrs()[0])
		Expect(redislock.Load(ctx, client)).To(Succeed())
		locker, err := redislock.New(client, redislock.Options{LoadMode: redislock.LoadVerify})
		Expect(err).NotTo(HaveOccurred())
		held := holdMany(ctx, locker, 60)
		onNode := map[*redistest.Server][]string{}
		for _, name := range held.names {
			owner := c.Owner(KeysOf(name)[0])
			onNode[owner] = append(onNode[owner], name)
		}
		flushed, hung := c.Servers[0], c.Servers[1]
		names := onNode[flushed]
		Expect(len(names)).To(BeNumerically(">", 3))

		Expect(hung.Pause()).To(Succeed())
		DeferCleanup(locker.Close)
		DeferCleanup(hung.Resume)
		Expect(flushed.Do("FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		// These calls have no end: each of them asks the hung node, too, one after the other.
		ending, cancel := context.WithCancel(ctx)
		var others sync.WaitGroup
		for i := range 20 {
			others.Go(func() {
				if lock, err := locker.Acquire(ending, fmt.Sprintf("other-%d:{%s}", i, names[0])); err == nil {
					_ = lock.Release(context.Background())
				}
			})
		}
		before := held.deadlines()
		gone := map[string]bool{}
		for _, name := range names {
			Eventually(func() bool {
				n, err := flushed.Do("EXISTS", KeysOf(name)[0]).AsInt64()
				Expect(err).NotTo(HaveOccurred())
				gone[name] = n == 0
				return n == 0 || held.deadlines()[name].After(before[name]) // by a call that came before
			}).Should(BeTrue(), name)
		}
		Expect(flushed.Do("FUNCTION", "LOAD", "REPLACE", redislock.Source()).Error()).NotTo(HaveOccurred())
		direct := Directly(flushed.Addr())
		for _, name := range names {
			if gone[name] {
				Expect(FCall(direct, "lock_acquire", append(KeysOf(name), "signal:{"+name+"}"), "another", "60000", "0").AsIntSlice()).To(Hold())
				Expect(held.locks[name].Context().Err()).To(HaveOccurred(), name)
			}
		}
		cancel()
		Expect(hung.Resume()).To(Succeed())
		others.Wait()
	})

	It("with at least 100 ms of its lease left on the server, though the link swallows all bytes", func(ctx SpecContext) {
		const lease = 2 * time.Second
		s := OwnServer()
		network := NewProxy(s.Addr())
		client := Connect(s.Addr())
		held := holdMany(ctx, NewLocker(network.Addr()), 12, redislock.WithLease(lease))
		network.BlackHole(true)
		var all sync.WaitGroup
		for name, lock := range held.locks {
			all.Go(func() {
				defer GinkgoRecover()
				expires, err := Redis(client, "PEXPIRETIME", KeysOf(name)[0]).ToInt64()
				Expect(err).NotTo(HaveOccurred())
				// A timer for the same moment: what it is late by is this machine's doing.
				deadline, _ := lock.Deadline()
				var late time.Duration
				timer := make(chan struct{})
				time.AfterFunc(time.Until(deadline.Add(-lease/10)), func() {
					late = time.Since(deadline.Add(-lease / 10))
					close(timer)
				})
				<-lock.Context().Done()
				Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
				<-timer
				Expect(time.UnixMilli(expires).Sub(held.endOf(name)) + late).To(BeNumerically(">=", 100*time.Millisecond))
			})
		}
		all.Wait()
		network.BlackHole(false)
	})

	DescribeTable("though the server's clock is faster", Label("server-clock"), func(ctx SpecContext, lease time.Duration, rate float64) {
		s, err := redistest.StartWithClock()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(s.Stop)
		network := NewProxy(s.Addr())
		client := Connect(s.Addr())
		Expect(s.SpeedClock(rate)).To(Succeed())
		held := holdMany(ctx, NewLocker(network.Addr()), 12, redislock.WithLease(lease))
		network.BlackHole(true)
		var all sync.WaitGroup
		for name, lock := range held.locks {
			all.Go(func() {
				defer GinkgoRecover()
				<-lock.Context().Done()
				Expect(PTTL(client, KeysOf(name)[0])).To(BeNumerically(">", 0))
			})
		}
		all.Wait()
		network.BlackHole(false)
	},
		// Less than what the notice covers, as the machine may be slow.
		Entry("by 2 %, lease 3 s", 3*time.Second, 1.02),
		Entry("by 1.5 %, lease 10 s", 10*time.Second, 1.015),
	)

	It("leaves out the millisecond in which Redis 8 may remove a key, also after an extend", func(ctx SpecContext) {
		l := NewLocker(OwnServer().Addr())
		early := func(call func() *redislock.Lock) {
			GinkgoHelper()
			Eventually(func() bool {
				before := time.Now()
				deadline, _ := call().Deadline()
				return deadline.Before(before.Add(minute)) // unless the call was sent a millisecond later
			}).Should(BeTrue())
		}
		var lock *redislock.Lock
		early(func() *redislock.Lock {
			lock = MustAcquire(ctx, l, NewName(), redislock.WithLease(minute), redislock.WithoutRenewal())
			return lock
		})
		early(func() *redislock.Lock {
			Expect(lock.Extend(ctx, minute)).To(Succeed())
			return lock
		})
	})
})
