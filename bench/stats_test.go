package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func want[T any](t *testing.T, what string, got, wanted T) {
	t.Helper()
	if !reflect.DeepEqual(got, wanted) {
		t.Errorf("%s: got %v, want %v", what, got, wanted)
	}
}

func TestJain(t *testing.T) {
	want(t, "all the same", jain([]int{7, 7, 7, 7}), 1)
	want(t, "one has all", jain([]int{0, 12, 0, 0}), 0.25)
	want(t, "one has twice as much", jain([]int{1, 2}), 0.9)
	want(t, "nothing", jain([]int{0, 0}), 0)
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func TestLargestBypass(t *testing.T) {
	grants := func(times ...[2]int) (g []grant) {
		for i, at := range times {
			g = append(g, grant{contender: i, called: ms(at[0]), asked: ms(at[0]), got: ms(at[1])})
		}
		return g
	}
	want(t, "in order", largestBypass(grants([2]int{0, 10}, [2]int{2, 20}, [2]int{5, 30}), ms(1)), 0)
	// The third asked first, and the two before it 2 and 5 ms later.
	late := grants([2]int{2, 10}, [2]int{5, 20}, [2]int{0, 30})
	want(t, "two went past", largestBypass(late, ms(1)), 2)
	want(t, "one of them may have arrived first", largestBypass(late, ms(3)), 1)
	want(t, "both may", largestBypass(late, ms(5)), 0)
	want(t, "granted before it was asked for", largestBypass(grants([2]int{8, 10}, [2]int{11, 30}), ms(1)), 0)
	// What counts is when it was sent, not when it was called.
	late[2].asked = ms(6)
	want(t, "sent later than called", largestBypass(late, ms(1)), 0)
	// Of several overtaken ones, the worst.
	want(t, "the largest", largestBypass(grants([2]int{20, 30}, [2]int{0, 35}, [2]int{22, 40}, [2]int{10, 50}, [2]int{1, 60}, [2]int{55, 70}), ms(1)), 3)
}

func TestSpreadAndPairs(t *testing.T) {
	want(t, "odd", spreadOf([]float64{3, 1, 2}), spread{2, 1, 3, 3})
	want(t, "even", spreadOf([]float64{4, 1, 2, 3}), spread{2.5, 1, 4, 4})
	want(t, "none", spreadOf(nil), spread{})
	values := []float64{3, 1, 2}
	spreadOf(values)
	want(t, "left as they were", values, []float64{3, 1, 2})
	// The noise of the second slice hits both and cancels out; that is what pairs are for.
	want(t, "paired", paired([]float64{10, 1, 30}, []float64{20, 2, 40}), spread{0.5, 0.5, 0.75, 3})
	want(t, "without pair, or by zero", paired([]float64{10, 1, 30}, []float64{20, 0}), spread{0.5, 0.5, 0.5, 1})
}

func TestInterleave(t *testing.T) {
	var order []string
	step := func(name string) func() error {
		return func() error {
			order = append(order, name)
			return nil
		}
	}
	if err := interleave(3, step("a"), step("b"), step("c")); err != nil {
		t.Fatal(err)
	}
	want(t, "order", order, []string{"a", "b", "c", "b", "c", "a", "c", "a", "b"})
}

func TestQuantileOfHistogram(t *testing.T) {
	h := newHistogram()
	for i := 1; i <= 1000; i++ {
		record(h, ms(i))
	}
	for percent, wanted := range map[float64]time.Duration{50: ms(500), 99: ms(990), 100: ms(1000)} {
		if got := quantile(h, percent); got < wanted || got > wanted+wanted/500 {
			t.Errorf("%v %%: got %v, want %v", percent, got, wanted)
		}
	}
	record(h, -1) // a clock that went back is no failure
	record(h, time.Hour)
	want(t, "recorded", h.TotalCount(), 1002)
}

// Each contender counts the same, so the many short waits of one do not hide the others.
func TestWaitsOfContenders(t *testing.T) {
	r := &contended{Contenders: 2, of: make([][]time.Duration, 2)}
	s := &slice{steady: window{from: 1, to: 101, took: time.Second, sent: 300}}
	add := func(contender int, wait time.Duration) {
		s.grants = append(s.grants, grant{contender, 0, 0, wait})
	}
	add(0, ms(500)) // before the window
	for range 99 {
		add(0, ms(1))
	}
	add(1, ms(900))
	add(0, time.Microsecond) // under way when time was up: shorter than the median
	add(1, ms(800))          // longer
	r.add(s)
	r.finish()
	want(t, "waits of 0", len(r.of[0]), 99)
	want(t, "waits of 1", r.of[1], []time.Duration{ms(900), ms(800)})
	want(t, "p50 of the grants", r.GrantP50.Round(ms(1)), ms(1))
	want(t, "p99 of the contenders", r.P99.Round(ms(10)), ms(900))
	want(t, "share of waits of 1 ms", r.waits.CumulativeDistribution()[0].Quantile < 51, true)
	want(t, "rate", r.Rate.Median, 100)
	want(t, "commands", r.Commands, 3)
	want(t, "jain", r.Jain.Median < 0.52, true)
}

func TestOvertaken(t *testing.T) {
	queue := []string{"a", "b", "c", "d"}
	want(t, "in order", overtaken(queue, []string{"a", "b", "c", "d"}), 0)
	want(t, "one lost its place", overtaken(queue, []string{"b", "c", "d", "a"}), 1)
	want(t, "one went past all", overtaken(queue, []string{"d", "a", "b", "c"}), 3)
	want(t, "one was not served", overtaken(queue, []string{"a", "c", "d"}), 1)
	want(t, "one was served twice", overtaken(queue, []string{"a", "b", "b", "c", "d"}), 1)
}

func TestCommandFinder(t *testing.T) {
	stream := "*1\r\n$4\r\nping\r\n" +
		"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\n*1\r\n$4\r\nPING\r\n" + // an argument that looks like a command
		"*2\r\n$5\r\nBLPOP\r\n$0\r\n\r\n" +
		"*1\r\n$4\r\nquit\r\n"
	wanted := []string{"PING", "SET", "BLPOP", "QUIT"}
	for size := 1; size <= len(stream); size++ {
		var f commandFinder
		var got []string
		for piece := range slices.Chunk([]byte(stream), size) {
			f.find(piece, func(name []byte) { got = append(got, strings.ToUpper(string(name))) })
		}
		if !slices.Equal(got, wanted) {
			t.Fatalf("in pieces of %d: %v", size, got)
		}
	}
}
