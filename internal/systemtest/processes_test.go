package systemtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// register is a number in a file that many processes add to, in two steps that only the lock keeps
// together. It is fenced: a write with an older token than the last one is refused.
type register struct{ path string }

var errFenced = errors.New("refused: a newer fencing token has written")

func (r register) read() (fence, count int64, err error) {
	text, err := os.ReadFile(r.path)
	if err == nil {
		_, err = fmt.Sscan(string(text), &fence, &count)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return fence, count, err
}

func (r register) write(fence, count int64) error {
	guard, err := os.OpenFile(r.path+".guard", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer guard.Close()
	if err := syscall.Flock(int(guard.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	last, _, err := r.read()
	if err != nil {
		return err
	}
	if fence < last {
		return errFenced
	}
	return os.WriteFile(r.path, []byte(fmt.Sprintln(fence, count)), 0o600)
}

func (r register) add(fence int64) error {
	_, count, err := r.read()
	if err != nil {
		return err
	}
	return r.write(fence, count+1)
}

// childLocker is the Locker of a child process, which says what is wrong by dying.
func childLocker() (*redislock.Locker, string, register) {
	client, err := rueidis.NewClient(childOption())
	must(err)
	locker, err := redislock.New(client, redislock.Options{})
	must(err)
	return locker, os.Getenv("NAME"), register{os.Getenv("REGISTER")}
}

func init() {
	ctx := context.Background()
	// adds ROUNDS times to the register, then prints how often it did.
	roles["adder"] = func() {
		locker, name, register := childLocker()
		rounds, err := strconv.Atoi(os.Getenv("ROUNDS"))
		must(err)
		for range rounds {
			must(locker.Do(ctx, name, func(_ context.Context, lock *redislock.Lock) error { return register.add(lock.Fence()) }))
		}
		fmt.Println(rounds)
	}
	// waits COUNT times at once, and keeps what it gets.
	roles["crowd"] = func() {
		locker, name, _ := childLocker()
		count, err := strconv.Atoi(os.Getenv("COUNT"))
		must(err)
		for range count {
			go func() { _, _ = locker.Acquire(ctx, name, redislock.WithLease(time.Hour)) }()
		}
		select {}
	}
	// prints "held FENCE" when it has the lock (of LEASE); writes to the register for each line that
	// it reads, and prints the result; prints "lost" when it is told so.
	roles["holder"] = func() {
		locker, name, register := childLocker()
		lease, err := time.ParseDuration(os.Getenv("LEASE"))
		must(err)
		lock, err := locker.Acquire(ctx, name, redislock.WithLease(lease))
		must(err)
		fmt.Println("held", lock.Fence())
		go func() {
			<-lock.Context().Done()
			fmt.Println(context.Cause(lock.Context()))
		}()
		for {
			var line string
			if _, err := fmt.Scanln(&line); err != nil {
				return
			}
			if line == "release" {
				must(lock.Release(ctx))
				return
			}
			fmt.Println(register.add(lock.Fence()))
		}
	}
}

var _ = OnEachTopology("processes", func() {
	var (
		name     string
		register register
		locker   *redislock.Locker
		start    func(role string, env ...string) *child
	)
	BeforeEach(func() {
		name = NewName()
		register.path = filepath.Join(GinkgoT().TempDir(), "register")
		locker = NewLocker(Server.Addr())
		start = func(role string, env ...string) *child {
			return spawn(role, append(append(env, routeEnv(Server.Addr())...), "NAME="+name, "REGISTER="+register.path)...)
		}
	})
	heldBy := func(c *child) (fence int64) {
		GinkgoHelper()
		_, err := fmt.Sscanf(c.Line(), "held %d", &fence)
		Expect(err).NotTo(HaveOccurred())
		return fence
	}

	It("that contend, with goroutines too, lose nothing, and fences only grow", func(ctx SpecContext) {
		const processes, goroutines, rounds = 8, 64, 25
		var children []*child
		for range processes {
			children = append(children, start("adder", "ROUNDS="+strconv.Itoa(rounds)))
		}
		var all sync.WaitGroup
		var last atomic.Int64
		for range goroutines {
			all.Go(func() {
				defer GinkgoRecover()
				for range rounds {
					Expect(locker.Do(ctx, name, func(_ context.Context, lock *redislock.Lock) error {
						Expect(last.Swap(lock.Fence())).To(BeNumerically("<", lock.Fence()))
						return register.add(lock.Fence())
					})).To(Succeed())
				}
			})
		}
		all.Wait()
		for _, c := range children {
			Expect(c.Line()).To(Equal(strconv.Itoa(rounds)))
		}
		_, count, err := register.read()
		Expect(err).NotTo(HaveOccurred())
		Expect(count).To(BeEquivalentTo((processes + goroutines) * rounds))
	})

	It("that die with 200 waiters cost the next live waiter less than 6 s", func(ctx SpecContext) {
		lock := MustAcquire(ctx, locker, name)
		crowd := start("crowd", "COUNT=200")
		Eventually(WaitingFor(locker, name)).Should(Equal(200))
		next := Acquiring(ctx, NewLocker(Server.Addr()), name, 201)
		Expect(crowd.Process.Kill()).To(Succeed())
		Expect(crowd.Wait()).NotTo(Succeed())
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(next).WithTimeout(6 * time.Second).Should(Receive(&lock))
		Expect(WaitingFor(locker, name)()).To(BeZero(), "all skipped at once")
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("that die while they hold cost the rest of their lease", func(ctx SpecContext) {
		holder := start("holder", "LEASE=3s")
		fence := heldBy(holder)
		next := Acquiring(ctx, locker, name, 1)
		Expect(holder.Process.Kill()).To(Succeed())
		var lock *redislock.Lock
		Eventually(next).WithTimeout(servedWithin(3 * time.Second)).Should(Receive(&lock))
		Expect(lock.Fence()).To(BeNumerically(">", fence))
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("that are stopped when their turn comes are passed over, and queue again when they go on", func(ctx SpecContext) {
		lock := MustAcquire(ctx, locker, name)
		stopped := start("holder", "LEASE=1h")
		Eventually(WaitingFor(locker, name)).Should(Equal(1))
		next := Acquiring(ctx, locker, name, 2)
		stop(stopped)
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(next).WithTimeout(6 * time.Second).Should(Receive(&lock))
		Expect(stopped.Process.Signal(syscall.SIGCONT)).To(Succeed())
		Eventually(WaitingFor(locker, name)).Should(Equal(1))
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(heldBy(stopped)).To(BeNumerically(">", lock.Fence()))
	})

	It("that are stopped past their lease are told, and what they write late is refused", func(ctx SpecContext) {
		holder := start("holder", "LEASE=1s")
		heldBy(holder)
		stop(holder)
		Expect(locker.Do(ctx, name, func(_ context.Context, lock *redislock.Lock) error {
			return register.add(lock.Fence())
		})).To(Succeed())
		fmt.Fprintln(holder.In, "write")
		Expect(holder.Process.Signal(syscall.SIGCONT)).To(Succeed())
		Expect([]string{holder.Line(), holder.Line()}).To(ConsistOf(Equal(errFenced.Error()), HavePrefix(redislock.ErrLost.Error())))
	})
})

var _ = OnEachTopology("a cancel at a random moment around a release", func() {
	It("strands nobody", func(ctx SpecContext) {
		holding, cancelling, waiting := NewLocker(Server.Addr()), NewLocker(Server.Addr()), NewLocker(Server.Addr())
		rounds := func(random *rand.Rand) {
			name := NewName()
			for range 500 {
				lock := MustAcquire(ctx, holding, name)
				cancelled, cancel := context.WithCancel(ctx)
				var all sync.WaitGroup
				all.Go(func() {
					if lock, err := cancelling.Acquire(cancelled, name); err == nil {
						_ = lock.Release(ctx)
					}
				})
				all.Go(func() {
					defer GinkgoRecover()
					Expect(MustAcquire(ctx, waiting, name).Release(ctx)).To(Succeed())
				})
				pause := time.Duration(random.IntN(1500)) * time.Microsecond
				all.Go(func() {
					<-time.After(pause)
					cancel()
				})
				<-time.After(time.Duration(random.IntN(1500)) * time.Microsecond)
				Expect(lock.Release(ctx)).To(Succeed())
				all.Wait() // or the spec times out
				// What takes longer than a second to be given up is left to the background. A stranded lock
				// would be held for two seconds at least.
				Eventually(ctx, func() redislock.State { return StateOf(holding, name) }).WithTimeout(1500 * time.Millisecond).
					Should(And(HaveField("Holder", ""), HaveField("Waiting", 0)))
			}
		}
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				defer GinkgoRecover()
				rounds(rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), uint64(i))))
			})
		}
		all.Wait()
	}, SpecTimeout(time.Minute))
})
