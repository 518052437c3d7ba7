package redislock_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	DescribeTable("does what a sequential model of a fair lock does, step by step", func(ctx SpecContext, violent bool) {
		newLockModel(l.Client, violent).run(ctx, 5_000)
	},
		Entry("with leases and waits that never end", false),
		Entry("with locks that end and queues that vanish at any moment", true),
	)
})

// modelled is one lock of the property test: the real one and what a sequential program would know.
type modelled struct {
	RawLock
	holder  string
	waiting []string
	endless map[string]bool // tokens that asked for a lease of 0 last
	forever bool            // the holder's lease never ends, or did not when the lock was deleted
	fence   int64
}

type lockModel struct {
	random  *rand.Rand
	violent bool
	locks   []*modelled
	past    []string
}

func newLockModel(client rueidis.Client, violent bool) *lockModel {
	m := &lockModel{random: rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), 1)), violent: violent}
	for range 3 {
		m.locks = append(m.locks, &modelled{RawLock: NewRawLock(client), endless: map[string]bool{}})
	}
	return m
}

// next gives the lock to the head of the queue, and says to whom.
func (m *modelled) next() string {
	m.holder = ""
	if len(m.waiting) > 0 {
		m.holder, m.waiting, m.forever = m.waiting[0], m.waiting[1:], false
	}
	return m.holder
}

func (m *modelled) leave(token string) bool {
	i := slices.Index(m.waiting, token)
	if i < 0 {
		return false
	}
	m.waiting = slices.Delete(m.waiting, i, i+1)
	return true
}

func (m *lockModel) run(ctx context.Context, steps int) {
	GinkgoHelper()
	for step := range steps {
		if ctx.Err() != nil {
			Fail("the time is over")
		}
		m.step(ctx, step)
	}
}

// step makes one call and compares: reply, holder, queue, signal, fence and TTLs. A lock that was
// handed over is claimed in the same pipeline, so that time plays no role.
func (m *lockModel) step(ctx context.Context, step int) {
	GinkgoHelper()
	l := m.locks[m.random.IntN(len(m.locks))]
	token := strconv.Itoa(m.random.IntN(7))
	if m.random.IntN(3) == 0 && l.holder != "" {
		token = l.holder
	}
	lease := []int{0, Long, 2 * Long, 3 * Long}[m.random.IntN(4)]
	wait := []int{0, Long, Long, 2 * Long}[m.random.IntN(4)]
	list := func(token string) string { return string(rune('A' + int(token[0]-'0')%4)) } // some share one

	var command []string
	var want, handed = []int64{0}, ""
	granted := false
	grant := func() {
		l.leave(token)
		l.holder, l.forever, granted = token, lease == 0, true
		left := int64(lease)
		if lease == 0 {
			left = -1
		}
		want = []int64{1, -1, left}
	}
	kind := m.random.IntN(11)
	if kind == 10 && !m.violent {
		kind = 9
	}
	switch kind {
	case 0, 1, 2, 3, 4:
		command = l.As(list(token)).Command("lock_acquire", token, lease, wait)
		free := l.holder == ""
		switch {
		case l.holder == token:
			grant()
			granted = false // no new one
		case free && (len(l.waiting) == 0 || l.waiting[0] == token):
			grant()
		default:
			if free {
				handed = l.next()
			}
			l.endless[token] = lease == 0
			if wait == 0 {
				l.leave(token)
				want = []int64{0, 0}
			} else {
				if !slices.Contains(l.waiting, token) {
					l.waiting = append(l.waiting, token)
				}
				want = []int64{0, int64(slices.Index(l.waiting, token) + 1)}
			}
		}
	case 5, 6:
		command = l.Command("lock_release", token)
		switch {
		case l.holder == token:
			want, handed = []int64{1}, l.next()
			l.forever = false
		case l.leave(token):
			want = []int64{2}
			fallthrough
		default:
			if l.holder == "" {
				handed = l.next()
			}
		}
	case 7:
		command = l.Command("lock_extend", token, lease)
		if l.holder == token {
			want, l.forever = []int64{1}, lease == 0
		}
	case 8:
		command = l.Command("lock_reset")
		if l.holder != "" {
			want = []int64{1}
			l.forever = false
		}
		handed = l.next()
	case 9:
		command = []string{"DEL", l.Lock}
		if l.holder != "" {
			want = []int64{1}
		}
		l.holder = ""
	case 10:
		command, want = m.violence(ctx, l)
	}

	commands := [][]string{command, l.Command("lock_inspect"), {"PTTL", l.Lock}, {"PTTL", l.Queue}, {"PTTL", l.State},
		{"PTTL", l.Signal("A")}, {"PTTL", l.Signal("B")}, {"PTTL", l.Signal("C")}, {"PTTL", l.Signal("D")}}
	checks := len(commands)
	if handed != "" {
		claimed := l.Command("lock_extend", handed, Long)
		if l.endless[handed] {
			claimed = l.As(list(handed)).Command("lock_acquire", handed, 0, Long)
		}
		commands = append(commands, []string{"LPOP", l.Signal(list(handed))}, claimed)
	}
	m.past = append(m.past, fmt.Sprint(step, " ", command[1:]))
	m.past = m.past[max(0, len(m.past)-30):]
	where := func() string {
		return fmt.Sprintf("seed %d, step %d; the last calls:\n%s", GinkgoRandomSeed(), step, strings.Join(m.past, "\n"))
	}

	results := l.Pipeline(commands...)
	s := ParseShown(results[1])
	var got []int64
	if _, err := results[0].ToInt64(); err == nil {
		got = []int64{AsInt(results[0])}
	} else {
		got = AsInts(results[0])
		if got[0] == 1 {
			Expect(got[1]).To(Equal(s.Fence), where)
			got[1] = -1
		}
		got = got[:len(want)]
	}
	Expect(got).To(Equal(want), where)
	Expect(s.Holder).To(Equal(l.holder), where)
	Expect(s.Waiters).To(HaveExactElements(l.waiting), where)
	if granted || handed != "" {
		Expect(s.Fence).To(BeNumerically(">", l.fence), where)
		l.fence = s.Fence
	}
	if l.holder != "" {
		Expect(s.Fence).To(Equal(l.fence), where)
	}
	for i, result := range results[2:checks] {
		if !l.forever || i == 1 || i > 2 {
			Expect(AsInt(result)).NotTo(Equal(int64(-1)), func() string { return fmt.Sprint(commands[2+i]) + " " + where() })
		}
	}
	if handed != "" {
		Expect(AsInt(results[2])).To(And(BeNumerically(">", 0), BeNumerically("<=", Claim)), where)
		signal := ParseSignal(results[checks])
		Expect(signal.Token).To(Equal(handed), where)
		Expect(signal.Fence).To(Equal(s.Fence), where)
		Expect(results[checks+1].Error()).NotTo(HaveOccurred(), where)
		l.forever = l.endless[handed]
	}
}

// violence is what a lock may suffer from others: its lease ends, never ends, or its queue vanishes.
func (m *lockModel) violence(ctx context.Context, l *modelled) (command []string, want []int64) {
	GinkgoHelper()
	switch m.random.IntN(3) {
	case 0:
		l.RunOut(ctx)
		l.holder = ""
		return []string{"EXISTS", l.Lock}, []int64{0}
	case 1:
		command, want = []string{"PERSIST", l.Lock}, []int64{0}
		if l.holder != "" && !l.forever {
			l.forever, want = true, []int64{1}
		}
		return command, want
	default:
		command, want = []string{"DEL", l.Queue}, []int64{min(1, int64(len(l.waiting)))}
		l.waiting = nil
		return command, want
	}
}
