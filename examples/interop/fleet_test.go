package interop_test

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock/internal/proxy"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// languages are one kind of worker for each language.
var languages = []string{"go", "python", "redis RESP3", "shell"}

// names are all kinds, sorted.
func names() []string {
	list := []string{}
	for kind := range kinds {
		list = append(list, kind)
	}
	slices.Sort(list)
	return list
}

// entries are one for each kind.
func entries(of []string) []TableEntry {
	list := []TableEntry{}
	for _, kind := range of {
		list = append(list, Entry(kind, SpecTimeout(2*time.Minute), kind))
	}
	return list
}

// deadWaiter is what one may cost, see "Rules" in lua/README.md: 2 s until the next one checks in, 2 s for its unread signal.
// A stall of a lease (a minute), or of a place in the queue (30 s), is more than three times that.
const deadWaiter = 4 * time.Second

// isRising: each is greater than the one before.
func isRising(fences []int64) bool {
	return slices.IsSorted(fences) && len(slices.Compact(slices.Clone(fences))) == len(fences)
}

var _ = Describe("Go, Python, Node.js and shell processes on one lock", func() {
	It("are served strictly in the order in which they queued", func(ctx SpecContext) {
		f := newFleet(ctx, startServer().Addr())
		order := append(names(), names()...)
		random := rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), 0))
		random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })

		lock, err := f.locker.Acquire(ctx, f.name)
		Expect(err).NotTo(HaveOccurred())
		var workers []*worker
		var expected []string
		for _, kind := range order {
			w := f.queue(ctx, kind)
			w.turn()
			workers, expected = append(workers, w), append(expected, w.kind)
		}
		Expect(lock.Release(ctx)).To(Succeed())

		for _, w := range workers {
			Eventually(w.lines).Should(HaveLen(3), w.kind)
			Expect(w.lines()).To(HaveExactElements(HavePrefix("held "), "wrote 1", "released"), w.kind)
		}
		who, fences := f.writers(ctx)
		Expect(who).To(Equal(expected))
		Expect(isRising(append([]int64{lock.Fence()}, fences...))).To(BeTrue(), "%v", fences)
	}, SpecTimeout(2*time.Minute))

	isPrimary := func(s *redistest.Server) {
		GinkgoHelper()
		Eventually(func() string { role, _ := s.Role(); return role }).Should(Equal("master"))
	}
	DescribeTable("keep their order when another node of a cluster takes over:",
		func(ctx SpecContext, takeOver func(cluster *redistest.Cluster, owner, replica *redistest.Server, turn func(), holder *worker) error) {
			cluster, err := redistest.StartCluster(3, 1, 1500*time.Millisecond)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(cluster.Stop)
			owner := cluster.Owner("lock:{orders}")
			replica := cluster.ReplicaOf(owner)
			other := cluster.Owner("register")
			Expect(other).NotTo(Equal(owner))
			// The one that fails is the first that they ask for the others.
			f := newFleet(ctx, other.Addr(), "CLUSTER="+owner.Addr()+" "+other.Addr())
			holder := f.start("go")
			Eventually(holder.lines).Should(HaveLen(1))
			expected := []string{holder.kind}
			workers := []*worker{holder}
			for _, kind := range []string{"python", "redis RESP2", "redis RESP3", "ioredis RESP3", "shell", "go"} {
				w := f.queue(ctx, kind)
				w.turn()
				workers, expected = append(workers, w), append(expected, w.kind)
			}
			turn := sync.OnceFunc(holder.turn)
			Expect(takeOver(cluster, owner, replica, turn, holder)).To(Succeed())
			// Who is told before it has found the new primary may lose its turn, as one that died.
			since := time.Now()
			Eventually(func(g Gomega) {
				state, err := f.locker.Inspect(ctx, f.name)
				g.Expect(err).NotTo(HaveOccurred())
				for _, waiter := range state.Waiters {
					g.Expect(waiter.LapsesIn).To(BeNumerically(">", 30*time.Second-time.Since(since)))
				}
			}).Should(Succeed())
			turn()

			for _, w := range workers {
				Eventually(w.lines).Should(HaveLen(3), w.kind)
				Expect(w.lines()).To(HaveExactElements(HavePrefix("held "), "wrote 1", "released"), w.kind)
			}
			who, fences := f.writers(ctx)
			Expect(who).To(Equal(expected))
			Expect(isRising(fences)).To(BeTrue(), "%v", fences)
		},
		Entry("CLUSTER FAILOVER", SpecTimeout(3*time.Minute),
			func(cluster *redistest.Cluster, _, replica *redistest.Server, _ func(), _ *worker) error {
				defer isPrimary(replica)
				return cluster.Failover(replica)
			}),
		Entry("the slot moves", SpecTimeout(3*time.Minute),
			func(cluster *redistest.Cluster, _, _ *redistest.Server, _ func(), _ *worker) error {
				return cluster.Move("lock:{orders}", cluster.Owner("register"), func(int) {})
			}),
		// Until it has moved, lock_acquire gets TRYAGAIN: not all of its keys exist, and those that do are elsewhere.
		Entry("the slot moves, and the lock is released meanwhile", SpecTimeout(3*time.Minute),
			func(cluster *redistest.Cluster, _, _ *redistest.Server, turn func(), holder *worker) error {
				defer func() { Expect(holder.lines()).To(HaveLen(3)) }()
				return cluster.Move("lock:{orders}", cluster.Owner("register"), func(moved int) {
					if moved == 3 { // all: lock, queue and state
						turn()
						Eventually(holder.lines).Should(HaveLen(3))
					}
				})
			}),
		Entry("the primary is killed", SpecTimeout(3*time.Minute),
			func(_ *redistest.Cluster, primary, replica *redistest.Server, _ func(), _ *worker) error {
				// What follows is only about writes that have been replicated. The check-ins go on.
				offset := func(s *redistest.Server) int64 {
					text, err := s.Do("INFO", "replication").ToString()
					Expect(err).NotTo(HaveOccurred())
					_, rest, _ := strings.Cut(text, "master_repl_offset:")
					n, err := strconv.ParseInt(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]), 10, 64)
					Expect(err).NotTo(HaveOccurred())
					return n
				}
				queued := offset(primary)
				Eventually(func() int64 { return offset(replica) }).Should(BeNumerically(">=", queued))
				defer isPrimary(replica)
				return primary.Kill()
			}),
	)

	DescribeTable("go on when one is killed while it holds the lock, and one while it waits:",
		func(ctx SpecContext, kind string) {
			f := newFleet(ctx, startServer().Addr())
			holder := f.start(kind)
			Eventually(holder.lines).Should(ConsistOf(HavePrefix("held ")))
			holder.tell("write")
			Eventually(holder.lines).Should(HaveLen(2))
			waiter := f.queue(ctx, kind)
			expected := []string{holder.kind}
			var others []*worker
			for _, language := range languages {
				w := f.queue(ctx, language)
				w.turn()
				others, expected = append(others, w), append(expected, w.kind)
			}
			waiter.signal(syscall.SIGKILL)
			holder.signal(syscall.SIGKILL)
			f.expire(ctx)
			granted := f.serverTime(ctx)

			for _, w := range others {
				Eventually(w.lines).Should(HaveLen(3), w.kind)
				Expect(w.lines()).To(HaveExactElements(HavePrefix("held "), "wrote 1", "released"), w.kind)
			}
			who, fences := f.writers(ctx)
			Expect(who).To(Equal(expected))
			Expect(isRising(fences)).To(BeTrue(), "%v", fences)
			Expect(waiter.lines()).To(BeEmpty())
			// A fencing token is the server's time of the grant. The first to be served waits for the lease of the
			// dead waiter, all others for nobody.
			for i, fence := range fences[1:] {
				Expect(time.Duration(fence-granted)*time.Microsecond).To(BeNumerically("<", 3*deadWaiter), others[i].kind)
				granted = fence
			}
		}, entries([]string{"go", "python", "asyncio", "redis RESP2", "ioredis RESP3", "shell"}))

	DescribeTable("refuse what a holder writes that does not know that its lease is over, and it is told:",
		func(ctx SpecContext, kind string) {
			f := newFleet(ctx, startServer().Addr())
			stale := f.start(kind)
			Eventually(stale.lines).Should(ConsistOf(HavePrefix("held ")))
			stale.tell("write")
			Eventually(stale.lines).Should(HaveLen(2))
			next := f.queue(ctx, languages[(slices.Index(languages, kind)+1)%len(languages)])
			stale.signal(syscall.SIGSTOP)
			f.expire(ctx)
			next.turn()
			Eventually(next.lines).Should(HaveExactElements(HavePrefix("held "), "wrote 1", "released"))

			stale.turn()
			stale.signal(syscall.SIGCONT)
			Eventually(stale.lines).Should(HaveExactElements(HavePrefix("held "), "wrote 1", "wrote 0", "lost"))
			who, _ := f.writers(ctx)
			Expect(who).To(Equal([]string{stale.kind, next.kind}))
		}, entries(languages))

	DescribeTable("go on when a reply is lost, of each call:",
		func(ctx SpecContext, kind string) {
			server := startServer()
			between, err := proxy.New(server.Addr())
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(between.Close)
			f := newFleet(ctx, server.Addr())
			f.env = []string{"ADDR=" + between.Addr(), "LEASE=6"}
			dropped := func(call string) <-chan struct{} {
				return between.DropReply(func(request []byte) bool { return bytes.Contains(request, []byte(call)) })
			}

			lost := dropped("lock_acquire")
			w := f.start(kind)
			Eventually(w.lines).Should(ConsistOf(HavePrefix("held ")))
			Eventually(lost).Should(BeClosed())
			state := f.state(ctx)

			Eventually(dropped("lock_extend")).Should(BeClosed())
			var renewals atomic.Int32
			between.DropReply(func(request []byte) bool { // none
				if bytes.Contains(request, []byte("lock_extend")) {
					renewals.Add(1)
				}
				return false
			})
			Eventually(renewals.Load).Should(BeNumerically(">=", 2)) // tried again, and goes on
			Expect(f.state(ctx)).To(And(HaveField("Holder", state.Holder), HaveField("Fence", state.Fence), HaveField("Waiting", 0)))

			lost = dropped("lock_release")
			w.turn()
			Eventually(w.lines).Should(HaveExactElements("held "+strconv.FormatInt(state.Fence, 10), "wrote 1", "released"))
			Eventually(lost).Should(BeClosed())
			Expect(f.state(ctx).Holder).To(BeEmpty())
		}, entries(names()))
})
