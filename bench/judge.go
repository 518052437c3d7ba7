package main

import (
	"cmp"
	"slices"
	"time"
)

// cycled is one cycle of a contender in a process of its own, in ns of the clock that all processes
// of the machine share.
type cycled struct {
	asked   int64 // before the call that takes the lock
	granted int64 // after it
	left    int64 // before the call that releases
}

// judge makes a slice of what the contenders wrote down. They were told to end at stop.
//
// It is stricter than the contest in one process in what counts as held (from after the call to
// before the release, on one clock), and less exact in the order: a process is seen to call, not to
// send.
func judge(cycles [][]cycled, stop int64, slack time.Duration) *slice {
	type cycle struct {
		cycled
		contender int
	}
	var all []cycle
	began := stop
	for i, records := range cycles {
		for _, r := range records {
			all = append(all, cycle{r, i})
			began = min(began, r.asked)
		}
	}
	slices.SortFunc(all, func(a, b cycle) int { return cmp.Compare(a.granted, b.granted) })
	s := &slice{slack: slack}
	since := func(at int64) time.Duration { return time.Duration(at - began) }
	left, counted := int64(0), 0
	for _, c := range all {
		if c.granted < left {
			s.doubles++
		}
		left = max(left, c.left)
		s.grants = append(s.grants, grant{c.contender, since(c.asked), since(c.asked), since(c.granted)})
		if c.granted <= stop {
			counted++
		}
	}
	// The first round is left out, and what is no whole round, see contest.run.
	n := len(cycles)
	if from, to := n, counted-counted%n; to > from {
		s.steady = window{from: from, to: to, took: s.grants[to-1].got - s.grants[from-1].got}
	} else {
		s.steady = window{to: counted, took: max(since(stop), 1)}
	}
	return s
}
