package systemtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/proxy"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("trouble", func() {
	var (
		name   string
		server *redistest.Server
		locker *redislock.Locker // of somebody without any
	)
	BeforeEach(func() {
		name = NewName()
		server = OwnRedis()
		locker = NewLocker(server.Addr())
	})

	Describe("a lost reply", func() {
		var (
			network *proxy.Proxy
			cut     *redislock.Locker
		)
		BeforeEach(func() {
			network = NewProxy(server.Addr())
			cut = NewLocker(network.Addr())
		})
		It("of acquire: it is asked again, and the lock is held once", func(ctx SpecContext) {
			dropped := network.DropReply(Containing("lock_acquire"))
			lock := MustAcquire(ctx, cut, name)
			Expect(dropped).To(BeClosed())
			state, err := locker.Inspect(ctx, name)
			Expect(err).NotTo(HaveOccurred())
			Expect(state.Holder).To(Equal(lock.Token()))
			Expect(state.Fence).To(Equal(lock.Fence()))
			Expect(state.Waiting).To(BeZero())
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("of a try: likewise", func(ctx SpecContext) {
			dropped := network.DropReply(Containing("lock_acquire"))
			lock, err := cut.TryAcquire(ctx, name)
			Expect(err).NotTo(HaveOccurred())
			Expect(dropped).To(BeClosed())
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("of acquire by a waiter: it keeps its place", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name)
			dropped := network.DropReply(Containing("lock_acquire"))
			first := Acquiring(ctx, cut, name, 1)
			second := Acquiring(ctx, locker, name, 2)
			Eventually(dropped).Should(BeClosed())
			Expect(lock.Release(ctx)).To(Succeed())
			Eventually(ctx, first).Should(Receive(&lock))
			Expect(second).NotTo(Receive())
			Expect(lock.Release(ctx)).To(Succeed())
			Expect((<-second).Release(ctx)).To(Succeed())
		})
		It("of a release: it was held until then, so that is no error", func(ctx SpecContext) {
			lock := MustAcquire(ctx, cut, name)
			next := Acquiring(ctx, locker, name, 1)
			dropped := network.DropReply(Containing("lock_release"))
			Expect(lock.Release(ctx)).To(Succeed())
			Expect(dropped).To(BeClosed())
			Expect((<-next).Release(ctx)).To(Succeed())
		})
		It("of an Extend that shortens the lease: it is renewed for that", func(ctx SpecContext) {
			lock := MustAcquire(ctx, cut, name)
			network.SetDelay(100 * time.Millisecond)
			waiting, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
			defer cancel()
			Expect(lock.Extend(waiting, 3*time.Second)).To(MatchError(context.DeadlineExceeded))
			network.SetDelay(0)
			first, _ := lock.Deadline()
			Eventually(ctx, func() time.Time { d, _ := lock.Deadline(); return d }).Should(BeTemporally(">", first.Add(time.Second)))
			Expect(PTTL(Connect(server.Addr()), KeysOf(name)[0])).To(BeNumerically("<=", 3000))
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("of an acquire, which may arrive when the lease was extended: no Deadline goes beyond the first lease", func(ctx SpecContext) {
			dropped := network.DropReply(Containing("lock_acquire"))
			lock := MustAcquire(ctx, cut, name, redislock.WithLease(2*time.Second), redislock.WithoutRenewal())
			Expect(dropped).To(BeClosed())
			Expect(lock.Extend(ctx, time.Minute)).To(Succeed())
			deadline, _ := lock.Deadline()
			Expect(deadline).To(BeTemporally("<", time.Now().Add(2*time.Second)))
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("of BLPOP, the signal itself: the waiter finds out at its check-in", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name)
			dropped := network.DropReply(Containing("BLPOP"))
			next := Acquiring(ctx, cut, name, 1)
			Expect(lock.Release(ctx)).To(Succeed())
			Eventually(dropped).Should(BeClosed())
			Eventually(ctx, next).Should(Receive(&lock))
			Expect(lock.Release(ctx)).To(Succeed())
		})
	})

	Describe("a silent network", func() {
		It("ends the Context of a holder by its Deadline", func(ctx SpecContext) {
			network := NewProxy(server.Addr())
			lock := MustAcquire(ctx, NewLocker(network.Addr()), name, redislock.WithLease(time.Second))
			network.BlackHole(true)
			<-lock.Context().Done()
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			next := MustAcquire(ctx, locker, name)
			Expect(next.Fence()).To(BeNumerically(">", lock.Fence()))
			network.BlackHole(false)
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
			Expect(next.Release(ctx)).To(Succeed())
		})
		It("does not keep a waiter from giving up, and nothing is left of it", func(ctx SpecContext) {
			network := NewProxy(server.Addr())
			silent := NewLocker(network.Addr())
			Expect(MustAcquire(ctx, silent, name).Release(ctx)).To(Succeed())
			lock := MustAcquire(ctx, locker, name)
			network.SetDelay(200 * time.Millisecond)
			waiting, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			_, err := silent.Acquire(waiting, name)
			Expect(err).To(MatchError(context.DeadlineExceeded))
			Eventually(WaitingFor(locker, name)).Should(BeZero())

			network.BlackHole(true)
			again, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err = silent.Acquire(again, name)
			Expect(err).To(And(MatchError(redislock.ErrUnavailable), MatchError(context.DeadlineExceeded)))
			Expect(time.Since(began)).To(BeNumerically("<", 5*time.Second), "ctx, and a second for what is to be undone")
			network.BlackHole(false)
			Expect(lock.Release(ctx)).To(Succeed())
			silent.Close()
			state, err := locker.Inspect(ctx, name)
			Expect(err).NotTo(HaveOccurred())
			Expect(state.Holder).To(BeEmpty())
			Expect(state.Waiting).To(BeZero())
		})
		It("lets a waiter go on when it ends", func(ctx SpecContext) {
			network := NewProxy(server.Addr())
			lock := MustAcquire(ctx, locker, name)
			next := Acquiring(ctx, NewLocker(network.Addr()), name, 1)
			network.BlackHole(true)
			Expect(lock.Release(ctx)).To(Succeed())
			Eventually(func() (string, error) { return StateOf(locker, name).Holder, nil }).Should(BeEmpty(), "its two seconds are over")
			network.BlackHole(false)
			Eventually(ctx, next).Should(Receive(&lock))
			Expect(lock.Release(ctx)).To(Succeed())
		})
	})

	It("cut connections: renewal goes on, and the order is kept", func(ctx SpecContext) {
		network := NewProxy(server.Addr())
		cut := NewLocker(network.Addr())
		lock := MustAcquire(ctx, cut, name, redislock.WithLease(3*time.Second))
		var queue []<-chan *redislock.Lock
		for i := range 5 {
			queue = append(queue, Acquiring(ctx, cut, name, i+1))
		}
		for range 5 {
			network.CutAll()
			before, _ := lock.Deadline()
			Eventually(ctx, func() time.Time { d, _ := lock.Deadline(); return d }).Should(BeTemporally(">", before))
		}
		for _, next := range queue {
			network.CutAll()
			Expect(lock.Release(ctx)).To(Succeed())
			Eventually(ctx, next).Should(Receive(&lock))
		}
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("a server that comes up later: Acquire waits for it; a ctx that ends tells what was wrong", func(ctx SpecContext) {
		own := server
		l := NewLocker(own.Addr())
		Expect(own.Kill()).To(Succeed())
		waiting, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err := l.Acquire(waiting, name)
		Expect(err).To(MatchError(context.DeadlineExceeded))
		Expect(err).To(MatchError(ContainSubstring("the last call failed")))
		_, err = l.TryAcquire(ctx, name)
		Expect(err).To(HaveOccurred())
		Expect(err).NotTo(MatchError(redislock.ErrNotAcquired))
		got := make(chan *redislock.Lock)
		go func() {
			defer GinkgoRecover()
			got <- MustAcquire(ctx, l, name)
		}()
		Expect(own.Restart()).To(Succeed())
		Expect((<-got).Release(ctx)).To(Succeed())
	})

	It("a client that was closed is an error, not a wait", func(ctx SpecContext) {
		client := Connect(server.Addr())
		l, err := redislock.New(client, redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(l.Close)
		client.Close()
		_, err = l.Acquire(ctx, name)
		Expect(err).To(MatchError(rueidis.ErrClosing))
	})

	It("a restart that forgets everything: the holder is told, the waiters go on", func(ctx SpecContext) {
		own := server
		l := NewLocker(own.Addr())
		lock := MustAcquire(ctx, l, name, redislock.WithLease(2*time.Second))
		next := Acquiring(ctx, NewLocker(own.Addr()), name, 1)
		Expect(own.Kill()).To(Succeed())
		Expect(own.Restart()).To(Succeed())
		<-lock.Context().Done()
		Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
		second := <-next
		Expect(second.Fence()).To(BeNumerically(">", lock.Fence()))
		Expect(second.Release(ctx)).To(Succeed())
	})

	DescribeTable("a deleted key: the waiters go on, in order", func(ctx SpecContext, key int) {
		lock := MustAcquire(ctx, locker, name, redislock.WithLease(3*time.Second))
		other := NewLocker(server.Addr())
		first, second := Acquiring(ctx, locker, name, 1), Acquiring(ctx, other, name, 2)
		Expect(Redis(Connect(server.Addr()), "DEL", KeysOf(name)[key]).Error()).NotTo(HaveOccurred())
		if key == 0 {
			<-lock.Context().Done()
		} else {
			Eventually(WaitingFor(locker, name)).Should(Equal(2))
			Expect(lock.Release(ctx)).To(Succeed())
		}
		var fences [2]int64
		serve := func(i int, next <-chan *redislock.Lock) {
			defer GinkgoRecover()
			lock := <-next
			fences[i] = lock.Fence()
			Expect(lock.Release(ctx)).To(Succeed())
		}
		var both sync.WaitGroup
		both.Go(func() { serve(0, first) })
		both.Go(func() { serve(1, second) })
		both.Wait()
		if key != 1 { // with the queue, its order is gone
			Expect(fences[0]).To(BeNumerically("<", fences[1]))
		}
	}, Entry("lock", 0), Entry("queue", 1), Entry("state", 2))

	It("over maxmemory: acquire is refused, what is held is renewed and released", func(ctx SpecContext) {
		own := server
		l, c := NewLocker(own.Addr()), Connect(own.Addr())
		lock := MustAcquire(ctx, l, name, redislock.WithLease(3*time.Second))
		failed := make(chan error)
		go func() {
			_, err := l.Acquire(ctx, name)
			failed <- err
		}()
		Eventually(WaitingFor(l, name)).Should(Equal(1))
		Expect(Redis(c, "CONFIG", "SET", "maxmemory", "1").Error()).NotTo(HaveOccurred())
		before, _ := lock.Deadline()
		Expect(<-failed).To(MatchError(ContainSubstring("OOM")))
		Expect(WaitingFor(l, name)()).To(BeZero())
		Eventually(ctx, func() time.Time { d, _ := lock.Deadline(); return d }).Should(BeTemporally(">", before))
		_, err := l.TryAcquire(ctx, name)
		Expect(err).To(MatchError(ContainSubstring("OOM")))
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("a signal list that somebody made a string: the waiters get that error and leave", func(ctx SpecContext) {
		lock := MustAcquire(ctx, locker, name)
		failed := make(chan error)
		go func() {
			_, err := locker.Acquire(ctx, name)
			failed <- err
		}()
		Eventually(WaitingFor(locker, name)).Should(Equal(1))
		client := Connect(server.Addr())
		list := StateOf(locker, name).Waiters[0].Signal
		Expect(Redis(client, "SET", list, "x").Error()).NotTo(HaveOccurred())
		Expect(<-failed).To(MatchError(ContainSubstring("WRONGTYPE")))
		Expect(Redis(client, "DEL", list).Error()).NotTo(HaveOccurred())
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("UNBLOCKED and a paused server: waiters survive", func(ctx SpecContext) {
		own := server
		l, c := NewLocker(own.Addr()), Connect(own.Addr())
		lock := MustAcquire(ctx, l, name, redislock.WithLease(10*time.Second))
		next := Acquiring(ctx, l, name, 1)
		Eventually(func() (int64, error) { return unblockAll(c) }).Should(BeEquivalentTo(1))
		Expect(Redis(c, "CLIENT", "PAUSE", "1500", "WRITE").Error()).NotTo(HaveOccurred())
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(ctx, next).Should(Receive(&lock))
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("many names at once, over one list", func(ctx SpecContext) {
		other := NewLocker(server.Addr())
		var all sync.WaitGroup
		for i := range 100 {
			n := name + "-" + strconv.Itoa(i)
			for _, l := range []*redislock.Locker{locker, other, locker, other} {
				all.Go(func() {
					defer GinkgoRecover()
					for range 3 {
						Expect(l.Do(ctx, n, func(context.Context, *redislock.Lock) error {
							<-time.After(time.Duration(rand.IntN(3)) * time.Millisecond)
							return nil
						})).To(Succeed())
					}
				})
			}
		}
		all.Wait()
	})

	It("a lease that always runs out before the grant arrives is an error that says so", func(ctx SpecContext) {
		network := NewProxy(server.Addr())
		far := NewLocker(network.Addr())
		Expect(MustAcquire(ctx, far, name).Release(ctx)).To(Succeed())
		network.SetDelay(30 * time.Millisecond)
		for _, acquire := range []func(context.Context, string, ...redislock.Option) (*redislock.Lock, error){far.Acquire, far.TryAcquire} {
			_, err := acquire(ctx, name, redislock.WithLease(20*time.Millisecond))
			Expect(err).To(MatchError(redislock.ErrLost))
			Expect(err).To(MatchError(ContainSubstring("use a longer one")))
		}
		network.SetDelay(0)
		network.CutAll()
		Expect(MustAcquire(ctx, locker, name).Release(ctx)).To(Succeed())
	})
})

// unblockAll answers every blocked BLPOP with an error, as a role change does.
func unblockAll(client rueidis.Client) (count int64, err error) {
	list, err := Redis(client, "CLIENT", "LIST").ToString()
	for line := range strings.Lines(list) {
		if !strings.Contains(line, "cmd=blpop") {
			continue
		}
		id, _, _ := strings.Cut(strings.TrimPrefix(line, "id="), " ")
		n, failed := Redis(client, "CLIENT", "UNBLOCK", id, "ERROR").ToInt64()
		count += n
		err = errors.Join(err, failed)
	}
	return count, err
}

// dumped returns a function that puts keys back as they are now, as a failover does that loses the
// last writes.
func dumped(client rueidis.Client, keys ...string) (restore func()) {
	GinkgoHelper()
	old := map[string]string{}
	for _, key := range keys {
		var err error
		old[key], err = Redis(client, "DUMP", key).ToString()
		Expect(err).NotTo(HaveOccurred())
	}
	return func() {
		GinkgoHelper()
		for key, value := range old {
			Expect(Redis(client, "RESTORE", key, "60000", value, "REPLACE").Error()).NotTo(HaveOccurred())
		}
	}
}

var _ = OnEachTopology("a queue that has come back, as after a failover that lost the last writes", func() {
	It("has a waiter that was through, though the answer to its first call was lost: its turn is passed on", func(ctx SpecContext) {
		name, server := NewName(), OwnRedis()
		network := NewProxy(server.Addr())
		cut, other := NewLocker(network.Addr()), NewLocker(server.Addr())
		client := Connect(server.Addr())
		lock := MustAcquire(ctx, other, name)
		dropped := network.DropReply(Containing("lock_acquire"))
		network.SetDelay(300 * time.Millisecond) // its second call finds that the lock is its own
		served := make(chan *redislock.Lock, 1)
		go func() {
			defer GinkgoRecover()
			served <- MustAcquire(ctx, cut, name)
		}()
		Eventually(WaitingFor(other, name)).Should(Equal(1))
		restore, list := dumped(client, KeysOf(name)[1:]...), StateOf(other, name).Waiters[0].Signal
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(ctx, served).Should(Receive(&lock))
		Expect(dropped).To(BeClosed())
		Expect(lock.Release(ctx)).To(Succeed())
		network.SetDelay(0)

		lock = MustAcquire(ctx, other, name)
		Expect(Redis(client, "DEL", list).Error()).NotTo(HaveOccurred())
		restore()
		keeping := Acquiring(ctx, cut, name, 2) // somebody there still listens
		Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(ctx, keeping).Should(Receive(&lock))
		Expect(CommandCalls(client)["fcall"]).To(Equal(2), "our release, and one that passes it on: no check-ins")
		Expect(lock.Release(ctx)).To(Succeed())
	})
	It("has waiters that were through: their turns are passed on, one round trip each", func(ctx SpecContext) {
		name := NewName()
		locker, other := NewLocker(Server.Addr()), NewLocker(Server.Addr())
		client := Connect(Server.Addr())
		lock := MustAcquire(ctx, locker, name)
		var through []<-chan *redislock.Lock
		for i := range 30 {
			through = append(through, Acquiring(ctx, locker, name, i+1))
		}
		restore := dumped(client, KeysOf(name)[1:]...)
		for _, next := range through {
			Expect(lock.Release(ctx)).To(Succeed())
			Eventually(ctx, next).Should(Receive(&lock))
		}
		restore()
		next := Acquiring(ctx, other, name, 31)
		keeping := Acquiring(ctx, locker, name, 32) // somebody there still listens
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(next).WithTimeout(10*time.Second).Should(Receive(&lock), "30 times two seconds otherwise")
		Expect(lock.Release(ctx)).To(Succeed())
		Expect((<-keeping).Release(ctx)).To(Succeed())
	})
})
