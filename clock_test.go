package redislock_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

const hourMS = 3_600_000

// steppedServer starts a Redis whose clock can be stepped, with the library, and names a lock there.
func steppedServer(ctx context.Context) (s *redistest.Server, step func(time.Duration), raw rawLock, name string) {
	GinkgoHelper()
	s, err := redistest.StartWithClock()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(s.Stop)
	client := connect(s.Addr())
	Expect(redislock.Load(ctx, client)).To(Succeed())
	name = newName()
	k := keysOf(name)
	step = func(d time.Duration) {
		GinkgoHelper()
		Expect(s.StepClock(d)).To(Succeed())
	}
	return s, step, rawLock{client: client, lock: k[0], queue: k[1], state: k[2]}, name
}

// fence is that of a grant.
func fence(reply []int64) int64 {
	GinkgoHelper()
	Expect(reply).To(hold())
	return reply[1]
}

// received is what comes out of acquiring.
func received(next <-chan *redislock.Lock) (lock *redislock.Lock) {
	GinkgoHelper()
	Eventually(next).Should(Receive(&lock))
	return lock
}

// surely shows that a Lock's Deadline is not later than the end of its lease at the server.
func (l rawLock) surely(lock *redislock.Lock) {
	GinkgoHelper()
	deadline, expires := lock.Deadline()
	Expect(expires).To(BeTrue())
	left := time.Duration(l.pttl(l.lock)) * time.Millisecond // was true earlier than now
	Expect(time.Until(deadline)).To(BeNumerically("<=", left+time.Millisecond))
}

var _ = Describe("the server's clock", func() {
	var (
		s    *redistest.Server
		step func(time.Duration)
		raw  rawLock
		name string
	)
	BeforeEach(func(ctx SpecContext) { s, step, raw, name = steppedServer(ctx) })

	Describe("and fencing tokens:", func() {
		It("they grow over steps forward and back, with lock-state and, after a step forward, without", func() {
			last := int64(0)
			next := func() int64 {
				GinkgoHelper()
				f := fence(raw.acquire("a", long, 0))
				Expect(f).To(BeNumerically(">", last))
				Expect(raw.release("a")).To(Equal(int64(1)))
				was := last
				last = f
				return f - was
			}
			next()
			step(time.Hour)
			Expect(raw.existing()).To(BeEmpty(), "its ten minutes are over")
			Expect(next()).To(BeNumerically(">", 1_000_000))
			step(-time.Hour)
			Expect(next()).To(Equal(int64(1)))
			step(-time.Hour)
			Expect(next()).To(Equal(int64(1)))
			step(2 * time.Hour)
			Expect(raw.existing()).To(BeEmpty())
			next()
		})
		It("after a step back they are lower if lock-state goes, until the clock has caught up", func(ctx SpecContext) {
			first := fence(raw.acquire("a", long, 0))
			step(-time.Hour)
			Expect(raw.release("a")).To(Equal(int64(1)))
			second := fence(raw.acquire("b", long, 0))
			Expect(second).To(Equal(first + 1))
			Expect(raw.release("b")).To(Equal(int64(1)))
			Expect(raw.pttl(raw.state)).To(BeNumerically("<=", memory), "from the last use, by the new clock")

			redis(raw.client, "PEXPIRE", raw.state, "1")
			raw.gone(ctx, raw.state)
			before := raw.micros()
			third := fence(raw.acquire("c", long, 0))
			Expect(third).To(And(BeNumerically(">=", before), BeNumerically("<=", raw.micros()), BeNumerically("<", first)))
			step(time.Hour)
			Expect(fence(raw.acquire("d", long, 0))).To(BeNumerically(">", second))
		})
	})

	Describe("and a holder:", func() {
		It("a step forward ends its lease, which its next renewal tells", func(ctx SpecContext) {
			lock := mustAcquire(ctx, newLocker(s.Addr()), name, redislock.WithLease(3*time.Second))
			step(time.Hour)
			Expect(raw.int("EXISTS", raw.lock)).To(BeZero())
			Expect(redis(raw.client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			Eventually(lock.Context().Done()).Should(BeClosed())
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			Expect(commandCalls(raw.client)["fcall"]).To(BeNumerically("<=", 1))
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		})
		It("until then two believe that they hold it: the second has the higher fencing token", func(ctx SpecContext) {
			lock := mustAcquire(ctx, newLocker(s.Addr()), name, redislock.WithLease(30*time.Minute))
			step(time.Hour)
			second, err := newLocker(s.Addr()).TryAcquire(ctx, name)
			Expect(err).NotTo(HaveOccurred())
			Expect(lock.Context().Err()).NotTo(HaveOccurred())
			Expect(second.Fence()).To(BeNumerically(">", lock.Fence()))

			Expect(lock.Extend(ctx, time.Minute)).To(MatchError(redislock.ErrNotHeld))
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			Expect(second.Extend(ctx, time.Minute)).To(Succeed())
		})
		It("a step back lengthens its lease until it is renewed", func(ctx SpecContext) {
			lock := mustAcquire(ctx, newLocker(s.Addr()), name, redislock.WithLease(30*time.Minute))
			step(-time.Hour)
			Expect(raw.pttl(raw.lock)).To(BeNumerically("~", 1.5*hourMS, 5*60_000))
			raw.surely(lock)
			Expect(lock.Extend(ctx, 3*time.Second)).To(Succeed())
			Expect(raw.pttl(raw.lock)).To(BeNumerically("<=", 3_000))

			step(-time.Hour)
			Eventually(func() int64 { return raw.pttl(raw.lock) }).Should(And(BeNumerically("<=", 3_000), BeNumerically(">", 0)))
			Expect(lock.Context().Err()).NotTo(HaveOccurred())
			raw.surely(lock)
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("one that has died keeps it an hour longer after a step back: its waiters look on, and Reset gives them the lock", func(ctx SpecContext) {
			dead := fence(raw.acquire("dead", 3_000, 0))
			l := newLocker(s.Addr())
			next := acquiring(ctx, l, name, 1)
			step(-time.Hour)
			Expect(redis(raw.client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			Eventually(func() int { return commandCalls(raw.client)["fcall"] }).Should(BeNumerically(">=", 2))
			Expect(raw.pttl(raw.lock)).To(BeNumerically(">", hourMS-60_000))
			Expect(next).NotTo(Receive())
			Expect(l.Reset(ctx, name)).To(BeTrue())
			lock := received(next)
			Expect(lock.Fence()).To(BeNumerically(">", dead))
			Expect(lock.Release(ctx)).To(Succeed())
		})
		It("without expiry it goes on over all steps", func(ctx SpecContext) {
			lock := mustAcquire(ctx, newLocker(s.Addr()), name, redislock.WithoutExpiry())
			for _, d := range []time.Duration{time.Hour, -2 * time.Hour, time.Hour} {
				step(d)
				Expect(raw.pttl(raw.lock)).To(Equal(int64(-1)))
				_, err := newLocker(s.Addr()).TryAcquire(ctx, name)
				Expect(err).To(MatchError(redislock.ErrNotAcquired))
				Expect(raw.inspect().fence).To(Equal(lock.Fence()))
			}
			Expect(lock.Context().Err()).NotTo(HaveOccurred())
			Expect(lock.Release(ctx)).To(Succeed())
		})
	})

	Describe("and a lock that was handed over and is not claimed:", func() {
		It("a step forward ends its lease, which the claim tells", func(ctx SpecContext) {
			raw.contended("a", "b")
			Expect(raw.release("h")).To(Equal(int64(1)))
			told := raw.pop("a")
			step(time.Hour)
			Expect(raw.extend("a", long)).To(Equal(int64(0)))
			Expect(fence(raw.acquire("b", long, long))).To(BeNumerically(">", told.fence))
			Expect(raw.release("b")).To(Equal(int64(1)))

			l := newLocker(s.Addr())
			first := mustAcquire(ctx, l, name)
			next := acquiring(ctx, l, name, 1)
			Expect(first.Release(ctx)).To(Succeed())
			second := received(next)
			step(time.Hour)
			Eventually(second.Context().Done()).Should(BeClosed())
			Expect(context.Cause(second.Context())).To(MatchError(redislock.ErrLost))
		})
		It("a step back makes its two seconds an hour, until it is claimed or reset", func(ctx SpecContext) {
			raw.contended("a", "b")
			Expect(raw.release("h")).To(Equal(int64(1)))
			step(-time.Hour)
			Expect(raw.pttl(raw.lock)).To(And(BeNumerically(">", hourMS-60_000), BeNumerically("<=", hourMS+claim)))
			Expect(raw.reset()).To(Equal(int64(1)))
			Expect(raw.inspect().holder).To(Equal("b"))
			Expect(raw.pttl(raw.lock)).To(BeNumerically("<=", claim))
			Expect(raw.release("b")).To(Equal(int64(1)))

			l := newLocker(s.Addr())
			first := mustAcquire(ctx, l, name)
			next := acquiring(ctx, l, name, 1)
			Expect(first.Release(ctx)).To(Succeed())
			second := received(next)
			step(-time.Hour)
			Eventually(func() int64 { return raw.pttl(raw.lock) }).Should(And(BeNumerically("<=", 10_000), BeNumerically(">", 0)))
			Expect(second.Context().Err()).NotTo(HaveOccurred())
			Expect(second.Release(ctx)).To(Succeed())
		})
	})

	Describe("and waiters:", func() {
		It("a step forward beyond WAIT_MS ends their places: who calls first has the lock, the rest queue by one call", func() {
			raw.contended("a", "b", "c")
			last := raw.inspect().fence
			step(time.Hour)
			Expect(raw.existing()).To(BeEmpty())
			Expect(fence(raw.acquire("b", long, long))).To(BeNumerically(">", last))
			Expect(raw.acquire("c", long, long)).To(queued(1))
			Expect(raw.acquire("a", long, long)).To(queued(2))
			raw.pass("b", "c")
			raw.pass("c", "a")
		})
		It("likewise if the lock never expires", func() {
			Expect(raw.acquire("h", 0, 0)).To(hold())
			for i, token := range []string{"a", "b", "c"} {
				Expect(raw.acquire(token, long, long)).To(queued(i + 1))
			}
			step(time.Hour)
			Expect(raw.inspect().waiting).To(BeZero())
			Expect(raw.acquire("b", long, long)).To(queued(1))
			Expect(raw.acquire("c", long, long)).To(queued(2))
			Expect(raw.acquire("a", long, long)).To(queued(3))
			raw.pass("h", "b")
			raw.pass("b", "c")
			raw.pass("c", "a")
			Expect(raw.release("a")).To(Equal(int64(1)))
			Expect(raw.fields()).NotTo(ContainElement(HavePrefix("@")))
			Expect(raw.pttl(raw.state)).To(BeNumerically(">", 0))
		})
		It("a step forward within WAIT_MS leaves them in order", func() {
			const wait = 2 * hourMS
			Expect(raw.acquire("h", long, 0)).To(hold())
			client := raw.as("client")
			for i, token := range []string{"a", "b", "c"} {
				Expect(client.acquire(token, long, wait)).To(queued(i + 1))
			}
			step(time.Hour)
			Expect(raw.inspect().waiters).To(Equal([]string{"a", "b", "c"}))
			Expect(client.acquire("c", long, wait)).To(queued(2), "a has the lock")
			for i, token := range []string{"a", "b", "c"} {
				Expect(raw.pop("client").token).To(Equal(token), "none is taken for dead")
				if i < 2 {
					Expect(client.release(token)).To(Equal(int64(1)))
				}
			}
			Expect(client.extend("c", long)).To(Equal(int64(1)))
		})
		It("a client that has not read its signal when the clock steps forward is taken for dead, and queues again", func() {
			const wait = 2 * hourMS
			Expect(raw.acquire("h", long, 0)).To(hold())
			client := raw.as("client")
			Expect(client.acquire("a", long, wait)).To(queued(1))
			Expect(client.acquire("b", long, wait)).To(queued(2))
			Expect(raw.acquire("c", long, wait)).To(queued(3))
			Expect(raw.release("h")).To(Equal(int64(1)))
			step(time.Hour)
			Expect(raw.acquire("c", long, wait)).To(hold())
			Expect(client.acquire("b", long, wait)).To(queued(1))
			Expect(client.acquire("a", long, wait)).To(queued(2))
			raw.pass("c", "b")
			raw.pass("b", "a")
		})
		It("of the Go package go on after a step forward: the holder is told, all are served", func(ctx SpecContext) {
			crew := newCrew(ctx, s.Addr(), name, redislock.WithLease(3*time.Second))
			step(time.Hour)
			crew.startOver(ctx)
		})
		It("of one Locker too, who call less often than its foremost", func(ctx SpecContext) {
			l := newLocker(s.Addr(), redislock.Options{Lease: 3 * time.Second, WaitTTL: 6 * time.Second})
			crew := &crew{lock: mustAcquire(ctx, l, name)}
			for i := range 5 {
				crew.waiting = append(crew.waiting, acquiring(ctx, l, name, i+1))
			}
			step(time.Hour)
			crew.startOver(ctx)
		})
		It("queue again behind a lock without expiry, by themselves", func(ctx SpecContext) {
			crew := newCrew(ctx, s.Addr(), name, redislock.WithoutExpiry())
			step(time.Hour)
			Eventually(waitingFor(newLocker(s.Addr()), name)).Should(Equal(5))
			Expect(crew.lock.Context().Err()).NotTo(HaveOccurred())
			Expect(crew.lock.Release(ctx)).To(Succeed())
			crew.serveAll(ctx)
		})
		DescribeTable("keep their order over a step back, newcomers behind them", func(ctx SpecContext, opt redislock.Option) {
			crew := newCrew(ctx, s.Addr(), name, opt)
			step(-time.Hour)
			crew.waiting = append(crew.waiting, acquiring(ctx, newLocker(s.Addr()), name, 6))
			Expect(crew.lock.Context().Err()).NotTo(HaveOccurred())
			crew.takeTurns(ctx)
		},
			Entry("with a lease", redislock.WithLease(3*time.Second)),
			Entry("without expiry", redislock.WithoutExpiry()),
		)
		It("are shown with sane times", func() {
			Expect(raw.acquire("h", 2*hourMS, 0)).To(hold())
			Expect(raw.acquire("a", long, 2*hourMS)).To(queued(1))
			l := newLocker(s.Addr())
			step(-time.Hour)
			Expect(raw.acquire("b", long, 2*hourMS)).To(queued(2))
			shown := stateOf(l, name)
			Expect(shown.TTL).To(BeNumerically("~", 3*time.Hour, time.Minute))
			Expect(shown.Waiters).To(HaveLen(2))
			for i, lapses := range []time.Duration{3 * time.Hour, 2 * time.Hour} {
				Expect(shown.Waiters[i].Waited).To(BeZero())
				Expect(shown.Waiters[i].LapsesIn).To(BeNumerically("~", lapses, time.Minute))
			}
			step(2 * time.Hour)
			shown = stateOf(l, name)
			Expect(shown.TTL).To(BeNumerically("~", time.Hour, time.Minute))
			Expect(shown.Waiting).To(Equal(1), "two hours have passed for b")
			Expect(shown.Waiters).To(HaveLen(1))
			Expect(shown.Waiters[0].Waited).To(BeNumerically("~", time.Hour, time.Minute))
			Expect(shown.Waiters[0].LapsesIn).To(BeNumerically("~", time.Hour, time.Minute))
		})
		It("that died before a step back cost two seconds each, and their signals expire", func() {
			Expect(raw.acquire("h", long, 0)).To(hold())
			dead := raw.as("dead")
			for i, token := range []string{"a", "b", "c"} {
				Expect(dead.acquire(token, long, long)).To(queued(i + 1))
			}
			Expect(raw.acquire("live", long, long)).To(queued(4))
			step(-time.Hour)
			Expect(raw.release("h")).To(Equal(int64(1)))
			for i, token := range []string{"a", "b", "c"} {
				Expect(raw.inspect().holder).To(Equal(token))
				Expect(raw.pttl(raw.lock)).To(And(BeNumerically("<=", claim), BeNumerically(">", 0)))
				Expect(raw.pttl(dead.list)).To(And(BeNumerically("<=", claim+long), BeNumerically(">", 0)))
				step((claim + 1) * time.Millisecond) // two seconds pass
				reply := raw.acquire("live", long, long)
				if i < 2 {
					Expect(reply).To(queued(3 - i - 1))
				} else {
					Expect(reply).To(hold())
				}
			}
		})
	})

	DescribeTable("a lock that is handed over after a step: its Deadline is not later than the server's, and it is not lost",
		func(ctx SpecContext, d time.Duration) {
			l := newLocker(s.Addr(), redislock.Options{WaitTTL: 3 * time.Hour})
			first := mustAcquire(ctx, l, name, redislock.WithLease(3*time.Hour))
			next := acquiring(ctx, l, name, 1)
			step(d)
			Expect(first.Release(ctx)).To(Succeed())
			second := received(next)
			raw.surely(second)
			Eventually(func() int64 { return raw.pttl(raw.lock) }).Should(BeNumerically(">", claim), "claimed")
			raw.surely(second)
			Expect(second.Fence()).To(BeNumerically(">", first.Fence()))
			Expect(second.Context().Err()).NotTo(HaveOccurred())
			Expect(second.Release(ctx)).To(Succeed())
		},
		Entry("of an hour forward", time.Hour), Entry("of 20 s forward", 20*time.Second), Entry("of 1 s forward", time.Second),
		Entry("of 1 s back", -time.Second), Entry("of 20 s back", -20*time.Second), Entry("of an hour back", -time.Hour),
	)

	It("and a BLPOP whose timeout a step back has put off for an hour: the waiters check in, hear of a hand-over, and give it up", func(ctx SpecContext) {
		seen := monitor(s.Addr())
		l := newLocker(s.Addr())
		lock := mustAcquire(ctx, l, name, redislock.WithLease(time.Hour))
		next := acquiring(ctx, l, name, 1)
		counted := func(word string) func() int { return func() int { return seen.count(word) } }
		Eventually(counted("BLPOP")).Should(Equal(1))
		step(-time.Hour)
		Eventually(counted("lock_acquire")).Should(BeNumerically(">=", seen.count("lock_acquire")+2))
		Eventually(counted("BLPOP")).Should(BeNumerically(">", 1))
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(received(next).Release(ctx)).To(Succeed())
	})
})

// monitored is what a server was asked, line by line, see MONITOR.
type monitored struct {
	client rueidis.Client
	mu     sync.Mutex
	conn   net.Conn
	lines  *bufio.Scanner
	seen   []string
}

// monitor notes all that a server is asked from now on.
func monitor(addr string) *monitored {
	GinkgoHelper()
	conn, err := net.Dial("tcp", addr)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(conn.Close)
	_, err = io.WriteString(conn, "MONITOR\r\n")
	Expect(err).NotTo(HaveOccurred())
	lines := bufio.NewScanner(conn)
	Expect(lines.Scan()).To(BeTrue())
	Expect(lines.Text()).To(Equal("+OK"))
	return &monitored{client: connect(addr), conn: conn, lines: lines}
}

// count is how many requests with these words the server has had until now.
func (m *monitored) count(words ...string) (n int) {
	GinkgoHelper()
	m.mu.Lock()
	defer m.mu.Unlock()
	now := strconv.Itoa(len(m.seen)) + " lines"
	Expect(redis(m.client, "ECHO", now).Error()).NotTo(HaveOccurred())
	Expect(m.conn.SetReadDeadline(time.Now().Add(soon))).To(Succeed())
	for line := ""; !strings.Contains(line, strconv.Quote(now)); m.seen = append(m.seen, line) {
		Expect(m.lines.Scan()).To(BeTrue())
		line = m.lines.Text()
	}
	for _, line := range m.seen {
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, strconv.Quote(word))
		}
		if all {
			n++
		}
	}
	return n
}
