package interop_test

import (
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("A job with a minimum hold, on three machines whose clocks differ by more than it takes, runs once:", func() {
	ending := func(kind, how string, end func(*worker)) TableEntry {
		return Entry(kind+", "+how, kind, end)
	}
	released := func(w *worker) {
		Expect(w.in.Close()).To(Succeed())
		Eventually(w.over).Should(BeClosed())
		Expect(w.lines()).To(ContainElement("released"))
	}
	killed := func(w *worker) {
		w.signal(syscall.SIGKILL)
		Eventually(w.over).Should(BeClosed())
	}
	told := func(line, answer string) func(*worker) {
		return func(w *worker) {
			w.tell(line)
			Eventually(w.lines).Should(ContainElement(answer))
			Expect(w.in.Close()).To(Succeed())
			Eventually(w.over).Should(BeClosed())
		}
	}
	const dies, cancelled, closed = "its holder is killed", "its release is cancelled", "its client is closed"
	DescribeTable("", func(ctx SpecContext, kind string, end func(*worker)) {
		f := newFleet(ctx, startServer().Addr())
		f.env = append(f.env, "MIN_HOLD=60", "LEASE=1", "WAIT=0")
		w := f.start(kind)
		Eventually(w.lines).Should(ConsistOf(HavePrefix("held ")))
		w.tell("write")
		Eventually(w.lines).Should(HaveLen(2))
		holder := f.state(ctx).Holder
		end(w)
		for range 2 { // their clocks show the time when the job is over
			late := f.start(kind)
			Eventually(late.over).Should(BeClosed())
			Expect(late.lines()).To(Equal([]string{"busy"}))
		}
		Expect(f.state(ctx)).To(And(HaveField("Holder", holder), HaveField("TTL", BeNumerically(">", 20*time.Second))))
		f.expire(ctx) // the period is over
		Eventually(func() int { return f.state(ctx).Held }).Should(BeZero())
		next := f.start(kind)
		next.turn()
		Eventually(next.over).Should(BeClosed())
		who, fences := f.writers(ctx)
		Expect(who).To(Equal([]string{w.kind, next.kind}))
		Expect(isRising(fences)).To(BeTrue())
	},
		ending("go", "released", released), ending("go", dies, killed),
		ending("go", cancelled, told("cancel", "cancelled")), ending("go", closed, told("close", "closed")),
		ending("python", "released", released), ending("python", dies, killed),
		ending("asyncio", "released", released), ending("asyncio", dies, killed),
		ending("asyncio", cancelled, told("cancel", "cancelled True")),
		ending("redis RESP3", "released", released), ending("redis RESP3", dies, killed),
		ending("redis RESP3", closed, told("close", "closed")),
	)
})
