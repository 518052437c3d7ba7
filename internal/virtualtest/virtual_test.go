package virtualtest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const (
	length  = 20 * time.Minute // of a run
	patient = 5 * time.Minute  // real time that a run may take
	hasty   = 20 * time.Second // that of a mutant, which may hang
)

// once is one run. It returns what a judge found.
func once(t *testing.T, seed uint64, steps *atomic.Int64) (failed string) {
	t.Helper()
	var w *world
	limit := patient
	if os.Getenv("VIRTUAL_STOP") != "" {
		limit = hasty
	}
	hangs := time.AfterFunc(limit, func() { panic(fmt.Sprintf("seed %d: the bubble hangs", seed)) })
	defer hangs.Stop()
	synctest.Test(t, func(*testing.T) {
		w = newWorld(seed, steps)
		w.run(length)
	})
	return w.failed
}

// TestClients has the clients live through many worlds. The environment: VIRTUAL_SEED=7 or 7-20, and
// VIRTUAL_STOP=1 to end at the first failure.
func TestClients(t *testing.T) {
	first, last := seeds(t)
	var steps atomic.Int64
	t.Run("seed", func(t *testing.T) {
		for seed := first; seed <= last; seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				if failed := once(t, seed, &steps); failed != "" {
					t.Error(failed)
				}
			})
		}
	})
	t.Logf("%d steps", steps.Load())
	if os.Getenv("VIRTUAL_SEED") == "" && !isShort() && steps.Load() < 1_000_000 {
		t.Errorf("only %d steps", steps.Load())
	}
}

// seeds are the worlds of this run.
func seeds(t *testing.T) (first, last uint64) {
	t.Helper()
	text := os.Getenv("VIRTUAL_SEED")
	if text == "" {
		if isShort() {
			return 1, 4
		}
		return 1, 30
	}
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	first, err1 := strconv.ParseUint(from, 10, 64)
	last, err2 := strconv.ParseUint(to, 10, 64)
	if err1 != nil || err2 != nil {
		t.Fatalf("VIRTUAL_SEED=%s", text)
	}
	return first, last
}

func isShort() bool { return short || testing.Short() }
