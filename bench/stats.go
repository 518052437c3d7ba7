package main

import (
	"crypto/rand"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// grant is one lock that a contender got; times count from the start of its slice.
type grant struct {
	contender int
	called    time.Duration // when lock was called
	asked     time.Duration // when its first command was sent
	got       time.Duration // when it returned
}

// jain is Jain's index of fairness: 1 if all have the same, 1/n if one has everything, 0 if nobody
// has anything.
func jain(counts []int) float64 {
	var sum, squares float64
	for _, c := range counts {
		sum += float64(c)
		squares += float64(c) * float64(c)
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(counts)) * squares)
}

// largestBypass is the largest number of grants that went past one that had been asked for before
// them. grants are in the order in which they were given.
//
// The order of arrival at the server cannot be seen from outside. The order of the calls is another
// one: with many goroutines on few cores, one that has called may be run milliseconds later. So it
// counts when the command was sent; and as two that are sent at the same time may arrive the other
// way round, an overtaker only counts if it was sent more than slack later, the longest round trip
// seen in the slice.
func largestBypass(grants []grant, slack time.Duration) int {
	largest := 0
	for i, g := range grants {
		count := 0
		for j := i - 1; j >= 0 && grants[j].got > g.asked; j-- {
			if grants[j].asked > g.asked+slack {
				count++
			}
		}
		largest = max(largest, count)
	}
	return largest
}

// spread is the median of some numbers and what lies around it.
type spread struct {
	Median, Min, Max float64
	N                int
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{(sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1], n}
}

// paired is the spread of a[i] / b[i]: slices that ran one after the other met the same noise.
func paired(a, b []float64) spread {
	ratios := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	return spreadOf(ratios)
}

func newToken() string { return rand.Text()[:22] }

// newHistogram takes nanoseconds, up to ten minutes, with three digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(10*time.Minute), 3)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(int64(d), 1), h.HighestTrackableValue()))
}

func quantile(h *hdrhistogram.Histogram, percent float64) time.Duration {
	return time.Duration(h.ValueAtQuantile(percent))
}

// interleave runs each of the steps once a round: A B C, B C A, C A B, so that none always comes
// after the same other one.
func interleave(rounds int, steps ...func() error) error {
	for round := range rounds {
		for i := range steps {
			if err := steps[(round+i)%len(steps)](); err != nil {
				return err
			}
		}
	}
	return nil
}
