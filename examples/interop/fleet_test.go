package interop_test

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
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

// isRising: each is greater than the one before.
func isRising(fences []int64) bool {
	return slices.IsSorted(fences) && len(slices.Compact(slices.Clone(fences))) == len(fences)
}

var _ = Describe("Go, Python, Node.js and shell processes on one lock", func() {
	It("are served strictly in the order in which they queued", func(ctx SpecContext) {
		f := newFleet(ctx)
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

	DescribeTable("go on when one is killed while it holds the lock, and one while it waits:",
		func(ctx SpecContext, kind string) {
			f := newFleet(ctx)
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

			for _, w := range others {
				Eventually(w.lines).Should(HaveLen(3), w.kind)
				Expect(w.lines()).To(HaveExactElements(HavePrefix("held "), "wrote 1", "released"), w.kind)
			}
			who, fences := f.writers(ctx)
			Expect(who).To(Equal(expected))
			Expect(isRising(fences)).To(BeTrue(), "%v", fences)
			Expect(waiter.lines()).To(BeEmpty())
		}, entries([]string{"go", "python", "redis RESP2", "ioredis RESP3", "shell"}))

	DescribeTable("refuse what a holder writes that does not know that its lease is over, and it is told:",
		func(ctx SpecContext, kind string) {
			f := newFleet(ctx)
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
})
