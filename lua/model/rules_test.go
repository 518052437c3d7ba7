package model

import (
	"regexp"
	"slices"
	"strconv"

	"github.com/seed-ee05a192/redislock/internal/memory"
)

// rules are judged from what a caller and a reader of the keys can see. The reference is not asked: a
// mistake that it shares with lock.lua is found here.
type rules struct {
	waiters map[string]map[string]asked // by lock and token: what each waiter said last
}

type asked struct {
	called, wait, lease, holders int64
	list                         string
}

// step is a call with the keys before and after it.
type step struct {
	*world
	function      string
	keys, args    []string
	reply         any
	before, after map[string]memory.Key
	may           func(list string) bool
	waiters       map[string]asked
}

func (r *rules) of(lock string) map[string]asked {
	if r.waiters[lock] == nil {
		r.waiters[lock] = map[string]asked{}
	}
	return r.waiters[lock]
}

// forget is for keys that were lost.
func (r *rules) forget() { clear(r.waiters) }

func byName(keys []memory.Key) map[string]memory.Key {
	all := map[string]memory.Key{}
	for _, k := range keys {
		all[k.Name] = k
	}
	return all
}

// holders are who hold the lock, with the last millisecond of each lease, 0: never.
func (s *step) holders(keys map[string]memory.Key) (ends map[string]int64, alone bool) {
	k := keys[s.keys[0]]
	if k.Kind == "string" {
		return map[string]int64{k.Items[0]: k.End}, true
	}
	ends = map[string]int64{}
	for i := 0; i+1 < len(k.Items); i += 2 {
		end, err := strconv.ParseInt(k.Items[i+1], 10, 64)
		switch {
		case err != nil || end >= 1<<53:
			ends[k.Items[i]] = 0
		case end > s.now():
			ends[k.Items[i]] = end - 1
		}
	}
	return ends, false
}

func (s *step) line(keys map[string]memory.Key) (tokens []string) {
	for pair := range slices.Chunk(keys[s.keys[1]].Items, 2) {
		tokens = append(tokens, pair[0])
	}
	return tokens
}

var leadingNumber = regexp.MustCompile(`[0-9]+`)

// fence is what the state knows, 0 if nothing.
func (s *step) fence(keys map[string]memory.Key) int64 {
	items := keys[s.keys[2]].Items
	for i := 0; i+1 < len(items); i += 2 {
		if items[i] == "fence" {
			n, _ := strconv.ParseInt(leadingNumber.FindString(items[i+1]), 10, 64)
			return n
		}
	}
	return 0
}

func (s *step) token() string {
	if len(s.args) == 0 {
		return ""
	}
	return s.args[0]
}

func (s *step) number(arg int, otherwise int64) int64 {
	if arg >= len(s.args) {
		return otherwise
	}
	n, _ := strconv.ParseInt(s.args[arg], 10, 64)
	return n
}

// canTell: the list is one by its name and by what it holds.
func (s *step) canTell(list string, keys map[string]memory.Key) bool {
	k := keys[list]
	return list != lists[4] && s.may(list) && (len(k.Items) == 0 || k.Kind == "list" && isSignal.MatchString(k.Items[0]))
}

var isSignal = regexp.MustCompile(`(?s)^[0-9]+ ([0-9]+) .`)

// mayVanish: a waiter may lose its place that has lapsed, that left a signal unread past its deadline and has not
// called since, or that is in the way and cannot be told.
func (s *step) mayVanish(v asked) bool {
	now := s.now()
	if now > v.called+v.wait {
		return true
	}
	for _, signal := range s.before[v.list].Items {
		found := isSignal.FindStringSubmatch(signal)
		if found == nil {
			continue
		}
		if deadline, _ := strconv.ParseInt(found[1], 10, 64); deadline < now && v.called <= deadline {
			return true
		}
	}
	late := now > v.called+min(v.wait/3, memory.Silence)+memory.Claim
	return !s.canTell(v.list, s.before) && (late || s.function == "lock_reset")
}

// judge has each rule looked at after a call.
func (s *step) judge() {
	held, alone := s.holders(s.before)
	holds, isAlone := s.holders(s.after)
	line, remains := s.line(s.before), s.line(s.after)
	token := s.token()
	_, mine := held[token]
	switch {
	case s.function == "lock_reset":
		held = map[string]int64{}
	case s.function == "lock_release" && mine:
		delete(held, token)
	}

	var granted []string
	for t := range holds {
		if _, already := held[t]; !already {
			granted = append(granted, t)
		}
	}
	own, known := s.waiters[token]
	requeued := known && s.now() > own.called+own.wait
	place := func(t string) int {
		if i := slices.Index(line, t); i >= 0 && (t != token || !requeued) {
			return i
		}
		return len(line)
	}
	slices.SortFunc(granted, func(a, b string) int { return place(a) - place(b) })

	for t, end := range held {
		switch now, still := holds[t]; {
		case t == token:
		case !still:
			s.fail("a lease is taken away", "%s has lost the lock", t)
		case now != end:
			s.fail("a lease ends by somebody else's call", "that of %s: %d, was %d", t, now, end)
		}
	}
	if len(holds) > 0 && len(granted) == 0 && alone != isAlone && len(held) > 0 {
		s.fail("how the lock is held has changed", "alone: %v, was %v", isAlone, alone)
	}
	for i, g := range granted {
		s.grant(g, i, len(held), alone, isAlone, holds[g])
		for _, v := range line[:place(g)] {
			if slices.Contains(remains, v) && (v != token || known && !requeued) {
				s.fail("somebody is overtaken", "%s by %s", v, g)
			}
		}
	}
	if len(granted) > 0 && s.before[s.keys[2]].Kind != "" {
		before, after := s.fence(s.before), s.fence(s.after)
		switch {
		case before == 0:
		case len(held) > 0 && after != before:
			s.fail("those who hold the lock together have two fences", "%d and %d", before, after)
		case len(held) == 0 && after <= before:
			s.fail("the fence does not grow", "%d after %d", after, before)
		}
	}
	for _, v := range line {
		x, known := s.waiters[v]
		if _, now := holds[v]; known && v != token && !now && !slices.Contains(remains, v) && !s.mayVanish(x) {
			s.fail("a waiter has lost its place", "%s, of whom is known %+v", v, x)
		}
	}
	s.passedOn(holds, isAlone, remains, len(granted))
	s.timeLimits(holds)
}

// grant judges one that was given the lock as the i-th in this call, beside these others.
func (s *step) grant(g string, i, others int, wasAlone, isAlone bool, end int64) {
	caller := s.function == "lock_acquire" && g == s.token()
	x, known := s.waiters[g]
	if caller {
		x, known = asked{holders: s.number(3, 1)}, true
		if lease := s.number(1, 0); end != 0 && end != s.now()+lease || end == 0 && lease != 0 {
			s.fail("a lease is not what was asked for", "%d ms, ends at %d", lease, end)
		}
	} else if end == 0 || end > s.now()+memory.Claim {
		s.fail("a handed-over lease does not start short", "%s has it until %d", g, end)
	}
	others += i
	switch {
	case !known:
	case x.holders == 1 && (others > 0 || !isAlone), x.holders != 1 && isAlone, others > 0 && i == 0 && wasAlone:
		s.fail("one who holds the lock alone is not alone", "%s asked for %d, beside %d", g, x.holders, others)
	case x.holders > 1 && int64(others) >= x.holders:
		s.fail("too many hold the lock", "%s asked for %d, beside %d", g, x.holders, others)
	}
	if known && !caller {
		signal := strconv.FormatInt(s.fence(s.after), 10) + " " + strconv.FormatInt(end, 10) + " " + g
		if !slices.Contains(s.after[x.list].Items, signal) {
			s.fail("a grant without its signal", "%s is not told %q", g, signal)
		}
	}
}

// passedOn: nobody in front waits for room that is there.
func (s *step) passedOn(holds map[string]int64, isAlone bool, remains []string, granted int) {
	if s.function == "lock_inspect" || s.function == "lock_extend" && len(holds) == 0 || granted >= 100 {
		return
	}
	for _, v := range remains {
		x, known := s.waiters[v]
		if v == s.token() && s.function == "lock_acquire" {
			x, known = asked{s.now(), s.number(2, 0), s.number(1, 0), s.number(3, 1), s.keys[3]}, true
		}
		if known && s.now() > x.called+x.wait {
			continue
		}
		room := len(holds) == 0 || !isAlone && (x.holders == 0 || int64(len(holds)) < x.holders && x.holders > 1)
		if known && room && s.canTell(x.list, s.after) && s.canTell(x.list, s.before) {
			s.fail("room is not given to the first in line", "%s asked for %d, %d hold it", v, x.holders, len(holds))
		}
		return
	}
}

// timeLimits: nothing stays for ever, but for those who asked for that.
func (s *step) timeLimits(holds map[string]int64) {
	lock, state := s.after[s.keys[0]], s.after[s.keys[2]]
	// Of a lock that never expired and was deleted by hand, the state waits for one who takes or releases it.
	orphan := s.before[s.keys[0]].Kind == "" && s.before[s.keys[2]].Kind != "" && s.before[s.keys[2]].End == 0
	longest := int64(0)
	for _, end := range holds {
		longest = max(longest, end)
		if end == 0 {
			longest = 1 << 53
		}
	}
	key := longest // the set outlives the last share by a millisecond
	if lock.Kind == "zset" {
		key++
	}
	switch {
	case s.after[s.keys[1]].Kind != "" && s.after[s.keys[1]].End == 0:
		s.fail("something has no end", "the queue")
	case len(holds) > 0 && longest != 1<<53 && lock.End != key, longest == 1<<53 && lock.End != 0:
		s.fail("the lock does not end with the longest lease", "but at %d, not at %d", lock.End, longest)
	case state.Kind != "" && state.End == 0 && longest != 1<<53 && !orphan:
		s.fail("something has no end", "the state")
	case state.End != 0 && (longest == 1<<53 || len(holds) > 0 && state.End < longest+memory.Memory):
		s.fail("the state does not outlive the lock", "%d, %d", state.End, longest)
	}
}

// watch is for after each call: it judges, and notes who waits.
func (r *rules) watch(s *step) {
	if _, refused := s.reply.(memory.Failure); refused || len(s.keys) == 0 || s.function == "lock_inspect" {
		return
	}
	s.waiters = r.of(s.keys[0])
	s.judge()
	remains := s.line(s.after)
	for token := range s.waiters {
		if !slices.Contains(remains, token) {
			delete(s.waiters, token)
		}
	}
	if s.function == "lock_acquire" && slices.Contains(remains, s.token()) {
		s.waiters[s.token()] = asked{s.now(), s.number(2, 0), s.number(1, 0), s.number(3, 1), s.keys[3]}
	}
}
