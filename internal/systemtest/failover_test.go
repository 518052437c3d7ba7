package systemtest

import (
	"context"
	"net"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// servedWithin is the bound of docs/guarantees.md for those who wait, from the end of a fault on: 3 s + the lease that was
// running. Twice that, for machines that are busy: a waiter that finds out by a mere timeout is later still.
func servedWithin(lease time.Duration) time.Duration { return 2 * (3*time.Second + lease) }

// quick is what docs/guarantees.md says that a client needs to notice a dead server in time.
func quick(o *rueidis.ClientOption) {
	o.ConnWriteTimeout = 2 * time.Second
	o.Dialer = net.Dialer{Timeout: time.Second, KeepAlive: time.Second}
}

// crew is one that holds a lock and five that wait for it, each a Locker with a client of its own.
type crew struct {
	lock    *redislock.Lock
	waiting []<-chan *redislock.Lock
}

func newCrew(ctx context.Context, addr, name string, opts ...redislock.Option) *crew {
	GinkgoHelper()
	c := &crew{lock: MustAcquire(ctx, crewLocker(addr), name, opts...)}
	for range 5 {
		c.joins(ctx, addr, name, opts...)
	}
	return c
}

// crewLocker is NewLocker of a quick client. Places do not lapse while a fault lasts.
func crewLocker(addr string) *redislock.Locker {
	GinkgoHelper()
	locker, err := redislock.New(Connect(addr, quick), redislock.Options{WaitTTL: minute})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(locker.Close)
	return locker
}

// joins has one more wait, behind the others.
func (c *crew) joins(ctx context.Context, addr, name string, opts ...redislock.Option) {
	GinkgoHelper()
	c.waiting = append(c.waiting, Acquiring(ctx, crewLocker(addr), name, len(c.waiting)+1, opts...))
}

// holds shows that the lock was not lost: it is renewed.
func (c *crew) holds(ctx context.Context) {
	GinkgoHelper()
	before, _ := c.lock.Deadline()
	Eventually(ctx, func() time.Time { d, _ := c.lock.Deadline(); return d }).Should(BeTemporally(">", before))
	Expect(c.lock.Context().Err()).NotTo(HaveOccurred())
}

// takeTurns has the holder release, and each that waits after it. They come in the order of their
// arrival, one at a time.
func (c *crew) takeTurns(ctx context.Context) {
	GinkgoHelper()
	for len(c.waiting) > 0 {
		c.nobodyElse()
		Expect(c.lock.Release(ctx)).To(Succeed())
		c.next(ctx, 0)
	}
	Expect(c.lock.Release(ctx)).To(Succeed())
}

// next has the first that waits get the lock, in time and with a greater fence; lease is what may be left of the
// one before.
func (c *crew) next(ctx context.Context, lease time.Duration) {
	GinkgoHelper()
	last := c.lock
	Eventually(ctx, c.waiting[0]).WithTimeout(servedWithin(lease)).Should(Receive(&c.lock))
	Expect(c.lock.Fence()).To(BeNumerically(">", last.Fence()))
	c.waiting = c.waiting[1:]
	c.nobodyElse()
}

func (c *crew) nobodyElse() {
	GinkgoHelper()
	for _, later := range c.waiting {
		Expect(later).NotTo(Receive(), "nobody has it before it is released")
	}
}

// isTold returns when the holder was told that the lock is lost, which is before the next one has it.
func (c *crew) isTold() {
	GinkgoHelper()
	select {
	case <-c.lock.Context().Done():
	case lock := <-c.waiting[0]:
		Expect(c.lock.Context().Err()).To(HaveOccurred(), "the next one has it and its holder was not told")
		back := make(chan *redislock.Lock, 1)
		back <- lock
		c.waiting[0] = back
	}
	Expect(context.Cause(c.lock.Context())).To(MatchError(redislock.ErrLost))
}

// startOver is for when the server has forgotten the lock and the queue: the holder is told, and all
// that wait get the lock, in any order, one at a time.
func (c *crew) startOver(ctx context.Context) {
	GinkgoHelper()
	<-c.lock.Context().Done()
	Expect(context.Cause(c.lock.Context())).To(MatchError(redislock.ErrLost))
	c.serveAll(ctx)
}

// serveAll shows that all that wait get the lock, which is or will be free: in any order, one at a time.
func (c *crew) serveAll(ctx context.Context) {
	GinkgoHelper()
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
		Eventually(ctx, all).WithTimeout(servedWithin(0)).Should(Receive(&lock))
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
	SetRoute(addr, Route{Sentinels: s.Addrs()})
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

const (
	minute = time.Minute     // a lease that no fault here outlasts
	brief  = 3 * time.Second // one that ends meanwhile, unless it is renewed
)

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

	It("replaces a primary that nobody can reach any more: its holder is told before the next one gets the lock", Longest, func(ctx SpecContext) {
		s, addr := failingSentinel()
		crew := newCrew(ctx, addr, "x", redislock.WithLease(brief), redislock.WithoutRenewal())
		caughtUp(s.Servers[0], s.Servers[1])
		Expect(s.Servers[0].Pause()).To(Succeed())
		DeferCleanup(s.Servers[0].Resume)
		crew.isTold()
		Expect(s.Replaced(s.Servers[0])).To(Succeed())
		crew.next(ctx, brief)
		crew.takeTurns(ctx)
	})

	It("replaces a primary by a replica that lacks the last writes: who is known there keeps its place, the others queue anew", func(ctx SpecContext) {
		s, addr := failingSentinel()
		kept, passed := newCrew(ctx, addr, "x", redislock.WithLease(minute)), newCrew(ctx, addr, "y", redislock.WithLease(brief))
		caughtUp(s.Servers[0], s.Servers[1])
		unlink(s.Servers[0], s.Servers[1])
		// What is lost: a sixth that waits for x, and that y was given to the next one.
		kept.joins(ctx, addr, "x", redislock.WithLease(minute))
		Expect(passed.lock.Release(ctx)).To(Succeed())
		passed.next(ctx, 0)
		Expect(s.Servers[0].Kill()).To(Succeed())
		Expect(s.Replaced(s.Servers[0])).To(Succeed())
		Expect(s.Servers[1].Do("GET", KeysOf("x")[0]).ToString()).To(Equal(kept.lock.Token()))
		kept.takeTurns(ctx)
		// The holder of y is told, or was given it once more: it is in the queue of the new primary.
		Expect(passed.lock.Release(ctx)).To(Or(Succeed(), MatchError(redislock.ErrNotHeld)))
		passed.next(ctx, brief)
		passed.takeTurns(ctx)
	})
})

// pair is a primary and its replica, under whatever takes care of failovers.
type pair struct {
	addr             string
	primary, replica *redistest.Server
	failOver         func() // the primary dies
}

func sentinelPair() pair {
	GinkgoHelper()
	s, addr := failingSentinel()
	return pair{addr, s.Servers[0], s.Servers[1], func() {
		GinkgoHelper()
		Expect(s.Servers[0].Kill()).To(Succeed())
		Expect(s.Replaced(s.Servers[0])).To(Succeed())
	}}
}

// clusterPair has the names with the tag {x}.
func clusterPair() pair {
	GinkgoHelper()
	c, addr := failingCluster()
	owner := c.Owner("{x}")
	replica := c.ReplicaOf(owner)
	return pair{addr, owner, replica, func() {
		GinkgoHelper()
		Expect(owner.Kill()).To(Succeed())
		Eventually(func() *redistest.Server { return c.Owner("{x}") }).Should(Equal(replica))
	}}
}

var _ = Describe("WithReplicas", func() {
	DescribeTable("is what keeps a failover from losing a grant that its replica has not got", func(ctx SpecContext, start func() pair) {
		p := start()
		first, second := NewLocker(p.addr), NewLocker(p.addr)
		opts := []redislock.Option{redislock.WithLease(minute), redislock.WithoutRenewal()}
		safe := append(opts, redislock.WithReplicas(1, Soon))
		unsafe := append(opts, redislock.WithReplicas(1, 50*time.Millisecond))
		// On the replica when Acquire returns: granted at once, and handed over.
		reader, done := Directly(p.replica.Addr()).Dedicate()
		DeferCleanup(done)
		reader.Do(ctx, reader.B().Readonly().Build()) // an error where there is no cluster, and not needed
		onReplica := func(lock *redislock.Lock) {
			GinkgoHelper()
			Expect(reader.Do(ctx, reader.B().Get().Key(KeysOf(lock.Name())[0]).Build()).ToString()).To(Equal(lock.Token()))
		}
		kept := MustAcquire(ctx, first, "kept{x}", safe...)
		onReplica(kept)
		before := MustAcquire(ctx, first, "handed{x}", safe...)
		next := Acquiring(ctx, second, "handed{x}", 1, safe...)
		Expect(before.Release(ctx)).To(Succeed())
		handed := <-next
		onReplica(handed)
		unlink(p.primary, p.replica)
		// Not on the replica: asked for it or not.
		lost := MustAcquire(ctx, first, "lost{x}", opts...)
		Expect(first.Acquire(ctx, "refused{x}", unsafe...)).Error().To(MatchError(redislock.ErrNotReplicated))
		Expect(StateOf(first, "refused{x}").Holder).To(BeEmpty(), "released")
		// Nor handed over, and others go on.
		before = MustAcquire(ctx, first, "passed{x}", opts...)
		refused := make(chan error, 1)
		go func() {
			_, err := second.Acquire(ctx, "passed{x}", unsafe...)
			refused <- err
		}()
		Eventually(WaitingFor(first, "passed{x}")).Should(Equal(1))
		next = Acquiring(ctx, first, "passed{x}", 2, opts...)
		Expect(before.Release(ctx)).To(Succeed())
		Eventually(refused).Should(Receive(MatchError(redislock.ErrNotReplicated)))
		Eventually(ctx, next).WithTimeout(servedWithin(0)).Should(Receive(&before))
		Expect(before.Release(ctx)).To(Succeed())

		p.failOver()
		for _, lock := range []*redislock.Lock{kept, handed} {
			Eventually(func() (string, error) {
				state, err := second.Inspect(ctx, lock.Name())
				return state.Holder, err
			}).Should(Equal(lock.Token()))
			Expect(second.TryAcquire(ctx, lock.Name())).Error().To(MatchError(redislock.ErrNotAcquired))
			Eventually(func() error { return lock.Extend(ctx, minute) }).Should(Succeed(), "as soon as its client has found the new primary")
			Expect(lock.Release(ctx)).To(Succeed())
		}
		twice := MustAcquire(ctx, second, "lost{x}", opts...)
		Expect(lost.Context().Err()).NotTo(HaveOccurred(), "two believe that they hold it")
		Expect(twice.Fence()).To(BeNumerically(">", lost.Fence()), "the answer to that")
		Expect(lost.Extend(ctx, minute)).To(MatchError(redislock.ErrNotHeld))
		Expect(twice.Release(ctx)).To(Succeed())
	},
		Entry("under Sentinel", sentinelPair), Entry("in a cluster", clusterPair),
	)

	It("goes with a lock that never expires: one that was handed over is not lost", func(ctx SpecContext) {
		primary := OwnServer("--repl-diskless-sync-delay", "0")
		OwnServer("--replicaof", "127.0.0.1 "+strconv.Itoa(primary.Port()))
		first, second := NewLocker(primary.Addr()), NewLocker(primary.Addr())
		Eventually(func() (string, error) { return primary.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
		before := MustAcquire(ctx, first, "x", redislock.WithoutExpiry())
		next := Acquiring(ctx, second, "x", 1, redislock.WithoutExpiry(), redislock.WithReplicas(1, Soon))
		Expect(before.Release(ctx)).To(Succeed())
		lock := <-next
		Consistently(lock.Context().Done()).WithTimeout(time.Second).ShouldNot(BeClosed(), "when a claim would be due")
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("does not lose a lock that was renewed meanwhile because there was no connection for it", func(ctx SpecContext) {
		primary := OwnServer("--repl-diskless-sync-delay", "0")
		OwnServer("--replicaof", "127.0.0.1 "+strconv.Itoa(primary.Port()))
		Eventually(func() (string, error) { return primary.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
		client := Connect(primary.Addr(), func(o *rueidis.ClientOption) { o.BlockingPoolSize = 1 })
		l, err := redislock.New(client, redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(l.Close)
		seen := Monitor(primary.Addr())
		_, giveBack := client.Dedicate()
		got := make(chan error, 1)
		var lock *redislock.Lock
		go func() {
			var err error
			lock, err = l.Acquire(ctx, "x", redislock.WithLease(time.Second), redislock.WithReplicas(1, Soon))
			got <- err
		}()
		Eventually(func() int { return seen.Count("lock_extend") }).Should(BeNumerically(">=", 5), "for longer than the lease")
		giveBack()
		Expect(<-got).NotTo(HaveOccurred())
		Expect(lock.Context().Err()).NotTo(HaveOccurred())
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("never asks for a lease that does not end because nothing is left of the maximum hold", func(ctx SpecContext) {
		s := OwnServer()
		l := NewLocker(s.Addr())
		seen := Monitor(s.Addr())
		for range 20 {
			Expect(l.Acquire(ctx, "x", redislock.WithMaxHold(time.Millisecond), redislock.WithReplicas(1, time.Millisecond))).Error().To(HaveOccurred())
		}
		Expect(seen.Count("lock_acquire")).To(BeNumerically(">=", 20))
		Expect(seen.Count("lock_extend")).To(BeZero())
	})

	It("waits for replicas no longer than it was told to, and then says how many there were", func(ctx SpecContext) {
		primary := OwnServer("--repl-diskless-sync-delay", "0")
		replica := OwnServer("--replicaof", "127.0.0.1 "+strconv.Itoa(primary.Port()))
		l := NewLocker(primary.Addr())
		Eventually(func() (string, error) { return primary.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
		Expect(MustAcquire(ctx, l, "x", redislock.WithReplicas(1, Soon)).Release(ctx)).To(Succeed())
		Expect(replica.Pause()).To(Succeed())
		err := Second(l.Acquire(ctx, "x", redislock.WithReplicas(1, 50*time.Millisecond)))
		Expect(err).To(And(MatchError(redislock.ErrNotReplicated), MatchError(ContainSubstring("0 of 1"))))
		// Handed over, and not returned before the replica has it too.
		lock := MustAcquire(ctx, l, "x")
		next := Acquiring(ctx, l, "x", 1, redislock.WithReplicas(1, Soon), redislock.WithOwner("next"))
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(StateOf(l, "x").Holder).To(HavePrefix("next:"))
		Consistently(next, "50ms").ShouldNot(Receive())
		Expect(replica.Resume()).To(Succeed())
		Eventually(ctx, next).Should(Receive(&lock))
		Expect(lock.Release(ctx)).To(Succeed())
	})
})

var _ = Describe("a cluster", func() {
	// move moves a lock's slot to a server, and calls do when this many of its keys have moved.
	move := func(c *redistest.Cluster, name string, to *redistest.Server, do map[int]func()) {
		GinkgoHelper()
		steps := 0
		Expect(c.Move(KeysOf(name)[0], to, func(moved int) {
			defer GinkgoRecover()
			if do[moved] != nil {
				do[moved]()
				steps++
			}
		})).To(Succeed())
		Expect(steps).To(Equal(len(do)))
	}
	other := func(c *redistest.Cluster, name string) *redistest.Server {
		owner := c.Owner(KeysOf(name)[0])
		for _, p := range c.Primaries() {
			if p != owner {
				return p
			}
		}
		return nil
	}

	It("has the library on every primary; on one that joined later, as soon as it gets a lock's slot", func(ctx SpecContext) {
		c, addr := failingCluster()
		Expect(redislock.Load(ctx, Connect(addr))).To(Succeed())
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
			return FCall(Directly(at.Addr()), "lock_acquire", append(KeysOf("x"), "lock-signal:{x}:raw"), "raw", "1000", "0").Error()
		}
		from, to := c.Owner(KeysOf(name)[0]), other(c, name)
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
		from := c.Owner(KeysOf("x")[0])
		move(c, "x", other(c, "x"), map[int]func(){0: func() {
			Expect(crew.lock.Release(ctx)).To(Succeed())
			// Their list is in the slot, and no key that the release had declared: the server refused to push to it.
			Expect(from.Do("EXISTS", KeysOf("x")[1]).ToInt64()).To(BeEquivalentTo(1))
			Expect(from.Do("EXISTS", KeysOf("x")[0]).Error()).To(MatchError(HavePrefix("ASK")), "free, and not handed over")
			crew.nobodyElse()
		}})
		crew.next(ctx, 0)
		crew.takeTurns(ctx)
	})

	It("fails over by CLUSTER FAILOVER: the lock stays held, and the order is kept", func(ctx SpecContext) {
		c, addr := failingCluster()
		crew := newCrew(ctx, addr, "x")
		Expect(c.Failover(c.ReplicaOf(c.Owner(KeysOf("x")[0])))).To(Succeed())
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("loses a primary that nobody can reach any more: its holder is told before the next one gets the lock", Longest, func(ctx SpecContext) {
		c, addr := failingCluster()
		owner := c.Owner(KeysOf("x")[0])
		replica := c.ReplicaOf(owner)
		crew := newCrew(ctx, addr, "x", redislock.WithLease(brief), redislock.WithoutRenewal())
		caughtUp(owner, replica)
		Expect(owner.Pause()).To(Succeed())
		DeferCleanup(owner.Resume)
		crew.isTold()
		Eventually(func() *redistest.Server { return c.Owner(KeysOf("x")[0]) }).Should(Equal(replica))
		crew.next(ctx, brief)
		crew.takeTurns(ctx)
	})

	It("loses a primary: likewise, for locks on the others too", func(ctx SpecContext) {
		c, addr := failingCluster()
		owner := c.Owner(KeysOf("x")[0])
		replica := c.ReplicaOf(owner)
		elsewhere := NewName()
		for c.Owner(KeysOf(elsewhere)[0]) == owner {
			elsewhere = NewName()
		}
		hit, spared := newCrew(ctx, addr, "x"), newCrew(ctx, addr, elsewhere)
		caughtUp(owner, replica)
		Expect(owner.Kill()).To(Succeed())
		spared.holds(ctx)
		Eventually(func() *redistest.Server { return c.Owner(KeysOf("x")[0]) }).Should(Equal(replica))
		hit.holds(ctx)
		hit.takeTurns(ctx)
		spared.takeTurns(ctx)
	})
})

var _ = Describe("a server", func() {
	It("becomes a replica under a waiter, and a primary again", func(ctx SpecContext) {
		s := OwnServer()
		crew := newCrew(ctx, s.Addr(), "x")
		Expect(s.Do("REPLICAOF", "127.0.0.1", "1").Error()).NotTo(HaveOccurred()) // of nobody: it keeps its data
		raw := FCall(Directly(s.Addr()), "lock_acquire", append(KeysOf("x"), "raw"), "raw", "1000", "0")
		Expect(raw.Error()).To(MatchError(HavePrefix("READONLY")))
		// Their BLPOPs were answered with UNBLOCKED, and those that they send now with READONLY.
		Expect(s.Do("INFO", "errorstats").ToString()).To(And(ContainSubstring("errorstat_UNBLOCKED"), ContainSubstring("errorstat_READONLY")))
		Expect(s.Do("REPLICAOF", "NO", "ONE").Error()).NotTo(HaveOccurred())
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("hands over to its replica by FAILOVER, and gets it back", func(ctx SpecContext) {
		s := OwnServer("--repl-diskless-sync-delay", "0")
		replica := OwnServer("--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 "+strconv.Itoa(s.Port()))
		crew := newCrew(ctx, s.Addr(), "x")
		for _, p := range []*redistest.Server{s, replica} {
			Eventually(func() (string, error) { return p.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
			Expect(p.Do("FAILOVER").Error()).NotTo(HaveOccurred())
			Eventually(func() string { role, _ := p.Role(); return role }).Should(Equal("slave"))
		}
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("hands over by FAILOVER as late as its replica has everything: a BLPOP sent meanwhile gets no answer and is given up", Longest, func(ctx SpecContext) {
		s := OwnServer("--repl-diskless-sync-delay", "0")
		replica := OwnServer("--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 "+strconv.Itoa(s.Port()))
		Eventually(func() (string, error) { return s.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
		crew := newCrew(ctx, s.Addr(), "x", redislock.WithLease(minute))
		blocked := func() (ids []string) {
			list, err := s.Do("CLIENT", "LIST", "TYPE", "normal").ToString()
			Expect(err).NotTo(HaveOccurred())
			for line := range strings.Lines(list) {
				if id, _, _ := strings.Cut(line, " "); strings.Contains(line, " cmd=blpop ") {
					ids = append(ids, id)
				}
			}
			return ids
		}
		Eventually(blocked).Should(HaveLen(5))
		Expect(replica.Pause()).To(Succeed())
		DeferCleanup(replica.Resume)
		Expect(s.Do("SET", "what", "it lacks").Error()).NotTo(HaveOccurred())
		Expect(s.Do("FAILOVER").Error()).NotTo(HaveOccurred()) // CLIENT PAUSE WRITE from here on
		// Each BLPOP ends in time, and the next one is sent on the same connection. The next one gets no answer:
		// only a deadline of the client's own ends it, and with it the connection.
		before := blocked()
		Eventually(blocked).WithTimeout(minute).ShouldNot(ContainElement(BeElementOf(before)))
		Expect(replica.Resume()).To(Succeed())
		for _, p := range []*redistest.Server{s, replica} {
			Eventually(func() string { role, _ := p.Role(); return role }).Should(Equal("slave"))
			if p == s {
				Eventually(func() (string, error) { return replica.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
				Expect(replica.Do("FAILOVER").Error()).NotTo(HaveOccurred())
			}
		}
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("restarts with its append-only file: the lock stays held, and the order is kept", func(ctx SpecContext) {
		s := OwnServer("--appendonly", "yes", "--appendfsync", "always")
		crew := newCrew(ctx, s.Addr(), "x")
		Expect(s.Kill()).To(Succeed())
		Expect(s.Restart()).To(Succeed())
		crew.holds(ctx)
		crew.takeTurns(ctx)
	})

	It("restarts without any file, library and locks gone: the holder is told, those that wait go on", func(ctx SpecContext) {
		s := OwnServer()
		crew := newCrew(ctx, s.Addr(), "x")
		Expect(s.Kill()).To(Succeed())
		Expect(s.Restart()).To(Succeed())
		crew.startOver(ctx)
	})

	It("is flushed (FLUSHALL keeps the library): likewise", func(ctx SpecContext) {
		s := OwnServer()
		crew := newCrew(ctx, s.Addr(), "x")
		Expect(s.Do("FLUSHALL").Error()).NotTo(HaveOccurred())
		crew.startOver(ctx)
	})

	It("is still LOADING: they wait until it has", func(ctx SpecContext) {
		s := OwnServer("--appendonly", "yes", "--key-load-delay", "100")
		client := Connect(s.Addr())
		var fill []rueidis.Completed
		for i := range 20_000 {
			fill = append(fill, client.B().Set().Key("fill:"+strconv.Itoa(i)).Value("x").Build())
		}
		for _, result := range client.DoMulti(ctx, fill...) {
			Expect(result.Error()).NotTo(HaveOccurred())
		}
		crew, l := newCrew(ctx, s.Addr(), "x", redislock.WithLease(minute)), NewLocker(s.Addr())
		Expect(s.Kill()).To(Succeed())
		restarted := make(chan error, 1)
		go func() { restarted <- s.Restart() }()
		Eventually(func() error { return s.Do("GET", "x").Error() }).Should(MatchError(HavePrefix("LOADING")))
		waiting, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		Expect(l.Acquire(waiting, "y")).Error().To(MatchError(And(ContainSubstring("the last call failed"), ContainSubstring("LOADING"))))
		Eventually(restarted).WithTimeout(time.Minute).Should(Receive(BeNil()))
		crew.takeTurns(ctx)
	})

	It("is BUSY with somebody's script: they wait until it is killed", func(ctx SpecContext) {
		s := OwnServer("--busy-reply-threshold", "20")
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
		crew.next(ctx, 0)
		crew.takeTurns(ctx)
	})

	It("is BUSY for longer than a lease: who holds is told before it is over, who waits keeps its place", func(ctx SpecContext) {
		s := OwnServer("--busy-reply-threshold", "20")
		crew := newCrew(ctx, s.Addr(), "x", redislock.WithLease(brief))
		scripted := make(chan error, 1)
		go func() { scripted <- s.Do("EVAL", "while true do end", "0").Error() }()
		Eventually(func() error { return s.Do("GET", "x").Error() }).Should(MatchError(HavePrefix("BUSY")))
		crew.isTold()
		Expect(s.Do("GET", "x").Error()).To(MatchError(HavePrefix("BUSY")), "still")
		Expect(s.Do("SCRIPT", "KILL").Error()).NotTo(HaveOccurred())
		Eventually(scripted).Should(Receive(HaveOccurred()))
		crew.next(ctx, 0)
		crew.takeTurns(ctx)
	})

	It("misses its replicas (min-replicas-to-write): who holds is told in time, who waits keeps its place", func(ctx SpecContext) {
		s := OwnServer()
		crew := newCrew(ctx, s.Addr(), "x", redislock.WithLease(brief))
		Expect(s.Do("CONFIG", "SET", "min-replicas-to-write", "1").Error()).NotTo(HaveOccurred())
		Expect(NewLocker(s.Addr()).TryAcquire(ctx, "y")).Error().To(MatchError(ContainSubstring("NOREPLICAS")))
		crew.isTold()
		Expect(s.Do("CONFIG", "SET", "min-replicas-to-write", "0").Error()).NotTo(HaveOccurred())
		crew.next(ctx, 0)
		crew.takeTurns(ctx)
	})
})
