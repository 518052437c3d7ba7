package redislock_test

import (
	"strconv"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	for _, protocol := range []string{"RESP2", "RESP3"} {
		Describe("replies in "+protocol+":", func() {
			BeforeEach(func() {
				l = l.With(Directly(Server.Addr(), func(o *rueidis.ClientOption) { o.AlwaysRESP2 = protocol == "RESP2" }))
			})

			It("lock_acquire of a free lock: 1, fence, lease_left_ms, now_ms", func() {
				before := l.Micros()
				reply := l.Acquire("a", Long, 0)
				after := l.Micros()
				Expect(reply).To(HaveExactElements(int64(1),
					And(BeNumerically(">=", before), BeNumerically("<=", after)),
					int64(Long),
					And(BeNumerically(">=", before/1000), BeNumerically("<=", after/1000))))
			})

			It("lock_acquire without expiry: lease_left_ms is -1", func() {
				Expect(l.Acquire("a", 0, 0)).To(HaveExactElements(int64(1), BeNumerically(">", 0), int64(-1), BeNumerically(">", 0)))
			})

			It("lock_acquire of a busy lock: 0, position, check_in_ms, now_ms", func() {
				l.Contended()
				for position := range 3 {
					before := l.Now()
					reply := l.Acquire(strconv.Itoa(position), Long, Long)
					Expect(reply).To(Queued(position + 1))
					Expect(reply[2]).To(BeNumerically("<=", Long/3))
					Expect(reply[3]).To(And(BeNumerically(">=", before), BeNumerically("<=", l.Now())))
				}
			})

			It("lock_acquire with WAIT_MS 0 of a busy lock: 0, 0, holder_left_ms, now_ms", func() {
				l.Contended()
				Expect(l.Acquire("b", Long, 0)).To(HaveExactElements(int64(0), int64(0), Within(Long), BeNumerically(">", 0)))
				Expect(l.Extend("h", 0)).To(Equal(int64(1)))
				Expect(l.Acquire("b", Long, 0)).To(HaveExactElements(int64(0), int64(0), int64(-1), BeNumerically(">", 0)))
			})

			It("lock_release: 1 to the holder, 2 to a waiter, 0 to all others", func() {
				l.Contended("a")
				Expect(l.Release("a")).To(Equal(int64(2)))
				Expect(l.Release("a")).To(Equal(int64(0)))
				Expect(l.Release("h")).To(Equal(int64(1)))
				Expect(l.Release("h")).To(Equal(int64(0)))
			})

			It("lock_extend: 1 to the holder, 0 to all others", func() {
				Expect(l.Extend("h", Long)).To(Equal(int64(0)))
				l.Contended("a")
				Expect(l.Extend("a", Long)).To(Equal(int64(0)))
				Expect(l.Extend("b", Long)).To(Equal(int64(0)))
				Expect(l.Extend("h", Long)).To(Equal(int64(1)))
			})

			It("lock_reset: 1 if the lock was held, 0 if not", func() {
				Expect(l.Reset()).To(Equal(int64(0)))
				l.Contended()
				Expect(l.Reset()).To(Equal(int64(1)))
				Expect(l.Reset()).To(Equal(int64(0)))
				l.Contended("a")
				Expect(l.Reset()).To(Equal(int64(1)))
				Expect(l.Inspect().Holder).To(Equal("a"))
			})

			It("lock_inspect: fields and values, each waiter with its token first", func() {
				free := l.Inspect()
				Expect(free.Details).To(BeEmpty())
				Expect([]int64{free.Fence, free.TTL, free.Waiting}).To(Equal([]int64{0, -2, 0}))
				Expect(free.Holder).To(BeEmpty())

				l.Contended("a")
				l.As("client").Acquire("b", 0, 2*Long)
				fence := l.Acquire("h", Long, 0)[1]
				s := l.Inspect()
				Expect(s.Holder).To(Equal("h"))
				Expect(s.Fence).To(Equal(fence))
				Expect(s.TTL).To(Within(Long))
				Expect(s.Waiting).To(Equal(int64(2)))
				Expect(s.Waiters).To(Equal([]string{"a", "b"}))
				Expect(s.Now).To(And(BeNumerically("<=", l.Now()), BeNumerically(">", l.Now()-Soon.Milliseconds())))
				Expect([]int64{free.Held, s.Held}).To(Equal([]int64{0, 1}))
				Expect(s.Holders).To(BeEmpty(), "only of those who share it")
				waiter := s.Details[1] // token, waited_ms, lapses_in_ms, lease_ms, signal, holders
				Expect(waiter).To(HaveLen(6))
				Expect(waiter[1].ToInt64()).To(BeNumerically("~", 0, Soon.Milliseconds()))
				Expect(waiter[2].ToInt64()).To(Within(2 * Long))
				Expect(waiter[3].ToInt64()).To(Equal(int64(0)))
				Expect(waiter[4].ToString()).To(Equal(l.Signal("client")))
				Expect(waiter[5].ToInt64()).To(Equal(int64(1)))

				l.Extend("h", 0)
				Expect(l.Inspect().TTL).To(Equal(int64(-1)))
			})

			It("lock_version: the version of the Go package", func() {
				Expect(FCall(l.Client, "lock_version", nil).ToString()).To(Equal(redislock.Version))
			})

			It("errors: one line that begins with LOCKARG or WRONGTYPE", func() {
				Expect(l.Call("lock_acquire", "", Long, Long).Error()).To(refuse("LOCKARG", "TOKEN"))
				Redis(l.Client, "LPUSH", l.Lock, "x")
				Expect(l.Call("lock_extend", "a", Long).Error()).To(refuse("WRONGTYPE"))
			})
		})
	}
})
