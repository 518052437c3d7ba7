package systemtest

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// records is a slog.Handler that keeps what it gets.
type records struct {
	mu    sync.Mutex
	lines []string
}

func (*records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) WithAttrs([]slog.Attr) slog.Handler     { return r }
func (r *records) WithGroup(string) slog.Handler          { return r }
func (r *records) Handle(_ context.Context, record slog.Record) error {
	line := record.Level.String() + " " + record.Message
	record.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	return nil
}

func (r *records) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}

var _ = Describe("a promise", func() {
	It("a lock that never expires is not lost, though it was handed over and waits for replicas", NodeTimeout(time.Minute), func(ctx SpecContext) {
		primary := OwnServer("--repl-diskless-sync-delay", "0")
		OwnServer("--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 "+strconv.Itoa(primary.Port()))
		Eventually(func() (string, error) { return primary.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
		lock := MustAcquire(ctx, NewLocker(primary.Addr()), "x", redislock.WithoutExpiry())
		next := Acquiring(ctx, NewLocker(primary.Addr()), "x", 1, redislock.WithoutExpiry(), redislock.WithReplicas(1, 2*time.Second))
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(next).Should(Receive(&lock))
		client := Connect(primary.Addr())
		Expect(PTTL(client, KeysOf("x")[0])).To(BeEquivalentTo(-1))
		Consistently(lock.Context().Err).WithTimeout(2500*time.Millisecond).ShouldNot(HaveOccurred(), "for longer than a handed-over lease")
		Expect(PTTL(client, KeysOf("x")[0])).To(BeEquivalentTo(-1))
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("a Release that got no answer ends the lock: Extend fails, the server's ends, the Locker forgets it", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		network := NewProxy(s.Addr())
		observer, locker := NewLocker(s.Addr()), NewLocker(network.Addr())
		taken := func() weak.Pointer[redislock.Lock] {
			lock := MustAcquire(ctx, locker, "x", redislock.WithLease(brief))
			network.BlackHole(true)
			Expect(lock.Release(ctx)).To(MatchError(redislock.ErrUnavailable))
			network.BlackHole(false)
			Expect(lock.Extend(ctx, time.Hour)).To(MatchError(redislock.ErrNotHeld))
			return weak.Make(lock)
		}()
		Eventually(func() string { return StateOf(observer, "x").Holder }).Should(BeEmpty())
		Eventually(func() bool {
			runtime.GC()
			return taken.Value() == nil
		}).Should(BeTrue())
	})

	It("grants that always come too late end a wait, and the error says what to do", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		network := NewProxy(s.Addr())
		near, far := NewLocker(s.Addr()), NewLocker(network.Addr())
		Expect(MustAcquire(ctx, far, NewName()).Release(ctx)).To(Succeed())
		lock := MustAcquire(ctx, near, "x")
		network.SetDelay(550 * time.Millisecond)
		failed := make(chan error, 1)
		go func() {
			_, err := far.Acquire(ctx, "x", redislock.WithLease(time.Second))
			failed <- err
		}()
		Eventually(WaitingFor(near, "x")).Should(Equal(1))
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(failed).Should(Receive(And(MatchError(redislock.ErrLost), MatchError(ContainSubstring("use a longer one")))))
		network.SetDelay(0)
		Eventually(func() string { return StateOf(near, "x").Holder }).Should(BeEmpty())
		Expect(WaitingFor(near, "x")()).To(BeZero())
	})

	It("a wait in an outage is logged at once, and not once a call", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		log := &records{}
		locker := NewLocker(s.Addr(), redislock.Options{Logger: slog.New(log)})
		Expect(MustAcquire(ctx, locker, "x").Release(ctx)).To(Succeed())
		Expect(log.all()).To(BeEmpty())
		Expect(s.Kill()).To(Succeed())
		ending, cancel := context.WithCancel(ctx)
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				defer GinkgoRecover()
				_, err := locker.Acquire(ending, "nightly-"+strconv.Itoa(i))
				Expect(err).To(MatchError(redislock.ErrUnavailable))
			})
		}
		Eventually(log.all).Should(HaveLen(1))
		Expect(log.all()[0]).To(And(HavePrefix("WARN redislock: "), ContainSubstring("lock=nightly-"), ContainSubstring("error=redis is unavailable: lock_acquire: ")))
		Consistently(log.all).WithTimeout(2 * time.Second).Should(HaveLen(1))
		cancel()
		all.Wait()
		Expect(s.Restart()).To(Succeed())
	})

	It("ResetAll leaves alone what the library did not write, and other prefixes", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		client := Connect(s.Addr())
		locker, other := NewLocker(s.Addr()), NewLocker(s.Addr(), redislock.Options{Prefix: "lock-eu"})
		held, theirs := MustAcquire(ctx, locker, "x"), MustAcquire(ctx, other, "x")
		foreign := []string{"lock:cart:{42}", "lock:config:{tenant7}", "lock:{y}", "lock-eu:{y}"}
		for _, key := range foreign {
			Expect(Redis(client, "SET", key, "theirs").Error()).NotTo(HaveOccurred())
		}
		Expect(locker.ResetAll(ctx)).To(Equal(1))
		Expect(held.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
		for _, key := range foreign {
			Expect(Redis(client, "GET", key).ToString()).To(Equal("theirs"))
		}
		Expect(theirs.Release(ctx)).To(Succeed())
	})

	It("New refuses prefixes whose keys could be those of another prefix", func() {
		client := Connect(Server.Addr())
		for _, prefix := range []string{"lock:eu", "lock:", ":", "lo{ck", "lock}", "lock-queue", "lock-state", "eu-signal", strings.Repeat("x", 65)} {
			Expect(redislock.New(client, redislock.Options{Prefix: prefix})).Error().To(MatchError(ContainSubstring("Prefix")), prefix)
		}
	})

	It("Close hands nothing on while the fn of Do works on", NodeTimeout(time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		locker := NewLocker(s.Addr())
		second := NewLocker(s.Addr())
		var next <-chan *redislock.Lock
		var returned atomic.Bool
		begun, waited := make(chan struct{}), make(chan struct{})
		done := make(chan error, 1)
		go func() {
			done <- locker.Do(ctx, "x", func(ctx context.Context, _ *redislock.Lock) error {
				defer GinkgoRecover()
				defer returned.Store(true)
				close(begun)
				<-waited
				<-ctx.Done()
				Consistently(next).WithTimeout(2*time.Second).ShouldNot(Receive(), "the work is not through")
				return nil
			})
		}()
		<-begun
		next = Acquiring(ctx, second, "x", 1)
		close(waited)
		locker.Close()
		var lock *redislock.Lock
		Eventually(next).Should(Receive(&lock))
		Expect(returned.Load()).To(BeTrue())
		Expect(<-done).To(MatchError(redislock.ErrClosed))
		Expect(lock.Release(ctx)).To(Succeed())
	})
})
