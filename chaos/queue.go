package main

import (
	"sort"
	"strings"
	"time"
)

// labelOf is the operation that a token belongs to: each token begins with its label.
func labelOf(token string) string {
	label, _, _ := strings.Cut(token, ":")
	return label
}

// line is the queue of one lock as it must be, after what MONITOR showed.
type line struct {
	waiting []place
	holder  string // alone
	from    int64  // us: its lease
	until   int64
	shares  map[string]lease // of those who hold it together
	room    *serverEvent     // what made room in the last call
	node    string           // where it was last
	blind   int64            // us: what was asked before may have changed unseen
	left    place            // who last left the queue by its own lock_acquire
	called  int64            // us: when somebody who waits last asked; the queue expires waitTTL after that
}

type lease struct{ from, until int64 } // us

// live is those whose shares run on, but for the one of a token.
func (l *line) live(at int64, but string) (tokens []string) {
	const tolerance = 2000
	for token, s := range l.shares {
		if token != but && s.until > at+tolerance {
			tokens = append(tokens, token)
		}
	}
	sort.Strings(tokens)
	return tokens
}

type place struct {
	token  string
	at     int64 // us
	unsure bool  // it may have been lost since, unseen
}

func (l *line) index(token string) int {
	for i, p := range l.waiting {
		if p.token == token {
			return i
		}
	}
	return -1
}

func (l *line) remove(token string) (place, bool) {
	i := l.index(token)
	if i < 0 {
		return place{}, false
	}
	p := l.waiting[i]
	l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
	return p, true
}

// Judge c: the server's calls are replayed in its own order. Who queued first is granted the lock
// first, and no live waiter is dropped.
func judgeQueue(h *history, v *verdict, all []*op) {
	q := &queueJudge{h: h, v: v, lines: map[string]*line{}, ops: map[string]*op{}, blind: map[string]int64{}}
	for _, o := range all {
		q.ops[o.id] = o
	}
	for i := range h.server {
		q.replay(&h.server[i])
	}
	for _, l := range q.lines {
		if l.room != nil {
			q.freed(l, l.room)
		}
	}
}

type queueJudge struct {
	h     *history
	v     *verdict
	lines map[string]*line
	ops   map[string]*op
	blind map[string]int64 // us: until then MONITOR was interrupted, by node
}

func (q *queueJudge) replay(e *serverEvent) {
	if e.kind == srvGap {
		q.blind[e.node] = e.at
		for _, l := range q.lines {
			if l.node != e.node {
				continue
			}
			l.holder, l.shares, l.room, l.left, l.blind = "", nil, nil, place{}, e.at
			for i := range l.waiting {
				l.waiting[i].unsure = true
			}
		}
		return
	}
	l := q.lines[e.name]
	if l == nil {
		l = &line{}
		q.lines[e.name] = l
	}
	if l.node != e.node { // it has moved
		l.node, l.blind = e.node, max(l.blind, q.blind[e.node])
	}
	if l.room != nil && l.room.begun != e.begun { // that call is through
		q.freed(l, l.room)
		l.room = nil
	}
	switch e.kind {
	case srvEnqueue:
		if e.at > l.called+waitTTL.Microseconds() {
			l.waiting = nil
		}
		l.called = e.at
		if l.index(e.token) < 0 {
			l.waiting = append(l.waiting, place{token: e.token, at: e.at})
			if l.left.token == e.token && e.caller == e.token {
				q.dropped(e, l.left, "was put at the end of the queue: its place had lapsed")
			}
		}
		l.left = place{}
	case srvGrant:
		if e.token != l.holder {
			q.exclusive(l, e, 0)
			q.granted(l, e)
			l.holder, l.from, l.shares = e.token, e.at, nil
		}
		l.until = e.begun + e.number*1000
	case srvRenew:
		if e.token == l.holder {
			l.until = e.begun + e.number*1000
		}
	case srvShare:
		s, renewed := l.shares[e.token]
		if !renewed {
			if o := q.ops[labelOf(e.token)]; o != nil {
				q.exclusive(l, e, o.share)
			}
			q.granted(l, e)
			s.from, l.holder = e.at, ""
		}
		if l.shares == nil {
			l.shares = map[string]lease{}
		}
		s.until = e.begun + e.number*1000
		l.shares[e.token] = s
	case srvLeave:
		delete(l.shares, e.token)
		if e.caller == e.token { // else it had ended
			l.room = e
		}
	case srvFree:
		l.holder, l.shares, l.room = "", nil, e
	case srvGone:
		p, was := l.remove(e.token)
		switch {
		case !was || e.token == l.holder || l.shares[e.token].until != 0 || e.caller == e.token && e.fn != "lock_acquire":
		case e.caller == e.token: // it takes the free lock, or its place had lapsed
			l.left = p
		default:
			q.dropped(e, p, "was dropped from the queue by "+labelOf(e.caller))
		}
	case srvDelete:
		switch e.token {
		case "queue":
			l.waiting = nil
		case "lock":
			l.holder, l.shares = "", nil
		}
	}
}

// exclusive is the part of judge b that goes by what the server did: it grants a lock when the lease
// of the holder has run out, or when it is given back. One who shares it is let in beside those who share it, if
// there are fewer than it asked for (0: alone).
func (q *queueJudge) exclusive(l *line, e *serverEvent, share int) {
	const tolerance = 2000
	q.v.checked[judgeIntervals]++
	live := l.live(e.at, e.token)
	if n := len(live); e.fn != "lock_reset" && n > 0 && (share == 0 || share > 0 && n >= share) {
		from, at := q.h.wall(l.shares[live[0]].from), q.h.wall(e.at)
		if q.forgotten(from, at) {
			q.v.excused["b: the server granted it again, a failover lost the grant"]++
			return
		}
		q.v.fail(judgeIntervals, e.name, from, at, "the server granted the lock to %s (%d holders) beside the shares of %v", labelOf(e.token), share, live)
	}
	if l.holder == "" || l.until <= e.at+tolerance || e.fn == "lock_reset" ||
		e.caller == l.holder && e.fn == "lock_release" {
		return
	}
	from, at := q.h.wall(l.from), q.h.wall(e.at)
	if q.forgotten(from, at) {
		q.v.excused["b: the server granted it again, a failover lost the grant"]++
		return
	}
	q.v.fail(judgeIntervals, e.name, from, at, "the server granted the lock to %s while the lease of %s had %v to run",
		labelOf(e.token), labelOf(l.holder), time.Duration(l.until-e.at)*time.Microsecond)
}

// granted: all who are before e.token in the queue have been overtaken. Only a failover that lost writes
// excuses that: the dead are dropped first, and that is seen.
func (q *queueJudge) granted(l *line, e *serverEvent) {
	q.v.checked[judgeFIFO]++
	// Who takes a free lock by its own call has left the queue just before.
	own, known := place{at: e.at}, l.index(e.token) >= 0
	if l.left.token == e.token {
		own, known = l.left, true
	}
	winner := labelOf(e.token)
	// Where it called before MONITOR was interrupted, it may have queued unseen, whatever was seen of it since.
	o := q.ops[winner]
	if l.blind != 0 && (o == nil && !known || o != nil && q.h.wall(l.blind) > o.call-int64(50*time.Millisecond)) {
		own.unsure = true
	}
	for _, p := range l.waiting {
		if p.token == e.token || p.at > own.at {
			return
		}
		at, since := q.h.wall(e.at), q.h.wall(p.at)
		switch {
		case !q.waits(p, at):
		case q.forgotten(since, at):
			q.v.excused[lostPlace+"a failover"]++
		case p.unsure || own.unsure:
			q.v.excused["c: the order of a grant is not known, MONITOR was interrupted"]++
			return
		default:
			q.violates(e, p, "was overtaken by "+winner)
		}
	}
}

// freed: where there is room, the first one who waits and fits has it in the same call. The dead are dropped first.
func (q *queueJudge) freed(l *line, e *serverEvent) {
	at := q.h.wall(e.at)
	live := len(l.live(e.at, ""))
	for _, p := range l.waiting {
		o := q.ops[labelOf(p.token)]
		if l.holder != "" || live > 0 && (o == nil || o.share == 0 || o.share > 0 && live >= o.share) {
			return // it waits, dead or not, and so do those behind it
		}
		if p.unsure || !q.waits(p, at) {
			continue
		}
		since := q.h.wall(p.at)
		why := ""
		for _, f := range q.h.faults {
			switch {
			case f.forgets(since, at):
				why = "a failover lost its place"
			case f.kind == moveSlot && f.overlaps(at, at):
				why = "in a slot that moves nobody can be told"
			case f.kind == deleteKey && f.name == e.name && f.key == "state" && f.overlaps(since, at):
				why = "its state key was deleted"
			}
		}
		if why == "" {
			q.violates(e, p, "was not handed the lock that "+labelOf(e.caller)+" gave back")
		} else {
			q.v.excused["c: the lock was free while somebody waited, "+why]++
		}
		return
	}
}

// waits tells whether an operation still went on then: a process that died waits no more.
func (q *queueJudge) waits(p place, at int64) bool {
	o := q.ops[labelOf(p.token)]
	return o != nil && (o.end == 0 || o.end >= at) && q.h.deathOf(o) >= at
}

func (q *queueJudge) forgotten(from, to int64) bool {
	for _, f := range q.h.faults {
		if f.forgets(from, to) {
			return true
		}
	}
	return false
}

const lostPlace = "c: a place in the queue was lost, "

// dropped: a waiter was treated as dead. If it was not, this is a violation.
func (q *queueJudge) dropped(e *serverEvent, p place, what string) {
	at, since := q.h.wall(e.at), q.h.wall(p.at)
	if !q.waits(p, at) {
		return
	}
	if q.forgotten(since, at) {
		q.v.excused[lostPlace+"a failover"]++
		return
	}
	worker := q.ops[labelOf(p.token)].worker
	for _, f := range q.h.faults {
		why := ""
		switch {
		// What hit it just before can still be in the way: a call that was cut off, say.
		case !f.overlaps(since-int64(time.Second), at+int64(time.Millisecond)):
		case f.silences(worker):
			return
		case f.kind == deleteKey && f.name == e.name && f.key != "lock":
			why = "its " + f.key + " key was deleted"
		case f.kind == stopPrimary || f.kind == killPrimary:
			why = "the server stood still"
		}
		if why != "" {
			q.v.excused[lostPlace+why]++
			return
		}
	}
	q.violates(e, p, what)
}

func (q *queueJudge) violates(e *serverEvent, p place, what string) {
	at, since := q.h.wall(e.at), q.h.wall(p.at)
	q.v.fail(judgeFIFO, e.name, since, at, "%s had waited %v and %s", labelOf(p.token), time.Duration(at-since).Round(time.Microsecond), what)
}
