package redislock_test

import (
	"cmp"
	"context"
	"errors"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

type ctxKey string

var _ = OnEachTopology("Locker", func() {
	var (
		client rueidis.Client
		locker *redislock.Locker
		other  *redislock.Locker
		name   string
	)
	BeforeEach(func() {
		client = Connect(Server.Addr())
		locker, other = NewLocker(Server.Addr()), NewLocker(Server.Addr())
		name = NewName()
	})

	Describe("New", func() {
		DescribeTable("refuses", func(o redislock.Options, text string) {
			_, err := redislock.New(client, o)
			Expect(err).To(MatchError(ContainSubstring(text)))
		},
			Entry("a prefix with braces", redislock.Options{Prefix: "a{b"}, `"a{b"`),
			Entry("a negative lease", redislock.Options{Lease: -time.Second}, "-1s"),
			Entry("a lease under 1 ms", redislock.Options{Lease: time.Microsecond}, "1µs"),
			Entry("a WaitTTL too short to check in", redislock.Options{WaitTTL: time.Millisecond}, "1ms"),
			Entry("an unknown LoadMode", redislock.Options{LoadMode: 7}, "7"),
			Entry("replicas without a timeout", redislock.Options{Replicas: 1}, "timeout"),
			Entry("a negative maximum hold", redislock.Options{MaxHold: -1}, "-1ns"),
		)
		It("refuses a nil client", func() {
			_, err := redislock.New(nil, redislock.Options{})
			Expect(err).To(MatchError(ContainSubstring("nil")))
		})
		It("uses the prefix for all keys, and its defaults for each call", func(ctx SpecContext) {
			l := NewLocker(Server.Addr(), redislock.Options{Prefix: "*p[x]", Lease: 40 * time.Second, Owner: "me"})
			lock := MustAcquire(ctx, l, name)
			Expect(lock.Token()).To(HavePrefix("me:"))
			Expect(PTTL(client, "*p[x]:{"+name+"}")).To(BeNumerically("~", 40_000, 5_000))
			Expect(l.ResetAll(ctx)).To(Equal(1))
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		})
	})

	It("takes the defaults of the options from Options", func(ctx SpecContext) {
		l := NewLocker(Server.Addr(), redislock.Options{WithoutExpiry: true})
		MustAcquire(ctx, l, name)
		Expect(PTTL(client, KeysOf(name)[0])).To(BeEquivalentTo(-1))
		l = NewLocker(Server.Addr(), redislock.Options{WithoutRenewal: true, MaxHold: 100 * time.Millisecond})
		<-MustAcquire(ctx, l, name+"2").Context().Done()
	})

	It("acquires, tells about the lock, and releases it", func(ctx SpecContext) {
		lock := MustAcquire(context.WithValue(ctx, ctxKey("k"), "v"), locker, name, redislock.WithOwner("me"))
		Expect(lock.Name()).To(Equal(name))
		Expect(lock.Token()).To(HavePrefix("me:"))
		Expect(len(lock.Token())).To(BeNumerically(">=", 3+22), "128 bits")
		Expect(lock.Context().Value(ctxKey("k"))).To(Equal("v"))
		state, err := locker.Inspect(ctx, name)
		Expect(err).NotTo(HaveOccurred())
		Expect(state.Holder).To(Equal(lock.Token()))
		Expect(state.Fence).To(Equal(lock.Fence()))
		Expect(state.TTL).To(BeNumerically("~", 10*time.Second, 5*time.Second))
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(context.Cause(lock.Context())).To(MatchError(context.Canceled))
		Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld), "twice")
		Expect(lock.Extend(ctx, time.Second)).To(MatchError(redislock.ErrNotHeld))
		state, err = locker.Inspect(ctx, name)
		Expect(err).NotTo(HaveOccurred())
		Expect(state).To(Equal(redislock.State{Name: name, Fence: lock.Fence()}))
	})

	It("does not end a lock with the ctx of its wait", func(ctx SpecContext) {
		waiting, cancel := context.WithCancel(ctx)
		lock := MustAcquire(waiting, locker, name)
		cancel()
		Expect(lock.Context().Err()).NotTo(HaveOccurred())
		Expect(lock.Release(waiting)).To(Succeed(), "with a ctx that has ended")
	})

	It("tries, and neither waits nor overtakes", func(ctx SpecContext) {
		lock, err := locker.TryAcquire(ctx, name)
		Expect(err).NotTo(HaveOccurred())
		_, err = other.TryAcquire(ctx, name)
		Expect(err).To(MatchError(redislock.ErrNotAcquired))
		Expect(err).To(MatchError(ContainSubstring(strconv.Quote(name))))
		next := Acquiring(ctx, other, name, 1)
		Expect(lock.Release(ctx)).To(Succeed())
		_, err = locker.TryAcquire(ctx, name)
		Expect(err).To(MatchError(redislock.ErrNotAcquired), "handed over already")
		Expect((<-next).Release(ctx)).To(Succeed())
	})

	It("serves in the order of arrival, over goroutines and Lockers, with growing fences", func(ctx SpecContext) {
		lock := MustAcquire(ctx, locker, name)
		var queue []<-chan *redislock.Lock
		for i := range 20 {
			queue = append(queue, Acquiring(ctx, []*redislock.Locker{locker, other}[i%2], name, i+1))
		}
		for _, next := range queue {
			Consistently(next, "1ms").ShouldNot(Receive())
			before := lock
			Expect(lock.Release(ctx)).To(Succeed())
			Eventually(ctx, next).Should(Receive(&lock))
			Expect(lock.Fence()).To(BeNumerically(">", before.Fence()))
		}
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("has its foremost waiter check in every 2 s, however far back it is; the rest as the server says", Longest, func(ctx SpecContext) {
		own := OwnRedis()
		c, l := Connect(own.Addr()), NewLocker(own.Addr(), redislock.Options{WaitTTL: time.Hour})
		lock := MustAcquire(ctx, l, name, redislock.WithLease(time.Hour)) // no renewal that would be counted
		for i := range 100 {
			reply := FCall(c, "lock_acquire", append(KeysOf(name), "nobody:{"+name+"}"), strconv.Itoa(i), "1000", "3600000")
			Expect(reply.Error()).NotTo(HaveOccurred())
		}
		waiting, cancel := context.WithCancel(ctx)
		first, leave := context.WithCancel(ctx)
		defer leave()
		Acquiring(first, l, name, 101)
		for i := range 9 {
			Acquiring(waiting, l, name, 102+i)
		}
		for range 2 {
			Expect(Redis(c, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			Eventually(ctx, func() int { return CommandCalls(c)["fcall"] }).WithTimeout(15 * time.Second).Should(BeNumerically(">=", 4))
			leave() // then the next one is the foremost
			Eventually(WaitingFor(l, name)).Should(Equal(109))
		}
		cancel()
		Eventually(WaitingFor(l, name)).Should(Equal(100))
		Expect(lock.Release(ctx)).To(Succeed())
	})

	Describe("when ctx ends", func() {
		It("has left the queue, and tells why", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name)
			why := errors.New("why")
			waiting, cancel := context.WithCancelCause(ctx)
			failed := make(chan error)
			go func() {
				_, err := other.Acquire(waiting, name)
				failed <- err
			}()
			Eventually(WaitingFor(locker, name)).Should(Equal(1))
			cancel(why)
			err := <-failed
			Expect(WaitingFor(locker, name)()).To(BeZero())
			Expect(err).To(MatchError(redislock.ErrNotAcquired))
			Expect(err).To(MatchError(context.Canceled))
			Expect(err).To(MatchError(why))
			Expect(err).NotTo(MatchError(redislock.ErrClosed))
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("finds the deadline too", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name)
			waiting, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			_, err := other.Acquire(waiting, name)
			Expect(err).To(MatchError(redislock.ErrNotAcquired))
			Expect(err).To(MatchError(context.DeadlineExceeded))
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("sends nothing if it had ended before", func(ctx SpecContext) {
			own := OwnRedis()
			l, c := NewLocker(own.Addr()), Connect(own.Addr())
			ended, cancel := context.WithCancel(ctx)
			cancel()
			for _, acquire := range []func(context.Context, string, ...redislock.Option) (*redislock.Lock, error){l.Acquire, l.TryAcquire} {
				_, err := acquire(ended, name)
				Expect(err).To(MatchError(context.Canceled))
			}
			Expect(CommandCalls(c)).NotTo(HaveKey("fcall"))
		})
	})

	Describe("Do", func() {
		It("returns fn's error and releases, with a ctx that ends with its own", func(ctx SpecContext) {
			failure := errors.New("failure")
			outer, cancel := context.WithCancelCause(ctx)
			err := locker.Do(outer, name, func(ctx context.Context, lock *redislock.Lock) error {
				Expect(lock.Context()).To(Equal(ctx))
				cancel(errors.New("why"))
				<-ctx.Done()
				Expect(context.Cause(ctx)).To(MatchError("why"))
				_, err := other.TryAcquire(context.Background(), name)
				Expect(err).To(MatchError(redislock.ErrNotAcquired), "held until fn returns")
				return failure
			})
			Expect(err).To(BeIdenticalTo(failure))
			Expect(MustAcquire(ctx, other, name).Release(ctx)).To(Succeed())
		})
		It("releases when fn panics", func(ctx SpecContext) {
			Expect(func() {
				_ = locker.Do(ctx, name, func(context.Context, *redislock.Lock) error { panic("!") })
			}).To(PanicWith("!"))
			Expect(MustAcquire(ctx, other, name).Release(ctx)).To(Succeed())
		})
		It("says that the lock was lost", func(ctx SpecContext) {
			err := locker.Do(ctx, name, func(_ context.Context, _ *redislock.Lock) error {
				return Redis(client, "DEL", KeysOf(name)[0]).Error()
			})
			Expect(err).To(MatchError(redislock.ErrNotHeld))
			Expect(err).To(MatchError(redislock.ErrLost))
		})
		It("says that the lock may have been lost before fn returned, though the release was in time", func(ctx SpecContext) {
			err := locker.Do(ctx, name, func(ctx context.Context, _ *redislock.Lock) error {
				<-ctx.Done()
				return nil
			}, redislock.WithMaxHold(5*time.Second))
			Expect(err).To(MatchError(redislock.ErrLost))
			Expect(err).NotTo(MatchError(redislock.ErrNotHeld), "half a second was left")
		})
		It("leaves a release by fn alone, and one that is under way", func(ctx SpecContext) {
			Expect(locker.Do(ctx, name, func(ctx context.Context, lock *redislock.Lock) error {
				return lock.Release(ctx)
			})).To(Succeed())
			Expect(locker.Do(ctx, name, func(ctx context.Context, lock *redislock.Lock) error {
				go func() { _ = lock.Release(ctx) }()
				<-ctx.Done()
				return nil
			})).To(Succeed())
		})
		It("says that the lock may have been lost before fn released it", func(ctx SpecContext) {
			Expect(locker.Do(ctx, name, func(ctx context.Context, lock *redislock.Lock) error {
				<-ctx.Done()
				return lock.Release(ctx)
			}, redislock.WithMaxHold(5*time.Second))).To(MatchError(redislock.ErrLost))
		})
		It("says that Close ended it", func(ctx SpecContext) {
			l := NewLocker(Server.Addr())
			err := l.Do(ctx, name, func(ctx context.Context, _ *redislock.Lock) error {
				l.Close()
				<-ctx.Done()
				return nil
			})
			Expect(err).To(MatchError(redislock.ErrClosed))
			Expect(err).NotTo(MatchError(redislock.ErrLost))
		})
		It("returns Acquire's error and does not run fn", func(ctx SpecContext) {
			Expect(locker.Do(ctx, "", nil)).To(MatchError(ContainSubstring("must not be empty")))
		})
	})

	Describe("Reset and ResetAll", func() {
		It("hands on, and the former holder learns it at its next renewal", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name, redislock.WithLease(600*time.Millisecond))
			next := Acquiring(ctx, other, name, 1)
			Expect(locker.Reset(ctx, name)).To(BeTrue())
			second := <-next
			Eventually(ctx, lock.Context().Done()).Should(BeClosed())
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
			Expect(second.Release(ctx)).To(Succeed())
			Expect(locker.Reset(ctx, name)).To(BeFalse())
		})
		It("finds all held locks, and touches nothing else", func(ctx SpecContext) {
			own := OwnRedis()
			l, c := NewLocker(own.Addr()), Connect(own.Addr())
			odd := []string{"a", "order:{42}", "a b\n{", "{}", "*"}
			for _, n := range odd {
				MustAcquire(ctx, l, n)
			}
			others := []string{"lock:plain", "lock:", "locker:{x}", "other:{a}"}
			for _, key := range others {
				Expect(Redis(c, "SET", key, "x").Error()).NotTo(HaveOccurred())
			}
			Expect(Redis(c, "SADD", "lock:{set}", "x").Error()).NotTo(HaveOccurred())
			Expect(l.ResetAll(ctx)).To(Equal(len(odd)))
			Expect(l.ResetAll(ctx)).To(Equal(0))
			for _, key := range append(others, "lock:{set}") {
				Expect(Redis(c, "EXISTS", key).ToInt64()).To(BeEquivalentTo(1), key)
			}
			Expect(CommandCalls(c)).To(HaveKey("scan"))
			Expect(CommandCalls(c)).NotTo(HaveKey("keys"))
		})
	})

	Describe("Close", func() {
		It("ends waits, releases what is held, leaves no connection blocked and only states behind", func(ctx SpecContext) {
			own := OwnRedis()
			c, second := Connect(own.Addr()), NewLocker(own.Addr())
			l, err := redislock.New(Connect(own.Addr()), redislock.Options{})
			Expect(err).NotTo(HaveOccurred())
			lock := MustAcquire(ctx, l, name, redislock.WithLease(time.Hour))
			wanted := MustAcquire(ctx, second, name+"2")
			next := Acquiring(ctx, second, name, 1)
			failed := make(chan error, 1)
			go func() {
				_, err := l.Acquire(ctx, name+"2")
				failed <- err
			}()
			Eventually(WaitingFor(l, name+"2")).Should(Equal(1))
			l.Close()
			Expect(<-failed).To(MatchError(redislock.ErrClosed))
			Expect(WaitingFor(second, name+"2")()).To(BeZero())
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrClosed))
			Expect((<-next).Release(ctx)).To(Succeed())
			Expect(wanted.Release(ctx)).To(Succeed())
			l.Close()

			_, err = l.Acquire(ctx, name)
			Expect(err).To(MatchError(redislock.ErrClosed))
			_, err = l.TryAcquire(ctx, name)
			Expect(err).To(MatchError(redislock.ErrClosed))
			_, err = l.Inspect(ctx, name)
			Expect(err).To(MatchError(redislock.ErrClosed))
			_, err = l.Reset(ctx, name)
			Expect(err).To(MatchError(redislock.ErrClosed))
			_, err = l.ResetAll(ctx)
			Expect(err).To(MatchError(redislock.ErrClosed))

			second.Close()
			Eventually(func() (string, error) { return Redis(c, "INFO", "clients").ToString() }).
				Should(ContainSubstring("blocked_clients:0\r\n"))
			keys, err := Redis(c, "KEYS", "*").AsStrSlice()
			Expect(err).NotTo(HaveOccurred())
			Expect(keys).To(ConsistOf("lock-state:{"+name+"}", "lock-state:{"+name+"2}"))
			for _, key := range keys {
				Expect(PTTL(c, key)).To(And(BeNumerically(">", 0), BeNumerically("<=", 600_000)))
			}
		})
	})

	Describe("leases", func() {
		It("are renewed while others wait, as long as it takes", func(ctx SpecContext) {
			const lease = 2 * time.Second
			lock := MustAcquire(ctx, locker, name, redislock.WithLease(lease))
			next := Acquiring(ctx, other, name, 1)
			first, _ := lock.Deadline()
			Eventually(ctx, func() time.Time { d, _ := lock.Deadline(); return d }).
				Should(BeTemporally(">", first.Add(lease)))
			Expect(lock.Context().Err()).NotTo(HaveOccurred())
			Expect(next).NotTo(Receive())
			Expect(lock.Release(ctx)).To(Succeed())
			Expect((<-next).Release(ctx)).To(Succeed())
		})
		It("end without renewal, and the next one gets the lock", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name, redislock.WithLease(300*time.Millisecond), redislock.WithoutRenewal())
			next := Acquiring(ctx, other, name, 0) // it may come too late to wait
			deadline, _ := lock.Deadline()
			<-lock.Context().Done()
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			second := <-next
			Expect(time.Now()).To(BeTemporally(">=", deadline), "not before the first was told")
			Expect(lock.Extend(ctx, time.Second)).To(MatchError(redislock.ErrNotHeld))
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
			Expect(second.Release(ctx)).To(Succeed())
		})
		It("end with WithMaxHold in spite of renewal", func(ctx SpecContext) {
			began := time.Now()
			lock := MustAcquire(ctx, locker, name, redislock.WithLease(time.Second), redislock.WithMaxHold(2*time.Second))
			<-lock.Context().Done()
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			Expect(time.Since(began)).To(BeNumerically(">=", 1700*time.Millisecond), "renewed until then")
			Eventually(ctx, func() int64 { return PTTL(client, KeysOf(name)[0]) }).Should(BeEquivalentTo(-2))
		})
		It("are cut by WithMaxHold, that of a lock without expiry too", func(ctx SpecContext) {
			for i, opt := range []redislock.Option{redislock.WithoutExpiry(), redislock.WithLease(time.Hour)} {
				n := name + strconv.Itoa(i)
				lock := MustAcquire(ctx, locker, n, opt, redislock.WithMaxHold(30*time.Second))
				Expect(PTTL(client, KeysOf(n)[0])).To(And(BeNumerically(">", 0), BeNumerically("<=", 30_000)))
				Expect(lock.Release(ctx)).To(Succeed())
			}
		})
		It("never end WithoutExpiry, also after a hand-over, once it is confirmed", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name, redislock.WithoutExpiry())
			_, expires := lock.Deadline()
			Expect(expires).To(BeFalse())
			Expect(PTTL(client, KeysOf(name)[0])).To(BeEquivalentTo(-1))
			state, err := locker.Inspect(ctx, name)
			Expect(err).NotTo(HaveOccurred())
			Expect(state.TTL).To(BeNumerically("<", 0))
			next := Acquiring(ctx, other, name, 1, redislock.WithoutExpiry())
			Expect(lock.Release(ctx)).To(Succeed())
			second := <-next
			_, expires = second.Deadline()
			Expect(expires).To(BeTrue(), "two seconds, until it is confirmed")
			Eventually(ctx, func() bool { _, expires := second.Deadline(); return expires }).Should(BeFalse())
			Expect(PTTL(client, KeysOf(name)[0])).To(BeEquivalentTo(-1))
			Expect(second.Release(ctx)).To(Succeed())
		})
		It("start short after a hand-over and are confirmed without being asked", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name)
			next := Acquiring(ctx, other, name, 1, redislock.WithLease(time.Minute), redislock.WithoutRenewal())
			Expect(lock.Release(ctx)).To(Succeed())
			second := <-next
			Expect(PTTL(client, KeysOf(name)[0])).To(BeNumerically("<=", 2_000))
			Eventually(ctx, func() int64 { return PTTL(client, KeysOf(name)[0]) }).Should(BeNumerically(">", 50_000))
			Eventually(ctx, func() time.Duration { d, _ := second.Deadline(); return time.Until(d) }).
				Should(BeNumerically(">", 50*time.Second))
			Expect(second.Release(ctx)).To(Succeed())
		})
		It("have a Deadline that is not later than the server's, however slow the way", func(ctx SpecContext) {
			network := NewProxy(Server.Addr())
			far, next := NewLocker(network.Addr()), NewLocker(network.Addr())
			Expect(MustAcquire(ctx, far, name).Release(ctx)).To(Succeed())
			network.SetDelay(50 * time.Millisecond)
			check := func(lock *redislock.Lock) (deadline time.Time) {
				GinkgoHelper()
				deadline, ok := lock.Deadline()
				Expect(ok).To(BeTrue())
				left := time.Duration(PTTL(client, KeysOf(name)[0])) * time.Millisecond // was true earlier than now
				Expect(time.Until(deadline)).To(BeNumerically("<=", left+time.Millisecond))
				return deadline
			}
			moved := func(lock *redislock.Lock, from time.Time) {
				GinkgoHelper()
				Eventually(func() time.Time { d, _ := lock.Deadline(); return d }).Should(BeTemporally(">", from.Add(100*time.Millisecond)))
				check(lock)
			}
			lock := MustAcquire(ctx, far, name, redislock.WithLease(3*time.Second))
			moved(lock, check(lock)) // renewed
			waiting := Acquiring(ctx, next, name, 1)
			Expect(lock.Extend(ctx, 20*time.Second)).To(Succeed())
			check(lock)
			Expect(lock.Release(ctx)).To(Succeed())
			lock = <-waiting
			moved(lock, check(lock)) // claimed
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("are claimed once after a hand-over, and end by themselves without renewal", func(ctx SpecContext) {
			own := OwnRedis()
			l := NewLocker(own.Addr())
			lock := MustAcquire(ctx, l, name)
			next := Acquiring(ctx, l, name, 1, redislock.WithLease(3*time.Second), redislock.WithoutRenewal())
			seen := Monitor(own.Addr())
			Expect(lock.Release(ctx)).To(Succeed())
			lock = <-next
			Eventually(lock.Context().Done()).Should(BeClosed())
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			Expect(seen.Count("lock_extend")).To(Equal(1))
		})
		It("stay as they are if Redis refuses a shorter one", func(ctx SpecContext) {
			own := OwnRedis()
			lock := MustAcquire(ctx, NewLocker(own.Addr()), name, redislock.WithoutRenewal())
			before, _ := lock.Deadline()
			c := Connect(own.Addr())
			Expect(Redis(c, "CONFIG", "SET", "min-replicas-to-write", "1").Error()).NotTo(HaveOccurred())
			Expect(lock.Extend(ctx, 300*time.Millisecond)).To(MatchError(ContainSubstring("NOREPLICAS")))
			after, _ := lock.Deadline()
			Expect(after).To(Equal(before))
			Expect(Redis(c, "CONFIG", "SET", "min-replicas-to-write", "0").Error()).NotTo(HaveOccurred())
			Expect(lock.Extend(ctx, time.Minute)).To(Succeed())
			after, _ = lock.Deadline()
			Expect(after).To(BeTemporally(">", before), "no call is in doubt")
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("stay as they are if ctx has ended before Extend: nothing is sent", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name, redislock.WithoutRenewal())
			before, _ := lock.Deadline()
			ended, cancel := context.WithCancel(ctx)
			cancel()
			for range 20 {
				Expect(lock.Extend(ended, 300*time.Millisecond)).To(MatchError(context.Canceled))
			}
			after, _ := lock.Deadline()
			Expect(after).To(Equal(before))
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("end with a Release, whatever an Extend beside it says then", func(ctx SpecContext) {
			own := OwnRedis()
			network := NewProxy(own.Addr())
			lock := MustAcquire(ctx, NewLocker(network.Addr()), name)
			seen := Monitor(own.Addr())
			network.SetDelay(50 * time.Millisecond)
			extended := make(chan error, 1)
			go func() { extended <- lock.Extend(ctx, time.Hour) }()
			Eventually(func() int { return seen.Count("lock_extend", "3600000") }).Should(Equal(1))
			before, _ := lock.Deadline()
			Expect(lock.Release(ctx)).To(Succeed())
			Expect(<-extended).To(MatchError(redislock.ErrNotHeld))
			after, _ := lock.Deadline()
			Expect(after).To(Equal(before))
		})
		It("are set by Extend, shorter too, and renewal goes on with that", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name)
			Expect(lock.Extend(ctx, time.Hour)).To(Succeed())
			Expect(PTTL(client, KeysOf(name)[0])).To(BeNumerically("~", 3_600_000, 20_000))
			Expect(lock.Extend(ctx, 2*time.Second)).To(Succeed())
			first, _ := lock.Deadline()
			Eventually(ctx, func() time.Time { d, _ := lock.Deadline(); return d }).Should(BeTemporally(">", first.Add(time.Second)))
			Expect(Redis(client, "DEL", KeysOf(name)[0]).Error()).NotTo(HaveOccurred())
			Expect(lock.Extend(ctx, time.Second)).To(MatchError(redislock.ErrNotHeld))
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
		})
	})

	Describe("WithToken", func() {
		It("lets another Locker go on with the same lock", func(ctx SpecContext) {
			lock := MustAcquire(ctx, locker, name, redislock.WithToken("shared \n token"))
			same := MustAcquire(ctx, other, name, redislock.WithToken("shared \n token"))
			Expect(same.Fence()).To(Equal(lock.Fence()))
			Expect(same.Release(ctx)).To(Succeed())
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		})
		It("waits, for two names at once with one token too", func(ctx SpecContext) {
			first, second := MustAcquire(ctx, locker, name), MustAcquire(ctx, locker, name+"2")
			got1 := Acquiring(ctx, other, name, 1, redislock.WithToken("t"))
			got2 := Acquiring(ctx, other, name+"2", 1, redislock.WithToken("t"))
			Expect(first.Release(ctx)).To(Succeed())
			Expect((<-got1).Release(ctx)).To(Succeed())
			Consistently(got2, "20ms").ShouldNot(Receive())
			Expect(second.Release(ctx)).To(Succeed())
			Expect((<-got2).Release(ctx)).To(Succeed())
		})
	})

	DescribeTable("durations are honoured or refused, never zero and never for ever",
		func(ctx SpecContext, d time.Duration, wantMS float64) {
			for what, opts := range map[string][]redislock.Option{
				"lease":        {redislock.WithLease(d), redislock.WithoutRenewal()},
				"maximum hold": {redislock.WithMaxHold(d), redislock.WithLease(200 * 365 * 24 * time.Hour)},
			} {
				lock, err := locker.Acquire(ctx, name, opts...)
				if wantMS == 0 {
					Expect(err).To(MatchError(And(ContainSubstring(what), ContainSubstring(strconv.Quote(name)), ContainSubstring("1ms"))))
					if d != 0 {
						Expect(err).To(MatchError(ContainSubstring(d.String())))
					}
					Expect(Redis(client, append([]string{"EXISTS"}, KeysOf(name)...)...).ToInt64()).To(BeZero())
					continue
				}
				Expect(err).NotTo(HaveOccurred())
				Expect(PTTL(client, KeysOf(name)[0])).To(And(BeNumerically("<=", wantMS), BeNumerically(">", max(0, wantMS-10_000))))
				Expect(lock.Extend(ctx, d)).To(Succeed())
				Expect(lock.Release(ctx)).To(Succeed())
			}
			if wantMS == 0 {
				lock := MustAcquire(ctx, locker, name)
				Expect(lock.Extend(ctx, d)).To(MatchError(ContainSubstring("at least 1ms")))
				Expect(lock.Release(ctx)).To(Succeed())
			}
		},
		Entry("0", time.Duration(0), 0.0),
		Entry("negative", -time.Second, 0.0),
		Entry("smallest", time.Duration(math.MinInt64), 0.0),
		Entry("under 1 ms", 999*time.Microsecond, 0.0),
		Entry("1.5 s", 1500*time.Millisecond, 1500.0),
		Entry("not whole ms", 15*time.Second+time.Microsecond, 15001.0),
		Entry("25 days", 25*24*time.Hour, 25.0*24*3600*1000),
		Entry("100 years", 100*365*24*time.Hour, 100.0*365*24*3600*1000),
	)

	It("gives a lease of 1 ms, or says that it is too short", func(ctx SpecContext) {
		lock, err := locker.Acquire(ctx, name, redislock.WithLease(time.Millisecond), redislock.WithoutRenewal())
		if err != nil {
			Expect(err).To(MatchError(redislock.ErrLost))
			Expect(err).To(MatchError(ContainSubstring("1ms")))
			return
		}
		<-lock.Context().Done()
		Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
	})

	DescribeTable("names of any bytes work, handed over too", func(ctx SpecContext, odd string) {
		odd = strings.ReplaceAll(odd, "NAME", name)
		lock := MustAcquire(ctx, locker, odd)
		token := "\x00{} \n" + odd
		next := Acquiring(ctx, other, odd, 1, redislock.WithToken(token))
		state, err := locker.Inspect(ctx, odd)
		Expect(err).NotTo(HaveOccurred())
		Expect(state.Waiters).To(HaveLen(1))
		Expect(state.Waiters[0].Token).To(Equal(token))
		Expect(state.Waiters[0].LapsesIn).To(BeNumerically("~", 30*time.Second, 10*time.Second))
		Expect(state.Waiters[0].Lease).To(Equal(10 * time.Second))
		Expect(state.Waiters[0].Signal).To(HavePrefix("lock-signal:"))
		Expect(lock.Release(ctx)).To(Succeed())
		second := <-next
		Expect(Redis(client, "GET", KeysOf(odd)[0]).ToString()).To(Equal(token))
		Expect(second.Release(ctx)).To(Succeed())
	},
		Entry("spaces", "a NAME b"), Entry("newline", "NAME\r\n"), Entry("NUL", "\x00NAME"), Entry("UTF-8", "schloß NAME 🔒"),
		Entry("not UTF-8", "\xff\xfeNAME"), Entry("open brace", "{NAME"), Entry("closing brace", "NAME}"), Entry("inner brace", "a}NAME"),
		Entry("empty tag", "{}NAME"), Entry("two tags", "NAME{}{b}"), Entry("own tag", "order:{NAME}"), Entry("glob", "*?[NAME]"),
		Entry("1 KB", strings.Repeat("x", 1024)+"NAME"),
	)

	DescribeTable("bad names get a clear error", func(ctx SpecContext, bad, text string) {
		_, err := locker.Acquire(ctx, bad)
		Expect(err).To(MatchError(ContainSubstring(text)))
		_, err = locker.TryAcquire(ctx, bad)
		Expect(err).To(MatchError(ContainSubstring(text)))
		_, err = locker.Inspect(ctx, bad)
		Expect(err).To(MatchError(ContainSubstring(text)))
		_, err = locker.Reset(ctx, bad)
		Expect(err).To(MatchError(ContainSubstring(text)))
	},
		Entry("empty", "", "must not be empty"),
		Entry("beginning with a closing brace", "}x", `"}x"`),
	)

	It("refuses an empty token", func(ctx SpecContext) {
		_, err := locker.Acquire(ctx, name, redislock.WithToken(""))
		Expect(err).To(MatchError(ContainSubstring("empty token")))
	})

	It("returns what Redis says at once if it will not pass, with the lock's name", func(ctx SpecContext) {
		Expect(Redis(client, "LPUSH", KeysOf(name)[0], "x").Error()).NotTo(HaveOccurred())
		for _, err := range []error{
			Second(locker.Acquire(ctx, name)), Second(locker.TryAcquire(ctx, name)), Second(locker.Inspect(ctx, name)), Second(locker.Reset(ctx, name)),
		} {
			Expect(err).To(MatchError(ContainSubstring("WRONGTYPE")))
			Expect(err).To(MatchError(ContainSubstring(strconv.Quote(name))))
			Expect(err).NotTo(MatchError(redislock.ErrNotAcquired))
		}
	})

	Describe("cost", func() {
		DescribeTable("is 3 commands per contended acquire and release, whatever the number of waiters",
			func(ctx SpecContext, contenders int) {
				own := OwnRedis()
				c := Connect(own.Addr())
				const rounds = 1200
				var ready, done sync.WaitGroup
				start := make(chan struct{})
				for range contenders {
					l := NewLocker(own.Addr())
					Expect(MustAcquire(ctx, l, "warm-up").Release(ctx)).To(Succeed())
					ready.Add(1)
					done.Go(func() {
						defer GinkgoRecover()
						ready.Done()
						<-start
						for range rounds / contenders {
							lock, err := l.Acquire(ctx, name)
							Expect(err).NotTo(HaveOccurred())
							_, err = l.Inspect(ctx, name) // some work: the lock is not confirmed meanwhile
							Expect(err).NotTo(HaveOccurred())
							// A machine that stands still for two seconds costs the lock that was handed over.
							Expect(lock.Release(ctx)).To(Or(Succeed(), MatchError(redislock.ErrNotHeld)))
						}
					})
				}
				ready.Wait()
				Expect(Redis(c, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
				began := time.Now()
				close(start)
				done.Wait()
				calls := CommandCalls(c)
				cycles := float64(rounds / contenders * contenders)
				// Besides, each begins and ends, and checks in every second if the machine is so slow that it waits so long.
				others := float64(contenders) * (10 + 2*time.Since(began).Seconds())
				Expect(float64(calls["fcall"]+calls["blpop"])).To(BeNumerically("<=", 3.05*cycles+others), "%v in %v cycles", calls, cycles)
				for _, extra := range []string{"subscribe", "eval", "blmpop"} {
					Expect(calls[extra]).To(BeZero())
				}
			},
			Entry(nil, 2), Entry(nil, 16), Entry(nil, 64),
		)
		It("is 2 commands if the lock is free", func(ctx SpecContext) {
			own := OwnRedis()
			c, l := Connect(own.Addr()), NewLocker(own.Addr())
			Expect(MustAcquire(ctx, l, name).Release(ctx)).To(Succeed())
			Expect(Redis(c, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			for range 100 {
				Expect(MustAcquire(ctx, l, name).Release(ctx)).To(Succeed())
			}
			calls := CommandCalls(c)
			Expect(calls["fcall"]).To(Equal(200))
			Expect(calls["blpop"]).To(BeZero())
		})
		It("is 2 blocked connections at most with 1,000 waiters, no goroutine but theirs, and they are served in order", func(ctx SpecContext) {
			own := OwnRedis()
			c, l := Connect(own.Addr()), NewLocker(own.Addr())
			lock := MustAcquire(ctx, l, name)
			before := runtime.NumGoroutine()
			var all sync.WaitGroup
			served := make(chan string, 1000)
			for range 1000 {
				all.Go(func() {
					defer GinkgoRecover()
					lock, err := l.Acquire(ctx, name)
					Expect(err).NotTo(HaveOccurred())
					served <- lock.Token()
					Expect(lock.Release(ctx)).To(Succeed())
				})
			}
			Eventually(WaitingFor(l, name)).Should(Equal(1000))
			Eventually(func() (string, error) { return Redis(c, "INFO", "clients").ToString() }).Should(MatchRegexp("blocked_clients:[12]\r"))
			Eventually(runtime.NumGoroutine).Should(BeNumerically("<=", before+1000+20), "rueidis has some for its connections")
			state, err := l.Inspect(ctx, name)
			Expect(err).NotTo(HaveOccurred())
			Expect(state.Waiters).To(HaveLen(1000))
			// Who comes when many wait calls less often. The order of the queue need not be that of their coming.
			longest := slices.MaxFunc(state.Waiters, func(a, b redislock.Waiter) int { return cmp.Compare(a.LapsesIn+a.Waited, b.LapsesIn+b.Waited) })
			Expect(longest.LapsesIn + longest.Waited).To(BeNumerically(">", 74*time.Second))
			Expect(lock.Release(ctx)).To(Succeed())
			for _, waiter := range state.Waiters {
				Expect(<-served).To(Equal(waiter.Token))
			}
			all.Wait()
		})
	})
})
