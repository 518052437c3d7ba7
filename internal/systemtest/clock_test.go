package systemtest

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

const hourMS = 3_600_000

// steppedServer starts a Redis whose clock can be stepped, with the library, and names a lock there.
func steppedServer(ctx context.Context) (s *redistest.Server, step func(time.Duration), raw RawLock, name string) {
	GinkgoHelper()
	s, err := redistest.StartWithClock()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(s.Stop)
	client := Connect(s.Addr())
	Expect(redislock.Load(ctx, client)).To(Succeed())
	name = NewName()
	k := KeysOf(name)
	step = func(d time.Duration) {
		GinkgoHelper()
		Expect(s.StepClock(d)).To(Succeed())
	}
	return s, step, RawLock{Client: client, Lock: k[0], Queue: k[1], State: k[2]}, name
}

// fence is that of a grant.
func fence(reply []int64) int64 {
	GinkgoHelper()
	Expect(reply).To(Hold())
	return reply[1]
}

// received is what comes out of acquiring.
func received(next <-chan *redislock.Lock) (lock *redislock.Lock) {
	GinkgoHelper()
	Eventually(next).Should(Receive(&lock))
	return lock
}

// surely shows that a Lock's Deadline is not later than the end of its lease at the server.
func surely(l RawLock, lock *redislock.Lock) {
	GinkgoHelper()
	deadline, expires := lock.Deadline()
	Expect(expires).To(BeTrue())
	left := time.Duration(l.PTTL(l.Lock)) * time.Millisecond // was true earlier than now
	Expect(time.Until(deadline)).To(BeNumerically("<=", left+time.Millisecond))
}

var _ = Describe("the server's clock", Label("server-clock"), func() {
	var (
		s    *redistest.Server
		step func(time.Duration)
		raw  RawLock
		name string
	)
	BeforeEach(func(ctx SpecContext) { s, step, raw, name = steppedServer(ctx) })

	Describe("and fencing tokens:", func() {
		It("they grow over steps forward and back, with lock-state and, after a step forward, without", func() {
			last := int64(0)
			next := func() int64 {
				GinkgoHelper()
				f := fence(raw.Acquire("a", Long, 0))
				Expect(f).To(BeNumerically(">", last))
				Expect(raw.Release("a")).To(Equal(int64(1)))
				was := last
				last = f
				return f - was
			}
			next()
			step(time.Hour)
			Expect(raw.Existing()).To(BeEmpty(), "its ten minutes are over")
			Expect(next()).To(BeNumerically(">", 1_000_000))
			step(-time.Hour)
			Expect(next()).To(Equal(int64(1)))
			step(-time.Hour)
			Expect(next()).To(Equal(int64(1)))
			step(2 * time.Hour)
			Expect(raw.Existing()).To(BeEmpty())
			next()
		})
		It("after a step back they are lower if lock-state goes, until the clock has caught up", func(ctx SpecContext) {
			first := fence(raw.Acquire("a", Long, 0))
			step(-time.Hour)
			Expect(raw.Release("a")).To(Equal(int64(1)))
			second := fence(raw.Acquire("b", Long, 0))
			Expect(second).To(Equal(first + 1))
			Expect(raw.Release("b")).To(Equal(int64(1)))
			Expect(raw.PTTL(raw.State)).To(BeNumerically("<=", Memory), "from the last use, by the new clock")

			Redis(raw.Client, "PEXPIRE", raw.State, "1")
			raw.Gone(ctx, raw.State)
			before := raw.Micros()
			third := fence(raw.Acquire("c", Long, 0))
			Expect(third).To(And(BeNumerically(">=", before), BeNumerically("<=", raw.Micros()), BeNumerically("<", first)))
			step(time.Hour)
			Expect(fence(raw.Acquire("d", Long, 0))).To(BeNumerically(">", second))
		})
	})

	Describe("and a holder:", func() {
		It("a step forward ends its lease, which its next renewal tells", func(ctx SpecContext) {
			lock := MustAcquire(ctx, NewLocker(s.Addr()), name, redislock.WithLease(3*time.Second))
			step(time.Hour)
			Expect(raw.Int("EXISTS", raw.Lock)).To(BeZero())
			Expect(Redis(raw.Client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			Eventually(lock.Context().Done()).Should(BeClosed())
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			Expect(CommandCalls(raw.Client)["fcall"]).To(BeNumerically("<=", 1))
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		})
		It("until then two believe that they hold it: the second has the higher fencing token", func(ctx SpecContext) {
			lock := MustAcquire(ctx, NewLocker(s.Addr()), name, redislock.WithLease(30*time.Minute))
			step(time.Hour)
			second, err := NewLocker(s.Addr()).TryAcquire(ctx, name)
			Expect(err).NotTo(HaveOccurred())
			Expect(lock.Context().Err()).NotTo(HaveOccurred())
			Expect(second.Fence()).To(BeNumerically(">", lock.Fence()))

			Expect(lock.Extend(ctx, time.Minute)).To(MatchError(redislock.ErrNotHeld))
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			Expect(second.Extend(ctx, time.Minute)).To(Succeed())
		})
		It("a step back lengthens its lease until it is renewed", func(ctx SpecContext) {
			lock := MustAcquire(ctx, NewLocker(s.Addr()), name, redislock.WithLease(30*time.Minute))
			step(-time.Hour)
			Expect(raw.PTTL(raw.Lock)).To(BeNumerically("~", 1.5*hourMS, 5*60_000))
			surely(raw, lock)
			Expect(lock.Extend(ctx, 3*time.Second)).To(Succeed())
			Expect(raw.PTTL(raw.Lock)).To(BeNumerically("<=", 3_000))

			step(-time.Hour)
			Eventually(func() int64 { return raw.PTTL(raw.Lock) }).Should(And(BeNumerically("<=", 3_000), BeNumerically(">", 0)))
			Expect(lock.Context().Err()).NotTo(HaveOccurred())
			surely(raw, lock)
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("one that has died keeps it an hour longer after a step back: its waiters look on, and Reset gives them the lock", func(ctx SpecContext) {
			dead := fence(raw.Acquire("dead", 3_000, 0))
			l := NewLocker(s.Addr())
			next := Acquiring(ctx, l, name, 1)
			step(-time.Hour)
			Expect(Redis(raw.Client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			Eventually(func() int { return CommandCalls(raw.Client)["fcall"] }).Should(BeNumerically(">=", 2))
			Expect(raw.PTTL(raw.Lock)).To(BeNumerically(">", hourMS-60_000))
			Expect(next).NotTo(Receive())
			Expect(l.Reset(ctx, name)).To(BeTrue())
			lock := received(next)
			Expect(lock.Fence()).To(BeNumerically(">", dead))
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("without expiry it goes on over all steps", func(ctx SpecContext) {
			lock := MustAcquire(ctx, NewLocker(s.Addr()), name, redislock.WithoutExpiry())
			for _, d := range []time.Duration{time.Hour, -2 * time.Hour, time.Hour} {
				step(d)
				Expect(raw.PTTL(raw.Lock)).To(Equal(int64(-1)))
				_, err := NewLocker(s.Addr()).TryAcquire(ctx, name)
				Expect(err).To(MatchError(redislock.ErrNotAcquired))
				Expect(raw.Inspect().Fence).To(Equal(lock.Fence()))
			}
			Expect(lock.Context().Err()).NotTo(HaveOccurred())
			Expect(lock.Release(ctx)).To(Succeed())
		})
	})

	Describe("and a lock that was handed over and is not claimed:", func() {
		It("a step forward ends its lease, which the claim tells", func(ctx SpecContext) {
			raw.Contended("a", "b")
			Expect(raw.Release("h")).To(Equal(int64(1)))
			told := raw.Pop("a")
			step(time.Hour)
			Expect(raw.Extend("a", Long)).To(Equal(int64(0)))
			Expect(fence(raw.Acquire("b", Long, Long))).To(BeNumerically(">", told.Fence))
			Expect(raw.Release("b")).To(Equal(int64(1)))

			l := NewLocker(s.Addr())
			first := MustAcquire(ctx, l, name)
			next := Acquiring(ctx, l, name, 1)
			Expect(first.Release(ctx)).To(Succeed())
			second := received(next)
			step(time.Hour)
			Eventually(second.Context().Done()).Should(BeClosed())
			Expect(context.Cause(second.Context())).To(MatchError(redislock.ErrLost))
		})
		It("a step back makes its two seconds an hour, until it is claimed or reset", func(ctx SpecContext) {
			raw.Contended("a", "b")
			Expect(raw.Release("h")).To(Equal(int64(1)))
			step(-time.Hour)
			Expect(raw.PTTL(raw.Lock)).To(And(BeNumerically(">", hourMS-60_000), BeNumerically("<=", hourMS+Claim)))
			Expect(raw.Reset()).To(Equal(int64(1)))
			Expect(raw.Inspect().Holder).To(Equal("b"))
			Expect(raw.PTTL(raw.Lock)).To(BeNumerically("<=", Claim))
			Expect(raw.Release("b")).To(Equal(int64(1)))

			l := NewLocker(s.Addr())
			first := MustAcquire(ctx, l, name)
			next := Acquiring(ctx, l, name, 1)
			Expect(first.Release(ctx)).To(Succeed())
			second := received(next)
			step(-time.Hour)
			Eventually(func() int64 { return raw.PTTL(raw.Lock) }).Should(And(BeNumerically("<=", 10_000), BeNumerically(">", 0)))
			Expect(second.Context().Err()).NotTo(HaveOccurred())
			Expect(second.Release(ctx)).To(Succeed())
		})
	})

	Describe("and waiters:", func() {
		It("a step forward beyond WAIT_MS ends their places: who calls first has the lock, the rest queue by one call", func() {
			raw.Contended("a", "b", "c")
			last := raw.Inspect().Fence
			step(time.Hour)
			Expect(raw.Existing()).To(BeEmpty())
			Expect(fence(raw.Acquire("b", Long, Long))).To(BeNumerically(">", last))
			Expect(raw.Acquire("c", Long, Long)).To(Queued(1))
			Expect(raw.Acquire("a", Long, Long)).To(Queued(2))
			raw.Pass("b", "c")
			raw.Pass("c", "a")
		})
		It("likewise if the lock never expires", func() {
			Expect(raw.Acquire("h", 0, 0)).To(Hold())
			for i, token := range []string{"a", "b", "c"} {
				Expect(raw.Acquire(token, Long, Long)).To(Queued(i + 1))
			}
			step(time.Hour)
			Expect(raw.Inspect().Waiting).To(BeZero())
			Expect(raw.Acquire("b", Long, Long)).To(Queued(1))
			Expect(raw.Acquire("c", Long, Long)).To(Queued(2))
			Expect(raw.Acquire("a", Long, Long)).To(Queued(3))
			raw.Pass("h", "b")
			raw.Pass("b", "c")
			raw.Pass("c", "a")
			Expect(raw.Release("a")).To(Equal(int64(1)))
			Expect(raw.Fields()).NotTo(ContainElement(HavePrefix("@")))
			Expect(raw.PTTL(raw.State)).To(BeNumerically(">", 0))
		})
		It("a step forward within WAIT_MS leaves them in order", func() {
			const wait = 2 * hourMS
			Expect(raw.Acquire("h", Long, 0)).To(Hold())
			client := raw.As("client")
			for i, token := range []string{"a", "b", "c"} {
				Expect(client.Acquire(token, Long, wait)).To(Queued(i + 1))
			}
			step(time.Hour)
			Expect(raw.Inspect().Waiters).To(Equal([]string{"a", "b", "c"}))
			Expect(client.Acquire("c", Long, wait)).To(Queued(2), "a has the lock")
			for i, token := range []string{"a", "b", "c"} {
				Expect(raw.Pop("client").Token).To(Equal(token), "none is taken for dead")
				if i < 2 {
					Expect(client.Release(token)).To(Equal(int64(1)))
				}
			}
			Expect(client.Extend("c", Long)).To(Equal(int64(1)))
		})
		It("a client that has not read its signal when the clock steps forward is taken for dead, and queues again", func() {
			const wait = 2 * hourMS
			Expect(raw.Acquire("h", Long, 0)).To(Hold())
			client := raw.As("client")
			Expect(client.Acquire("a", Long, wait)).To(Queued(1))
			Expect(client.Acquire("b", Long, wait)).To(Queued(2))
			Expect(raw.Acquire("c", Long, wait)).To(Queued(3))
			Expect(raw.Release("h")).To(Equal(int64(1)))
			step(time.Hour)
			Expect(raw.Acquire("c", Long, wait)).To(Hold())
			Expect(client.Acquire("b", Long, wait)).To(Queued(1))
			Expect(client.Acquire("a", Long, wait)).To(Queued(2))
			raw.Pass("c", "b")
			raw.Pass("b", "a")
		})
		It("of the Go package go on after a step forward: the holder is told, all are served", func(ctx SpecContext) {
			crew := newCrew(ctx, s.Addr(), name, redislock.WithLease(3*time.Second))
			step(time.Hour)
			crew.startOver(ctx)
		})
		It("of one Locker too, who call less often than its foremost", func(ctx SpecContext) {
			l := NewLocker(s.Addr(), redislock.Options{Lease: 3 * time.Second, WaitTTL: 6 * time.Second})
			crew := &crew{lock: MustAcquire(ctx, l, name)}
			for i := range 5 {
				crew.waiting = append(crew.waiting, Acquiring(ctx, l, name, i+1))
			}
			step(time.Hour)
			crew.startOver(ctx)
		})
		It("queue again behind a lock without expiry, by themselves", func(ctx SpecContext) {
			crew := newCrew(ctx, s.Addr(), name, redislock.WithoutExpiry())
			step(time.Hour)
			Eventually(WaitingFor(NewLocker(s.Addr()), name)).Should(Equal(5))
			Expect(crew.lock.Context().Err()).NotTo(HaveOccurred())
			Expect(crew.lock.Release(ctx)).To(Succeed())
			crew.serveAll(ctx)
		})
		DescribeTable("keep their order over a step back, newcomers behind them", func(ctx SpecContext, opt redislock.Option) {
			crew := newCrew(ctx, s.Addr(), name, opt)
			step(-time.Hour)
			crew.waiting = append(crew.waiting, Acquiring(ctx, NewLocker(s.Addr()), name, 6))
			Expect(crew.lock.Context().Err()).NotTo(HaveOccurred())
			crew.takeTurns(ctx)
		},
			Entry("with a lease", redislock.WithLease(3*time.Second)),
			Entry("without expiry", redislock.WithoutExpiry()),
		)
		It("are shown with sane times", func() {
			Expect(raw.Acquire("h", 2*hourMS, 0)).To(Hold())
			Expect(raw.Acquire("a", Long, 2*hourMS)).To(Queued(1))
			l := NewLocker(s.Addr())
			step(-time.Hour)
			Expect(raw.Acquire("b", Long, 2*hourMS)).To(Queued(2))
			shown := StateOf(l, name)
			Expect(shown.TTL).To(BeNumerically("~", 3*time.Hour, time.Minute))
			Expect(shown.Waiters).To(HaveLen(2))
			for i, lapses := range []time.Duration{3 * time.Hour, 2 * time.Hour} {
				Expect(shown.Waiters[i].Waited).To(BeZero())
				Expect(shown.Waiters[i].LapsesIn).To(BeNumerically("~", lapses, time.Minute))
			}
			step(2 * time.Hour)
			shown = StateOf(l, name)
			Expect(shown.TTL).To(BeNumerically("~", time.Hour, time.Minute))
			Expect(shown.Waiting).To(Equal(1), "two hours have passed for b")
			Expect(shown.Waiters).To(HaveLen(1))
			Expect(shown.Waiters[0].Waited).To(BeNumerically("~", time.Hour, time.Minute))
			Expect(shown.Waiters[0].LapsesIn).To(BeNumerically("~", time.Hour, time.Minute))
		})
		It("that died before a step back cost two seconds each, and their signals expire", func() {
			Expect(raw.Acquire("h", Long, 0)).To(Hold())
			dead := raw.As("dead")
			for i, token := range []string{"a", "b", "c"} {
				Expect(dead.Acquire(token, Long, Long)).To(Queued(i + 1))
			}
			Expect(raw.Acquire("live", Long, Long)).To(Queued(4))
			step(-time.Hour)
			Expect(raw.Release("h")).To(Equal(int64(1)))
			for i, token := range []string{"a", "b", "c"} {
				Expect(raw.Inspect().Holder).To(Equal(token))
				Expect(raw.PTTL(raw.Lock)).To(And(BeNumerically("<=", Claim), BeNumerically(">", 0)))
				Expect(raw.PTTL(dead.List)).To(And(BeNumerically("<=", Claim+Long), BeNumerically(">", 0)))
				step((Claim + 1) * time.Millisecond) // two seconds pass
				reply := raw.Acquire("live", Long, Long)
				if i < 2 {
					Expect(reply).To(Queued(3 - i - 1))
				} else {
					Expect(reply).To(Hold())
				}
			}
		})
	})

	DescribeTable("a lock that is handed over after a step: its Deadline is not later than the server's, and it is not lost",
		func(ctx SpecContext, d time.Duration) {
			l := NewLocker(s.Addr(), redislock.Options{WaitTTL: 3 * time.Hour})
			first := MustAcquire(ctx, l, name, redislock.WithLease(3*time.Hour))
			next := Acquiring(ctx, l, name, 1)
			step(d)
			Expect(first.Release(ctx)).To(Succeed())
			second := received(next)
			surely(raw, second)
			Eventually(func() int64 { return raw.PTTL(raw.Lock) }).Should(BeNumerically(">", Claim), "claimed")
			surely(raw, second)
			Expect(second.Fence()).To(BeNumerically(">", first.Fence()))
			Expect(second.Context().Err()).NotTo(HaveOccurred())
			Expect(second.Release(ctx)).To(Succeed())
		},
		Entry("of an hour forward", time.Hour), Entry("of 20 s forward", 20*time.Second), Entry("of 1 s forward", time.Second),
		Entry("of 1 s back", -time.Second), Entry("of 20 s back", -20*time.Second), Entry("of an hour back", -time.Hour),
	)

	It("and a BLPOP whose timeout a step back has put off for an hour: the waiters check in, hear of a hand-over, and give it up", func(ctx SpecContext) {
		seen := Monitor(s.Addr())
		l := NewLocker(s.Addr())
		lock := MustAcquire(ctx, l, name, redislock.WithLease(time.Hour))
		next := Acquiring(ctx, l, name, 1)
		counted := func(word string) func() int { return func() int { return seen.Count(word) } }
		Eventually(counted("BLPOP")).Should(Equal(1))
		step(-time.Hour)
		Eventually(counted("lock_acquire")).Should(BeNumerically(">=", seen.Count("lock_acquire")+2))
		Eventually(counted("BLPOP")).Should(BeNumerically(">", 1))
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(received(next).Release(ctx)).To(Succeed())
	})
})
