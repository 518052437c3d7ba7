package systemtest

import (
	"context"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"weak"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// order notes who was served, name by name, in the order of the fences.
type order struct {
	mu     sync.Mutex
	fences map[string][]int64 // of the waiters of a name, by their place
}

// queues has waiters join the queue of each name, one after the other, at these Lockers in turn. Each
// releases the lock at once. It returns when all wait, and the group when all were served.
func (o *order) queues(ctx context.Context, names []string, observer *redislock.Locker, lockers ...*redislock.Locker) *sync.WaitGroup {
	GinkgoHelper()
	o.fences = map[string][]int64{}
	var all sync.WaitGroup
	for place, locker := range lockers {
		for _, name := range names {
			all.Go(func() {
				defer GinkgoRecover()
				lock := MustAcquire(ctx, locker, name)
				o.mu.Lock()
				o.fences[name][place] = lock.Fence()
				o.mu.Unlock()
				Expect(lock.Release(ctx)).To(Succeed())
			})
		}
		for _, name := range names {
			Eventually(ctx, WaitingFor(observer, name)).Should(Equal(place+1), name)
			o.mu.Lock()
			o.fences[name] = append(o.fences[name], 0)
			o.mu.Unlock()
		}
	}
	return &all
}

// overtaken are the names whose waiters were not served in the order of their arrival.
func (o *order) overtaken() (names []string) {
	for name, fences := range o.fences {
		for i, fence := range fences {
			if fence == 0 || i > 0 && fence < fences[i-1] {
				names = append(names, name)
				break
			}
		}
	}
	return names
}

func newNames(n int) (names []string) {
	for range n {
		names = append(names, NewName())
	}
	return names
}

// holdAll takes these locks for an hour, and makes no further call.
func holdAll(ctx context.Context, l *redislock.Locker, names []string) map[string]*redislock.Lock {
	GinkgoHelper()
	held := map[string]*redislock.Lock{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			defer GinkgoRecover()
			lock := MustAcquire(ctx, l, name, redislock.WithLease(time.Hour), redislock.WithoutRenewal())
			mu.Lock()
			defer mu.Unlock()
			held[name] = lock
		})
	}
	all.Wait()
	return held
}

var _ = Describe("many locks of one Locker", func() {
	It("a holder of 300 closes, 10 ms away: the order is kept on each, and no waiter is taken for dead", NodeTimeout(2*time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		network := NewProxy(s.Addr())
		observer := NewLocker(s.Addr())
		holder, first, second := NewLocker(network.Addr()), NewLocker(network.Addr()), NewLocker(network.Addr())
		names := newNames(300)
		holdAll(ctx, holder, names)
		var served order
		waiting := served.queues(ctx, names, observer, first, second, first, second)
		client := Connect(s.Addr())
		network.SetDelay(5 * time.Millisecond)
		Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
		holder.Close()
		waiting.Wait()
		pops := CommandCalls(client)["blpop"]
		Expect(served.overtaken()).To(BeEmpty())
		Expect(pops).To(BeNumerically("<", len(names)), "round trips for 1,200 hand-overs")
		network.SetDelay(0)
	})

	It("50 of them, 10 waiters each, 5 ms away: one round trip brings several signals, nobody is overtaken", NodeTimeout(2*time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		network := NewProxy(s.Addr())
		observer, locker := NewLocker(s.Addr()), NewLocker(network.Addr())
		names := newNames(50)
		held := holdAll(ctx, observer, names)
		var served order
		waiting := served.queues(ctx, names, observer, repeat(10, func() *redislock.Locker { return locker })...)
		client := Connect(s.Addr())
		network.SetDelay(2500 * time.Microsecond)
		Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
		for _, lock := range held {
			Expect(lock.Release(ctx)).To(Succeed())
		}
		waiting.Wait()
		calls := CommandCalls(client)
		Expect(served.overtaken()).To(BeEmpty())
		Expect(calls["blpop"]).To(BeNumerically("<", 10*len(names)/2), "round trips for 500 hand-overs")
		Expect(calls["lpop"]).To(BeNumerically(">", 0))
		network.SetDelay(0)
	})

	It("a single one: BLPOP goes alone", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		holder, locker := NewLocker(s.Addr()), NewLocker(s.Addr())
		const cycles = 20
		client := Connect(s.Addr())
		lock := MustAcquire(ctx, holder, "x")
		Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
		var turns []chan *redislock.Lock
		for i := range cycles {
			turns = append(turns, make(chan *redislock.Lock, 1))
			go func() {
				defer GinkgoRecover()
				turns[i] <- MustAcquire(ctx, locker, "x")
			}()
			Eventually(func() int { return AsIntOf(client, "ZCARD", KeysOf("x")[1]) }).Should(Equal(i + 1))
		}
		for _, next := range turns {
			Expect(lock.Release(ctx)).To(Succeed())
			Eventually(next).Should(Receive(&lock))
		}
		calls := CommandCalls(client)
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(calls).NotTo(HaveKey("lpop"))
		Expect(calls["blpop"]).To(BeNumerically(">=", cycles))
	})

	It("12,000 waits given up in an outage of 8 s: the next live waiter is served, and none of them is left", NodeTimeout(4*time.Minute), func(ctx SpecContext) {
		const many = 12_000
		s := OwnServer()
		network := NewProxy(s.Addr())
		holder, live, locker := NewLocker(s.Addr()), NewLocker(s.Addr()), NewLocker(network.Addr())
		client := Connect(s.Addr())
		held := holdAll(ctx, holder, []string{"x", "other"})
		other := Acquiring(ctx, locker, "other", 1) // the process goes on waiting
		goroutines := runtime.NumGoroutine()

		ending, cancel := context.WithCancel(ctx)
		defer cancel()
		var all sync.WaitGroup
		kept := func() weak.Pointer[string] { // of what each wait's ctx has
			mark := "of the 12,000"
			marked := context.WithValue(ending, markKey{}, &mark)
			for range many {
				all.Go(func() {
					defer GinkgoRecover()
					Expect(Second(locker.Acquire(marked, "x"))).To(MatchError(context.Canceled))
				})
			}
			return weak.Make(&mark)
		}()
		Eventually(func() int { return AsIntOf(client, "ZCARD", KeysOf("x")[1]) }).WithTimeout(time.Minute).Should(Equal(many))
		next := make(chan *redislock.Lock, 1)
		go func() {
			defer GinkgoRecover()
			next <- MustAcquire(ctx, live, "x")
		}()
		Eventually(func() int { return AsIntOf(client, "ZCARD", KeysOf("x")[1]) }).Should(Equal(many + 1))

		network.BlackHole(true)
		cancel()
		Consistently(next).WithTimeout(8*time.Second).ShouldNot(Receive(), "the outage")
		all.Wait()
		Expect(runtime.NumGoroutine()).To(BeNumerically("<", goroutines+1000))
		network.BlackHole(false)
		Expect(held["x"].Release(ctx)).To(Succeed())
		var lock *redislock.Lock
		Eventually(next).WithTimeout(10 * time.Second).Should(Receive(&lock))
		Eventually(func() int { return AsIntOf(client, "ZCARD", KeysOf("x")[1]) }).Should(BeZero())
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(held["other"].Release(ctx)).To(Succeed())
		Eventually(other).Should(Receive(&lock))
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(func() bool {
			runtime.GC()
			return kept.Value() == nil
		}).Should(BeTrue(), "the Locker still knows one of them")
	})

	It("2,000 idle waiters on as many names call less than once a second each; a few call that often", NodeTimeout(2*time.Minute), func(ctx SpecContext) {
		// perSecond is how often each of n waiters calls, by the server's clock.
		perSecond := func(n int) float64 {
			GinkgoHelper()
			s := OwnServer()
			client := Connect(s.Addr())
			names := newNames(n)
			holdAll(ctx, NewLocker(s.Addr()), names)
			locker := NewLocker(s.Addr())
			ending, cancel := context.WithCancel(ctx)
			var all sync.WaitGroup
			for _, name := range names {
				all.Go(func() {
					defer GinkgoRecover()
					Expect(Second(locker.Acquire(ending, name))).To(MatchError(context.Canceled))
				})
			}
			Eventually(func() int { return len(Keys(client, "lock-queue:*")) }).Should(Equal(n))
			micros := func() int64 { return MicrosOf(Redis(client, "TIME")) }
			Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			begin := micros()
			Eventually(ctx, micros).WithPolling(50 * time.Millisecond).Should(BeNumerically(">", begin+6_000_000))
			calls, span := CommandCalls(client)["fcall"], micros()-begin
			cancel()
			all.Wait()
			return float64(calls) / float64(n) / (float64(span) / 1e6)
		}
		var crowd, few float64
		var both sync.WaitGroup
		both.Go(func() { defer GinkgoRecover(); crowd = perSecond(2000) })
		both.Go(func() { defer GinkgoRecover(); few = perSecond(5) })
		both.Wait()
		Expect(crowd).To(And(BeNumerically("<", 0.9), BeNumerically(">", 0.1)))
		Expect(few).To(BeNumerically(">", 1.2*crowd)) // once a second: less on a machine that is busy, as are the others
	})
})

// Keys are those that match a pattern.
func Keys(client rueidis.Client, pattern string) []string {
	GinkgoHelper()
	keys, err := Redis(client, "KEYS", pattern).AsStrSlice()
	Expect(err).NotTo(HaveOccurred())
	return keys
}

// AsIntOf is an integer reply to a command.
func AsIntOf(client rueidis.Client, command ...string) int {
	GinkgoHelper()
	return int(AsInt(Redis(client, command...)))
}

// markKey is the key of a value in a ctx.
type markKey struct{}

var _ = Describe("a cluster", func() {
	It("needs few blocked connections for many names that are contended one after the other, and gives them back", NodeTimeout(2*time.Minute), func(ctx SpecContext) {
		const most, workers, names = 30, 8, 800
		c := ownCluster(3)
		addr := c.Servers[0].Addr()
		holder := NewLocker(addr)
		locker, err := redislock.New(Connect(addr, named("waiting")), redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(locker.Close)
		blocked := func(lines []string) (n int) {
			for _, line := range lines {
				if strings.Contains(line, "cmd=blpop") {
					n++
				}
			}
			return n
		}
		connections := func() (lines []string) {
			for _, s := range c.Servers {
				lines = append(lines, connectionsOf(s, "waiting")...)
			}
			return lines
		}

		todo := make(chan string, names)
		for i := range names {
			todo <- NewName() + strconv.Itoa(i)
		}
		close(todo)
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				defer GinkgoRecover()
				for name := range todo {
					lock := MustAcquire(ctx, holder, name)
					next := Acquiring(ctx, locker, name, 1)
					Expect(lock.Release(ctx)).To(Succeed())
					Eventually(next).Should(Receive(&lock))
					Expect(lock.Release(ctx)).To(Succeed())
				}
			})
		}
		done := make(chan struct{})
		go func() {
			all.Wait()
			close(done)
		}()
		seen := 0
		for through := false; !through; {
			select {
			case <-done:
				through = true
			default:
				n := blocked(connections())
				seen = max(seen, n)
				Expect(n).To(BeNumerically("<=", most))
			}
		}
		Expect(seen).To(BeNumerically(">", 0))
		locker.Close()
		Eventually(func() int {
			n := 0
			for _, line := range connections() {
				if strings.Contains(line, "flags=b") {
					n++
				}
			}
			return n
		}).Should(BeZero())
		Expect(blocked(connections())).To(BeNumerically("<=", most), "idle ones, that rueidis keeps")
	})
})
