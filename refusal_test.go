package redislock_test

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	It("rule 10: refuses to acquire over maxmemory, and releases, hands over, extends, resets and shows", func(ctx SpecContext) {
		l = libraryAt(ctx, OwnRedis().Addr())
		l.Contended("a", "b")
		Redis(l.Client, "CONFIG", "SET", "maxmemory", "1")
		for _, token := range []string{"h", "a", "new"} {
			Expect(l.Call("lock_acquire", token, Long, Long).Error()).To(MatchError(HavePrefix("OOM ")))
		}
		Expect(l.Extend("h", 2*Long)).To(Equal(int64(1)))
		l.Pass("h", "a")
		Expect(l.Pop("a").Token).To(Equal("a"))
		Expect(l.Reset()).To(Equal(int64(1)))
		Expect(l.Pop("b").Token).To(Equal("b"))
		Expect(l.Extend("b", Long)).To(Equal(int64(1)))
		Expect(l.Inspect().Holder).To(Equal("b"))
		Expect(FCall(l.Client, "lock_version", nil).Error()).NotTo(HaveOccurred())
		Expect(l.Release("b")).To(Equal(int64(1)))
		Expect(l.Int("EXISTS", l.Lock)).To(BeZero())
	})

	Describe("rule 11: where the server refuses the signal", func() {
		It("of a waiter to the one who releases (ACL), the lock is free until the waiter looks", func(ctx SpecContext) {
			mine := OwnRedis()
			l = libraryAt(ctx, mine.Addr())
			Expect(Redis(l.Client, "ACL", "SETUSER", "limited", "on", ">secret", "~lock*", "+@all").Error()).NotTo(HaveOccurred())
			limited := l.With(Directly(mine.Addr(), func(o *rueidis.ClientOption) { o.Username, o.Password = "limited", "secret" }))
			Expect(Redis(limited.Client, "LLEN", "mailbox").Error()).To(MatchError(HavePrefix("NOPERM")))

			Expect(limited.Acquire("h", Long, 0)).To(Hold())
			waiter := l
			waiter.List = "mailbox:" + strings.TrimPrefix(l.Lock, "lock:")
			Expect(waiter.Acquire("a", Long, Long)).To(Queued(1))
			Expect(limited.Acquire("b", Long, Long)).To(Queued(2))

			Expect(limited.Release("h")).To(Equal(int64(1)))
			Expect(l.Existing()).To(ConsistOf(l.Queue, l.State))
			Expect(limited.Acquire("new", Long, 0)).To(Busy())
			Expect(limited.Acquire("new", Long, Long)).To(Queued(3))
			Expect(limited.Acquire("b", Long, Long)).To(Queued(2))
			Expect(waiter.Acquire("a", Long, Long)).To(Hold())
			limited.Pass("a", "b")
			limited.Pass("b", "new")
		})

		It("to all (a key of another type), the lock is free until the waiter looks", func() {
			l.Contended("a", "b")
			Redis(l.Client, "SET", l.Signal("a"), "x")
			Expect(l.Release("h")).To(Equal(int64(1)))
			Expect(l.Int("EXISTS", l.Lock)).To(BeZero())
			Expect(l.Acquire("new", Long, 0)).To(Busy())
			Expect(l.Acquire("b", Long, Long)).To(Queued(2))
			Expect(l.As("elsewhere").Acquire("a", Long, Long)).To(Hold())
			l.Pass("a", "b")
		})

		It("for ever, and the waiter never looks, it lapses and the next one has its turn", func(ctx SpecContext) {
			l.Contended()
			l.Acquire("dead", Long, 30)
			l.Acquire("a", Long, Long)
			Redis(l.Client, "SET", l.Signal("dead"), "x")
			l.Release("h")
			Eventually(ctx, func() []int64 { return l.Acquire("a", Long, Long) }).Should(Hold())
		})
	})
})
