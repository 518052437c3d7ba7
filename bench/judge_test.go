package main

import (
	"slices"
	"testing"
	"time"
)

// cyclesOf are made-up records: {contender, asked, granted, left} in ms.
func cyclesOf(contenders int, rows ...[4]int) [][]cycled {
	all := make([][]cycled, contenders)
	at := func(n int) int64 { return int64(time.Hour + ms(n)) } // the clock began long ago
	for _, r := range rows {
		all[r[0]] = append(all[r[0]], cycled{at(r[1]), at(r[2]), at(r[3])})
	}
	return all
}

func TestJudge(t *testing.T) {
	stop := int64(time.Hour + ms(100))
	inTurn := [][4]int{{0, 0, 10, 20}, {1, 1, 21, 30}, {0, 20, 31, 40}, {1, 30, 41, 50}, {0, 40, 51, 60}, {1, 50, 110, 111}}
	s := judge(cyclesOf(2, inTurn...), stop, ms(1))
	want(t, "grants", len(s.grants), 6)
	want(t, "held twice", s.doubles, 0)
	want(t, "bypass in turn", largestBypass(s.grants, s.slack), 0)
	// Without the first round, the last one, which is not whole, and what came after the stop.
	want(t, "window", s.steady, window{from: 2, to: 4, took: ms(20)})
	want(t, "shares", s.jain(2), 1)
	want(t, "waits", s.grants[5].got-s.grants[5].called, ms(60))

	// The second is granted a millisecond before the first has left.
	overlap := slices.Clone(inTurn)
	overlap[1][2] = 19
	want(t, "held twice by one", judge(cyclesOf(2, overlap...), stop, ms(1)).doubles, 1)
	// It holds for all the time that three others come and go.
	long := [][4]int{{0, 0, 10, 90}, {1, 1, 20, 25}, {1, 26, 30, 35}, {1, 36, 40, 45}}
	want(t, "held twice all the time", judge(cyclesOf(2, long...), stop, ms(1)).doubles, 3)

	// Contender 1 asked at 1; contender 0 comes again at 20 and 40, and is served before it.
	overtaking := [][4]int{{0, 0, 10, 20}, {0, 20, 21, 40}, {0, 40, 41, 60}, {1, 1, 61, 70}}
	s = judge(cyclesOf(2, overtaking...), stop, ms(1))
	want(t, "overtaken", largestBypass(s.grants, s.slack), 2)
	want(t, "in any order of the records", judge(cyclesOf(2, overtaking[3], overtaking[0], overtaking[1], overtaking[2]), stop, ms(1)).grants, s.grants)

	// Too short for a whole round after the first.
	s = judge(cyclesOf(2, [4]int{0, 0, 10, 20}, [4]int{1, 0, 120, 130}), stop, ms(1))
	want(t, "no whole round", s.steady, window{from: 0, to: 1, took: ms(100)})
	want(t, "nothing at all", judge(cyclesOf(2), stop, ms(1)).steady.to, 0)
}
