package main

import (
	"fmt"
	"regexp"
	"sort"
	"time"
)

// The judges. They count each excuse with its reason, and excuse nothing else:
//
//	a  nothing
//	b  Two leases at once, if both share the lock and no more share it than the later one asked for. Or if,
//	   between the two grants, the lock's key was deleted, the lock was reset, or a failover may have lost the
//	   first grant (Sentinel's, or an election in a cluster: Redis replicates asynchronously). A client that was
//	   stopped holds the lock only until its own deadline. Tokens out of order: the same failover, for a client
//	   that joins older holders.
//	c  An overtaken waiter: if a failover may have lost its place. The order is not known for waiters from before
//	   the end of an interruption of MONITOR.
//	   A dropped waiter: the same; if its queue or state key was deleted; if the server was stopped or killed
//	   while it waited. A waiter that was dead, stopped or cut off does not count.
//	   A free lock while somebody waits: as an overtaken waiter; if the state key was deleted or the slot was being
//	   moved, since then the server cannot tell the waiter.
//	d  The time of a fault of the server, or of the waiter's own client; two seconds more for each further client
//	   that was silenced lately.
//	e  As b; a sample that porcupine cannot decide in time.
//	f  A Context that was alive when another client got the lock: as two leases in b. Or if its process was
//	   stopped at that moment, or had run again for less than 100 ms: nothing ends a Context of a stopped process.
const (
	judgeRegister  = "a fenced register"
	judgeIntervals = "b lease intervals"
	judgeFIFO      = "c first come, first served"
	judgeWaiting   = "d bounded waiting"
	judgeLinear    = "e linearizable"
	judgeContexts  = "f no Context past the grant"
)

var judgeNames = []string{judgeRegister, judgeIntervals, judgeFIFO, judgeWaiting, judgeLinear, judgeContexts}

// violation is what a judge has found.
type violation struct {
	judge string
	at    int64 // mono
	since int64 // where the timeline begins
	name  string
	ops   []string // the operations in question
	text  string
}

// verdict is the result of one episode.
type verdict struct {
	violations []violation
	checked    map[string]int // by judge
	excused    map[string]int // by reason
	ops        int
	grants     int
	pending    int // unanswered at the end
	refused    int
	writes     int
	faults     map[string]int
	worst      time.Duration // the longest stall
	worstBound time.Duration // the bound at that time
	worstAt    int64
	worstName  string
}

var opPattern = regexp.MustCompile(`w\d+\.\d+\.\d+\.\d+`)

func newVerdict() *verdict {
	return &verdict{checked: map[string]int{}, excused: map[string]int{}, faults: map[string]int{}}
}

// found is how many violations a judge has.
func (v *verdict) found(judge string) int {
	n := 0
	for _, x := range v.violations {
		if x.judge == judge {
			n++
		}
	}
	return n
}

func (v *verdict) fail(judge, name string, since, at int64, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	v.violations = append(v.violations, violation{judge, at, since, name, opPattern.FindAllString(text, -1), text})
}

// judge returns the verdict on an episode.
func judge(h *history) *verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := newVerdict()
	all := h.ops()
	byName := map[string][]*op{}
	for _, o := range all {
		byName[o.name] = append(byName[o.name], o)
		v.ops++
		if o.held {
			v.grants++
		}
		if o.end == 0 && h.deathOf(o) == h.end {
			v.pending++
		}
	}
	for _, f := range h.faults {
		v.faults[f.kind]++
	}
	// Stable: the stamps of one server are in its order already.
	sort.SliceStable(h.server, func(i, j int) bool { return h.server[i].at < h.server[j].at })

	judgeTheRegister(h, v)
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		judgeOverlaps(h, v, name, byName[name])
		judgeClientFences(h, v, name, byName[name])
		judgeStalls(h, v, name, byName[name])
		judgeLinearizable(h, v, name, byName[name])
		judgeAlive(h, v, name, byName[name])
	}
	judgeServerFences(h, v)
	judgeQueue(h, v, all)
	sort.SliceStable(v.violations, func(i, j int) bool { return v.violations[i].at < v.violations[j].at })
	return v
}

// Judge a: every accepted write builds on the last accepted write. Otherwise the last write is lost, or the
// same value was written twice. Nothing excuses it.
func judgeTheRegister(h *history, v *verdict) {
	for _, e := range h.register {
		v.checked[judgeRegister]++
		switch {
		case e.refused:
			v.refused++
		case e.write:
			v.writes++
			if e.base != e.value {
				v.fail(judgeRegister, e.name, e.t-int64(time.Second), e.t,
					"%s (token %d) had read %d and wrote %d over the %d of %s: a write was lost",
					e.op, e.fence, e.base, e.base+1, e.value, e.last)
			}
		}
	}
}

// tolerance covers the comparison of two clocks, and the server's milliseconds.
const tolerance = int64(2 * time.Millisecond)

// startOf is when the server granted the lock: the fencing token. It can be ahead of the clock, if there was
// more than one token in a microsecond or the clock went back.
func startOf(h *history, o *op) int64 {
	if at := h.wall(o.fence); at >= o.call-tolerance && at <= o.end {
		return at
	}
	return o.end
}

// Judge b, first half: nobody else gets the lock from the server's stamp of the grant until the holder gave
// it back, or had to take it for lost by its own clock.
func judgeOverlaps(h *history, v *verdict, name string, ops []*op) {
	type lease struct {
		*op
		from, to int64
	}
	var leases []lease
	for _, o := range ops {
		if o.held {
			leases = append(leases, lease{o, startOf(h, o), o.until(h.deathOf(o))})
		}
	}
	sort.Slice(leases, func(i, j int) bool { return leases[i].from < leases[j].from })
	var open []lease
	for _, b := range leases {
		v.checked[judgeIntervals]++
		still := open[:0]
		for _, a := range open {
			if a.to <= b.from+tolerance {
				continue
			}
			if a.share != 0 && b.share != 0 || b.to <= b.from { // the server's events tell their number
				still = append(still, a)
				continue
			}
			if why := excuseOverlap(h, name, a.from, b.from); why != "" {
				v.excused["b: two holders, "+why]++
				continue // and so do all after b
			}
			still = append(still, a)
			v.fail(judgeIntervals, name, a.from, b.from,
				"%s (token %d) was granted the lock %v before the lease of %s (token %d) ended",
				b.id, b.fence, time.Duration(a.to-b.from), a.id, a.fence)
		}
		still = append(still, b)
		open = still
	}
}

const lostGrant = "a failover lost the grant"

// excuseOverlap: the server forgot the first lease between the two grants.
func excuseOverlap(h *history, name string, from, to int64) string {
	for _, f := range h.faults {
		switch {
		case f.kind == deleteKey && f.name == name && f.key == "lock" && f.overlaps(from, to):
			return "the lock key was deleted"
		case f.kind == resetLock && f.name == name && f.overlaps(from, to):
			return "the lock was reset"
		case f.forgets(from, to):
			return lostGrant
		}
	}
	return ""
}

// Judge b, second half, by what clients saw: a client that asked after another one got the lock has the
// greater token, and no token comes twice, except among co-holders. Only this is excused: a client that joins
// holders which a failover has brought back gets their token, and the failover lost later tokens.
func judgeClientFences(h *history, v *verdict, name string, ops []*op) {
	var holds []*op
	owner := map[int64]*op{}
	for _, o := range ops {
		if !o.held || o.fence == 0 {
			continue
		}
		if other := owner[o.fence]; other != nil && (other.share == 0 || o.share == 0) {
			v.fail(judgeIntervals, name, min(o.call, other.call), o.end, "token %d was given to %s and to %s", o.fence, other.id, o.id)
		}
		owner[o.fence] = o
		holds = append(holds, o)
	}
	byGot := append([]*op(nil), holds...)
	sort.Slice(byGot, func(i, j int) bool { return byGot[i].end < byGot[j].end })
	next := 0
	var newest *op
	for _, o := range holds { // in order of their calls
		for ; next < len(byGot) && byGot[next].end < o.call; next++ {
			if newest == nil || byGot[next].fence > newest.fence {
				newest = byGot[next]
			}
		}
		if newest != nil && (newest.fence > o.fence || newest.fence == o.fence && (newest.share == 0 || o.share == 0)) {
			if o.share != 0 && excuseOverlap(h, name, newest.end, o.end) == lostGrant {
				v.excused["b: it joined those who hold the lock since before, a failover lost a later token"]++
				continue
			}
			v.fail(judgeIntervals, name, newest.call, o.end, "%s asked when %s had token %d and got %d", o.id, newest.id, newest.fence, o.fence)
		}
	}
}

// Tokens only grow, in the order of the server. Nothing excuses a smaller one. The library writes the last token
// again if a lost queue has left entries behind; the clients' reports tell that nobody gets it again.
func judgeServerFences(h *history, v *verdict) {
	last := map[string]int64{}
	for _, e := range h.server {
		if e.kind != srvFence {
			continue
		}
		v.checked[judgeIntervals]++
		if e.number < last[e.name] {
			at := h.wall(e.at)
			v.fail(judgeIntervals, e.name, at-int64(time.Second), at, "the server %s gave out token %d after %d", e.node, e.number, last[e.name])
		}
		last[e.name] = max(last[e.name], e.number)
	}
}

// span is a part of the timeline.
type span struct{ from, to int64 }

// served is the bound: a dead client that got the lock costs 2 s, the next check-in up to 1 s more.
const (
	served    = 3 * time.Second
	claimTime = 2 * time.Second
)

// Judge d: while a live client waits, the lock does not stay without a live holder (one of them, if it is held
// together) for longer than 3 s plus the lease that was running. The count begins anew when a fault begins or ends, so the
// time of a failover is added once. Each further client that was silenced lately adds 2 s.
func judgeStalls(h *history, v *verdict, name string, ops []*op) {
	holds := heldSpans(h, ops)
	told, excused := map[int64]bool{}, map[int64]bool{} // by the end of the stall
	for _, o := range ops {
		if o.try {
			continue
		}
		to := h.deathOf(o)
		if o.end != 0 && o.end < to {
			to = o.end
		}
		v.checked[judgeWaiting]++
		for _, free := range minus(span{o.call, to}, holds) {
			if free.to-free.from < int64(100*time.Millisecond) {
				v.worst = max(v.worst, time.Duration(free.to-free.from))
				continue
			}
			for _, part := range undisturbed(h, o.worker, name, free) {
				stall := time.Duration(part.to - part.from)
				if stall <= v.worst && stall <= served {
					continue
				}
				strict := served + leaseRunning(h, ops, name, part)
				bound := strict + furtherDead(h, o.worker, part.from)
				if stall > v.worst {
					v.worst, v.worstBound, v.worstAt, v.worstName = stall, bound, part.to, name
				}
				// The other waiters of the same stall add nothing.
				switch {
				case stall > bound && !told[part.to]:
					told[part.to] = true
					v.fail(judgeWaiting, name, part.from, part.to,
						"%s waited %v while no live client held the lock; allowed are %v", o.id, stall, bound)
				case stall > strict && stall <= bound && !excused[part.to]:
					excused[part.to] = true
					v.excused["d: two seconds more, several clients had been silenced"]++
				}
			}
		}
	}
}

// heldSpans is when a client held the lock, merged and in order.
func heldSpans(h *history, ops []*op) []span {
	var spans []span
	for _, o := range ops {
		if !o.held {
			continue
		}
		to := o.until(h.deathOf(o))
		if o.released != 0 {
			to = max(to, o.release) // the time that release takes counts as free
		}
		spans = append(spans, span{o.end, max(to, o.end)})
	}
	sort.Slice(spans, func(i, j int) bool { return spans[i].from < spans[j].from })
	var merged []span
	for _, s := range spans {
		if n := len(merged); n > 0 && s.from <= merged[n-1].to {
			merged[n-1].to = max(merged[n-1].to, s.to)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// minus cuts spans, which are in order, out of s.
func minus(s span, spans []span) []span {
	var left []span
	i := sort.Search(len(spans), func(i int) bool { return spans[i].to > s.from })
	for ; i < len(spans) && spans[i].from < s.to; i++ {
		if spans[i].from > s.from {
			left = append(left, span{s.from, spans[i].from})
		}
		s.from = max(s.from, spans[i].to)
	}
	if s.from < s.to {
		left = append(left, s)
	}
	return left
}

// undisturbed cuts faults out of s: faults of the server and of this client for their whole length, faults of
// others at their begin.
func undisturbed(h *history, worker int, name string, s span) []span {
	var cuts []span
	for _, f := range h.faults {
		switch {
		case f.kind == replaceLibrary || f.name != "" && f.name != name:
		case f.worker == everyone || f.worker == worker:
			cuts = append(cuts, span{f.from, max(f.to, f.from+1)})
		default:
			cuts = append(cuts, span{f.from, f.from + 1})
		}
	}
	sort.Slice(cuts, func(i, j int) bool { return cuts[i].from < cuts[j].from })
	var merged []span
	for _, c := range cuts {
		if n := len(merged); n > 0 && c.from <= merged[n-1].to {
			merged[n-1].to = max(merged[n-1].to, c.to)
			continue
		}
		merged = append(merged, c)
	}
	return minus(s, merged)
}

// leaseRunning is the longest recent lease of a holder that did not give the lock back. If Release took long,
// its first call was lost, and the lease went on although Release succeeded in the end.
func leaseRunning(h *history, ops []*op, name string, s span) time.Duration {
	const (
		lately = int64(4 * time.Second)
		long   = int64(500 * time.Millisecond)
	)
	byID := map[string]*op{}
	longest := time.Duration(0)
	for _, o := range ops {
		byID[o.id] = o
		if o.held && (o.relErr != "" || o.released-o.release > long) && o.end <= s.to && max(o.deadline, o.released) >= s.from-lately {
			longest = max(longest, time.Duration(o.lease))
		}
		if o.held && o.released == 0 && o.end <= s.to && o.deadline >= s.from-lately {
			longest = max(longest, time.Duration(o.lease))
		}
	}
	i := sort.Search(len(h.server), func(i int) bool { return h.wall(h.server[i].at) >= s.from-lately })
	for ; i < len(h.server) && h.wall(h.server[i].at) <= s.to; i++ {
		e := h.server[i]
		if e.kind != srvGrant && e.kind != srvShare && e.kind != srvRenew || e.name != name {
			continue
		}
		// Did it hear of this grant? It may have ended before, or got a later one.
		o, at := byID[labelOf(e.token)], h.wall(e.at)
		lease := time.Duration(e.number) * time.Millisecond
		if e.caller != e.token { // handed over
			lease = min(lease, claimTime)
		}
		if o == nil || !o.held || o.released == 0 || o.released < at || o.end > at+int64(lease) {
			longest = max(longest, lease)
		}
	}
	return longest
}

// furtherDead is the cost of the clients silenced lately, without the first, which the bound includes. A killed
// client costs that until its places have lapsed, another one until it has had the time to call.
func furtherDead(h *history, worker int, at int64) time.Duration {
	dead := map[int]bool{}
	for _, f := range h.faults {
		lately := served
		if f.kind == killClient {
			lately = waitTTL
		}
		if f.worker != worker && f.silences(f.worker) && f.overlaps(at-int64(lately), at) {
			dead[f.worker] = true
		}
	}
	return time.Duration(max(0, len(dead)-1)) * claimTime
}

// Judge f: a holder works until its Context ends, whatever its Deadline says. So from its grant until then, the
// server grants the lock to nobody else and renews no other lease. MONITOR shows that; where MONITOR was
// interrupted, the tokens of the clients do.
func judgeAlive(h *history, v *verdict, name string, ops []*op) {
	type granted struct {
		at     int64
		to     string // the operation
		shares bool
	}
	var grants []granted
	for _, e := range h.server {
		if (e.kind == srvGrant || e.kind == srvShare || e.kind == srvRenew) && e.name == name {
			grants = append(grants, granted{h.wall(e.at), labelOf(e.token), e.kind == srvShare})
		}
	}
	for _, o := range ops {
		if o.held {
			grants = append(grants, granted{startOf(h, o), o.id, o.share != 0})
		}
	}
	sort.Slice(grants, func(i, j int) bool { return grants[i].at < grants[j].at })
	for _, a := range ops {
		if !a.held {
			continue
		}
		v.checked[judgeContexts]++
		from, to := startOf(h, a), a.aliveTo(h.deathOf(a))
		excused := map[string]bool{}
		first := sort.Search(len(grants), func(i int) bool { return grants[i].at > from })
		for _, b := range grants[first:] {
			if b.at+tolerance >= to {
				break
			}
			if b.to == a.id || b.shares && a.share != 0 {
				continue
			}
			why := excuseOverlap(h, name, from, b.at)
			if why == "" && wasStopped(h, a.worker, b.at) {
				why = "its process was stopped"
			}
			if why == "" {
				v.fail(judgeContexts, name, from, to, "the Context of %s (token %d) was alive for %v after the lock was granted to %s",
					a.id, a.fence, time.Duration(to-b.at).Round(time.Microsecond), b.to)
				break
			}
			if !excused[why] {
				excused[why] = true
				v.excused["f: a Context past the grant, "+why]++
			}
		}
	}
}

// awake is the time that a process has to end its Contexts after it runs again.
const awake = 100 * time.Millisecond

func wasStopped(h *history, worker int, at int64) bool {
	for _, f := range h.faults {
		if f.kind == stopClient && f.worker == worker && f.overlaps(at-int64(awake), at) {
			return true
		}
	}
	return false
}
