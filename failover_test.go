package redislock_test

import (
	"context"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// crew is one that holds a lock and five that wait for it, each a Locker with a client of its own.
type crew struct {
	lock    *redislock.Lock
	waiting []<-chan *redislock.Lock
}

func newCrew(ctx context.Context, addr, name string, opts ...redislock.Option) *crew {
	GinkgoHelper()
	c := &crew{lock: mustAcquire(ctx, newLocker(addr), name, opts...)}
	for i := range 5 {
		c.waiting = append(c.waiting, acquiring(ctx, newLocker(addr), name, i+1, opts...))
	}
	return c
}

// holds shows that the lock was not lost: it is renewed.
func (c *crew) holds(ctx context.Context) {
	GinkgoHelper()
	before, _ := c.lock.Deadline()
	Eventually(ctx, func() time.Time { d, _ := c.lock.Deadline(); return d }).Should(BeTemporally(">", before))
	Expect(c.lock.Context().Err()).NotTo(HaveOccurred())
}

// takeTurns has the holder release, and each that waits after it. They come in the order of their
// arrival, one at a time, with growing fences.
func (c *crew) takeTurns(ctx context.Context) {
	GinkgoHelper()
	for i, next := range c.waiting {
		for _, later := range c.waiting[i:] {
			Expect(later).NotTo(Receive(), "nobody has it before it is released")
		}
		last := c.lock
		Expect(last.Release(ctx)).To(Succeed())
		Eventually(ctx, next).Should(Receive(&c.lock))
		Expect(c.lock.Fence()).To(BeNumerically(">", last.Fence()))
	}
	Expect(c.lock.Release(ctx)).To(Succeed())
}

// startOver is for when the server has forgotten the lock and the queue: the holder is told, and all
// that wait get the lock, in any order, one at a time.
func (c *crew) startOver(ctx context.Context) {
	GinkgoHelper()
	<-c.lock.Context().Done()
	Expect(context.Cause(c.lock.Context())).To(MatchError(redislock.ErrLost))
	last := c.lock.Fence()
	all := make(chan *redislock.Lock, len(c.waiting))
	for _, next := range c.waiting {
		go func() {
			if lock, ok := <-next; ok {
				all <- lock
			}
		}()
	}
	for range c.waiting {
		var lock *redislock.Lock
		Eventually(ctx, all).Should(Receive(&lock))
		Consistently(all, "20ms").ShouldNot(Receive(), "one at a time")
		Expect(lock.Fence()).To(BeNumerically(">", last))
		last = lock.Fence()
		Expect(lock.Release(ctx)).To(Succeed())
	}
}

// caughtUp returns when a replica has all that its primary has written until now.
func caughtUp(primary, replica *redistest.Server) {
	GinkgoHelper()
	offset := func(s *redistest.Server, field string) int {
		text, _ := s.Do("INFO", "replication").ToString()
		for line := range strings.Lines(text) {
			if value, ok := strings.CutPrefix(line, field+":"); ok {
				n, _ := strconv.Atoi(strings.TrimSpace(value))
				return n
			}
		}
		return -1
	}
	written := offset(primary, "master_repl_offset")
	Expect(written).To(BeNumerically(">=", 0))
	Eventually(func() int { return offset(replica, "slave_repl_offset") }).Should(BeNumerically(">=", written))
}

// unlink keeps a replica from getting anything more from its primary, for good.
func unlink(primary, replica *redistest.Server) {
	GinkgoHelper()
	for _, set := range [][]string{{"masteruser", "nobody"}, {"masterauth", "wrong"}} {
		Expect(replica.Do("CONFIG", "SET", set[0], set[1]).Error()).NotTo(HaveOccurred())
	}
	Expect(primary.Do("CLIENT", "KILL", "TYPE", "replica").Error()).NotTo(HaveOccurred())
	Eventually(func() (string, error) { return replica.Do("INFO", "replication").ToString() }).
		Should(ContainSubstring("master_link_status:down"))
	Eventually(func() (string, error) { return primary.Do("INFO", "replication").ToString() }).
		Should(ContainSubstring("connected_slaves:0"))
}

// failingSentinel is a primary, a replica and three Sentinels that are quick to act.
func failingSentinel() (s *redistest.Sentinel, addr string) {
	GinkgoHelper()
	s, err := redistest.StartSentinel(1, 3, time.Second)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(s.Stop)
	addr = s.Servers[0].Addr()
	routes[addr] = route{Sentinels: s.Addrs()}
	return s, addr
}

// failingCluster is three primaries and three replicas that are quick to act.
func failingCluster() (c *redistest.Cluster, addr string) {
	GinkgoHelper()
	c, err := redistest.StartCluster(3, 1, 1500*time.Millisecond)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(c.Stop)
	return c, c.Servers[0].Addr()
}

// minute is a lease that no fault here outlasts.
const minute = time.Minute

var _ = Describe("Sentinel", func() {
	It("replaces a primary that was killed: the lock stays held, and the order is kept", func(ctx SpecContext) {
		s, addr := failingSentinel()
		crew := newCrew(ctx, addr, "x")
		caughtUp(s.Servers[0], s.Servers[1])
		Expect(s.Servers[0].Kill()).To(Succeed())
		Expect(s.Replaced(s.Servers[0])).To(Succeed())
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("replaces a primary by SENTINEL FAILOVER: likewise", func(ctx SpecContext) {
		s, addr := failingSentinel()
		crew := newCrew(ctx, addr, "x")
		caughtUp(s.Servers[0], s.Servers[1])
		Expect(s.Failover()).To(Succeed())
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("replaces a primary that nobody can reach any more: its holder is told before the next one gets the lock", func(ctx SpecContext) {
		s, addr := failingSentinel()
		crew := newCrew(ctx, addr, "x", redislock.WithLease(1500*time.Millisecond), redislock.WithoutRenewal())
		caughtUp(s.Servers[0], s.Servers[1])
		Expect(s.Servers[0].Pause()).To(Succeed())
		DeferCleanup(s.Servers[0].Resume)
		deadline, _ := crew.lock.Deadline()
		last := crew.lock
		<-last.Context().Done()
		Eventually(ctx, crew.waiting[0]).Should(Receive(&crew.lock))
		Expect(time.Now()).To(BeTemporally(">", deadline))
		Expect(crew.lock.Fence()).To(BeNumerically(">", last.Fence()))
		Expect(s.Primary()).To(Equal(s.Servers[1]))
	})

	Describe("WithReplicas", func() {
		It("is what keeps a failover from losing a grant that its replica has not got", func(ctx SpecContext) {
			s, addr := failingSentinel()
			first, second := newLocker(addr), newLocker(addr)
			opts := []redislock.Option{redislock.WithLease(minute), redislock.WithoutRenewal()}
			safe := append(opts, redislock.WithReplicas(1, soon))
			// On the replica: granted at once, and handed over.
			kept := mustAcquire(ctx, first, "kept", safe...)
			before := mustAcquire(ctx, first, "handed", safe...)
			next := acquiring(ctx, second, "handed", 1, safe...)
			Expect(before.Release(ctx)).To(Succeed())
			handed := <-next
			unlink(s.Servers[0], s.Servers[1])
			// Not on the replica: asked for it or not.
			lost := mustAcquire(ctx, first, "lost", opts...)
			refused, err := first.Acquire(ctx, "refused", append(opts, redislock.WithReplicas(1, 50*time.Millisecond))...)
			Expect(err).To(MatchError(redislock.ErrNotReplicated))
			Expect(refused).To(BeNil())
			Expect(stateOf(first, "refused").Holder).To(BeEmpty(), "released")

			Expect(s.Servers[0].Kill()).To(Succeed())
			Expect(s.Replaced(s.Servers[0])).To(Succeed())
			for _, lock := range []*redislock.Lock{kept, handed} {
				Expect(second.TryAcquire(ctx, lock.Name())).Error().To(MatchError(redislock.ErrNotAcquired))
				Expect(lock.Extend(ctx, minute)).To(Succeed())
				Expect(lock.Release(ctx)).To(Succeed())
			}
			twice := mustAcquire(ctx, second, "lost", opts...)
			Expect(lost.Context().Err()).NotTo(HaveOccurred(), "two believe that they hold it")
			Expect(twice.Fence()).To(BeNumerically(">", lost.Fence()), "the answer to that")
			Expect(lost.Extend(ctx, minute)).To(MatchError(redislock.ErrNotHeld))
			Expect(twice.Release(ctx)).To(Succeed())
		})
	})
})

var _ = Describe("a cluster", func() {
	// move moves a lock's slot to a server, and calls do when so many of its keys have moved.
	move := func(c *redistest.Cluster, name string, to *redistest.Server, do map[int]func()) {
		GinkgoHelper()
		steps := 0
		Expect(c.Move(keysOf(name)[0], to, func(moved int) {
			defer GinkgoRecover()
			if do[moved] != nil {
				do[moved]()
				steps++
			}
		})).To(Succeed())
		Expect(steps).To(Equal(len(do)))
	}
	other := func(c *redistest.Cluster, name string) *redistest.Server {
		owner := c.Owner(keysOf(name)[0])
		for _, p := range c.Primaries() {
			if p != owner {
				return p
			}
		}
		return nil
	}

	It("has the library on every primary; on one that joined later, as soon as it gets a lock's slot", func(ctx SpecContext) {
		c, addr := failingCluster()
		Expect(redislock.Load(ctx, connect(addr))).To(Succeed())
		for _, p := range c.Primaries() {
			Expect(p.Do("FCALL_RO", "lock_version", "0").ToString()).To(Equal(redislock.Version))
		}
		crew := newCrew(ctx, addr, "x")
		added, err := c.Add()
		Expect(err).NotTo(HaveOccurred())
		Expect(added.Do("FCALL_RO", "lock_version", "0").Error()).To(MatchError(ContainSubstring("Function not found")))
		move(c, "x", added, nil)
		crew.holds(ctx)
		Expect(added.Do("FCALL_RO", "lock_version", "0").ToString()).To(Equal(redislock.Version))
		crew.takeTurns(ctx)
	})

	It("moves the slot of a lock that is held and waited for: the order is kept", func(ctx SpecContext) {
		c, addr := failingCluster()
		name, call := "x", func(at *redistest.Server) error {
			return fcall(directly(at.Addr()), "lock_acquire", append(keysOf("x"), "lock-signal:{x}:raw"), "raw", "1000", "0").Error()
		}
		from, to := c.Owner(keysOf(name)[0]), other(c, name)
		crew := newCrew(ctx, addr, name)
		move(c, name, to, map[int]func(){
			1: func() { Expect(call(from)).To(MatchError(HavePrefix("TRYAGAIN"))) },
			3: func() { Expect(call(from)).To(MatchError(HavePrefix("ASK"))) },
		})
		Expect(call(from)).To(MatchError(HavePrefix("MOVED")))
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("moves the slot of a lock that is released meanwhile: nobody can be told, the next one takes it when it looks", func(ctx SpecContext) {
		c, addr := failingCluster()
		crew := newCrew(ctx, addr, "x")
		last := crew.lock
		move(c, "x", other(c, "x"), map[int]func(){0: func() { Expect(last.Release(ctx)).To(Succeed()) }})
		Eventually(ctx, crew.waiting[0]).Should(Receive(&crew.lock))
		Expect(crew.lock.Fence()).To(BeNumerically(">", last.Fence()))
		crew.waiting = crew.waiting[1:]
		crew.takeTurns(ctx)
	})

	It("fails over by CLUSTER FAILOVER: the lock stays held, and the order is kept", func(ctx SpecContext) {
		c, addr := failingCluster()
		crew := newCrew(ctx, addr, "x")
		Expect(c.Failover(c.ReplicaOf(c.Owner(keysOf("x")[0])))).To(Succeed())
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("loses a primary: likewise, for locks on the others too", func(ctx SpecContext) {
		c, addr := failingCluster()
		owner := c.Owner(keysOf("x")[0])
		replica := c.ReplicaOf(owner)
		elsewhere := newName()
		for c.Owner(keysOf(elsewhere)[0]) == owner {
			elsewhere = newName()
		}
		hit, spared := newCrew(ctx, addr, "x"), newCrew(ctx, addr, elsewhere)
		caughtUp(owner, replica)
		Expect(owner.Kill()).To(Succeed())
		spared.holds(ctx)
		Eventually(func() *redistest.Server { return c.Owner(keysOf("x")[0]) }).Should(Equal(replica))
		hit.holds(ctx)
		hit.takeTurns(ctx)
		spared.takeTurns(ctx)
	})
})

var _ = Describe("a server", func() {
	It("becomes a replica under a waiter, and a primary again", func(ctx SpecContext) {
		s := ownServer()
		crew := newCrew(ctx, s.Addr(), "x")
		Expect(s.Do("REPLICAOF", "127.0.0.1", "1").Error()).NotTo(HaveOccurred()) // of nobody: it keeps its data
		raw := fcall(directly(s.Addr()), "lock_acquire", append(keysOf("x"), "raw"), "raw", "1000", "0")
		Expect(raw.Error()).To(MatchError(HavePrefix("READONLY")))
		// Their BLPOPs were answered with UNBLOCKED, and those that they send now with READONLY.
		Expect(s.Do("INFO", "errorstats").ToString()).To(And(ContainSubstring("errorstat_UNBLOCKED"), ContainSubstring("errorstat_READONLY")))
		Expect(s.Do("REPLICAOF", "NO", "ONE").Error()).NotTo(HaveOccurred())
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("hands over to its replica by FAILOVER, and gets it back", func(ctx SpecContext) {
		s := ownServer("--repl-diskless-sync-delay", "0")
		replica := ownServer("--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 "+strconv.Itoa(s.Port()))
		crew := newCrew(ctx, s.Addr(), "x")
		for _, p := range []*redistest.Server{s, replica} {
			Eventually(func() (string, error) { return p.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
			Expect(p.Do("FAILOVER").Error()).NotTo(HaveOccurred())
			Eventually(func() string { role, _ := p.Role(); return role }).Should(Equal("slave"))
		}
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("restarts with its append-only file: the lock stays held, and the order is kept", func(ctx SpecContext) {
		s := ownServer("--appendonly", "yes", "--appendfsync", "always")
		crew := newCrew(ctx, s.Addr(), "x")
		Expect(s.Kill()).To(Succeed())
		Expect(s.Restart()).To(Succeed())
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("restarts without any file, library and locks gone: the holder is told, those that wait go on", func(ctx SpecContext) {
		s := ownServer()
		crew := newCrew(ctx, s.Addr(), "x")
		Expect(s.Kill()).To(Succeed())
		Expect(s.Restart()).To(Succeed())
		crew.startOver(ctx)
	})

	It("is flushed (FLUSHALL keeps the library): likewise", func(ctx SpecContext) {
		s := ownServer()
		crew := newCrew(ctx, s.Addr(), "x")
		Expect(s.Do("FLUSHALL").Error()).NotTo(HaveOccurred())
		crew.startOver(ctx)
	})

	It("is still LOADING: they wait until it has", func(ctx SpecContext) {
		s := ownServer("--appendonly", "yes", "--key-load-delay", "100")
		client := connect(s.Addr())
		var fill []rueidis.Completed
		for i := range 40_000 {
			fill = append(fill, client.B().Set().Key("fill:"+strconv.Itoa(i)).Value("x").Build())
		}
		for _, result := range client.DoMulti(ctx, fill...) {
			Expect(result.Error()).NotTo(HaveOccurred())
		}
		crew, l := newCrew(ctx, s.Addr(), "x", redislock.WithLease(minute)), newLocker(s.Addr())
		Expect(s.Kill()).To(Succeed())
		restarted := make(chan error, 1)
		go func() { restarted <- s.Restart() }()
		Eventually(func() error { return s.Do("GET", "x").Error() }).Should(MatchError(HavePrefix("LOADING")))
		waiting, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
		defer cancel()
		Expect(l.Acquire(waiting, "y")).Error().To(MatchError(And(ContainSubstring("the last call failed"), ContainSubstring("LOADING"))))
		Eventually(restarted).Should(Receive(BeNil()))
		crew.takeTurns(ctx)
	})

	It("is BUSY with somebody's script: they wait until it is killed", func(ctx SpecContext) {
		s := ownServer("--busy-reply-threshold", "20")
		crew := newCrew(ctx, s.Addr(), "x", redislock.WithLease(minute))
		scripted := make(chan error, 1)
		go func() { scripted <- s.Do("EVAL", "while true do end", "0").Error() }()
		Eventually(func() error { return s.Do("GET", "x").Error() }).Should(MatchError(HavePrefix("BUSY")))
		Expect(crew.lock.Extend(ctx, minute)).To(MatchError(ContainSubstring("BUSY")))
		released := make(chan error, 1)
		go func() { released <- crew.lock.Release(ctx) }()
		Consistently(released, "50ms").ShouldNot(Receive())
		Expect(s.Do("SCRIPT", "KILL").Error()).NotTo(HaveOccurred())
		Eventually(scripted).Should(Receive(MatchError(ContainSubstring("killed"))))
		Eventually(released).Should(Receive(BeNil()))
		Eventually(ctx, crew.waiting[0]).Should(Receive(&crew.lock))
		crew.waiting = crew.waiting[1:]
		crew.takeTurns(ctx)
	})

	It("misses its replicas (min-replicas-to-write): who holds is told in time, who waits keeps its place", func(ctx SpecContext) {
		s := ownServer()
		crew := newCrew(ctx, s.Addr(), "x", redislock.WithLease(1500*time.Millisecond))
		last := crew.lock
		Expect(s.Do("CONFIG", "SET", "min-replicas-to-write", "1").Error()).NotTo(HaveOccurred())
		Expect(newLocker(s.Addr()).TryAcquire(ctx, "y")).Error().To(MatchError(ContainSubstring("NOREPLICAS")))
		<-last.Context().Done()
		Expect(context.Cause(last.Context())).To(MatchError(redislock.ErrLost))
		Expect(s.Do("CONFIG", "SET", "min-replicas-to-write", "0").Error()).NotTo(HaveOccurred())
		Eventually(ctx, crew.waiting[0]).Should(Receive(&crew.lock))
		Expect(crew.lock.Fence()).To(BeNumerically(">", last.Fence()))
		crew.waiting = crew.waiting[1:]
		crew.takeTurns(ctx)
	})
})
