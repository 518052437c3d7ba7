// Command chaos tests the lock under faults. OS processes take locks through proxies. A nemesis kills, stops,
// cuts and deletes by a seeded schedule. Six judges check the history. It exits with 1 if a judge finds a
// violation.
//
//	make chaos
//	CHAOS_MINUTES=10 CHAOS_TOPOLOGY=cluster CHAOS_SEED=42 make chaos
//	CHAOS_CONTROL=setnx make chaos      # a lock with a known fault (setnx, barging, late): must fail
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// settings of a run.
type settings struct {
	minutes  float64
	seed     uint64
	topology string
	control  string
	clients  int
	verbose  bool
}

const (
	goroutines    = 4 // of each client
	episodeLength = 2 * time.Minute
	// patience is how long the last waiters may take.
	patience = 15 * time.Second
	// shown is how many violations of an episode are printed with their timelines.
	shown = 3
)

func main() {
	if text := os.Getenv(jobVar); text != "" {
		if err := runWorker(text); err != nil {
			fmt.Fprintln(os.Stderr, "client:", err)
			os.Exit(1)
		}
		return
	}
	s := settings{minutes: 2, seed: uint64(rand.Uint32()), topology: "all", clients: 7}
	if err := s.fromEnv(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	flag.Float64Var(&s.minutes, "minutes", s.minutes, "how long, divided between the topologies (CHAOS_MINUTES)")
	flag.Uint64Var(&s.seed, "seed", s.seed, "of the schedule (CHAOS_SEED)")
	flag.StringVar(&s.topology, "topology", s.topology, "standalone, sentinel, cluster or all (CHAOS_TOPOLOGY)")
	flag.StringVar(&s.control, "control", s.control, strings.Join(controls, ", ")+": a lock that must fail (CHAOS_CONTROL)")
	flag.IntVar(&s.clients, "clients", s.clients, "client processes")
	flag.BoolVar(&s.verbose, "v", false, "show each fault")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	total, err := s.run(ctx, os.Stdout)
	stop()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(2)
	case len(total.violations) > 0:
		os.Exit(1)
	}
}

func (s *settings) fromEnv() (err error) {
	if text := os.Getenv("CHAOS_MINUTES"); text != "" {
		if s.minutes, err = strconv.ParseFloat(text, 64); err != nil || s.minutes <= 0 {
			return fmt.Errorf("CHAOS_MINUTES=%q is no number of minutes", text)
		}
	}
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		if s.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			return fmt.Errorf("CHAOS_SEED=%q is no number", text)
		}
	}
	if text := os.Getenv("CHAOS_TOPOLOGY"); text != "" {
		s.topology = text
	}
	s.control = os.Getenv("CHAOS_CONTROL")
	return nil
}

// run runs all episodes and prints the results.
func (s *settings) run(ctx context.Context, w io.Writer) (*verdict, error) {
	topologies := []string{s.topology}
	switch {
	case s.control != "" && !contains(controls, s.control):
		return nil, fmt.Errorf("there is no control %q, but %s", s.control, strings.Join(controls, ", "))
	case s.control != "":
		topologies = []string{standaloneName}
	case s.topology == "all":
		topologies = []string{standaloneName, sentinelName, clusterName}
	}
	fmt.Fprintf(w, "seed %d (repeat it with CHAOS_SEED=%d), %g minutes, %s, %s", s.seed, s.seed, s.minutes, redistest.Version(), strings.Join(topologies, ", "))
	if s.control != "" {
		fmt.Fprintf(w, ", control %s: violations are expected", s.control)
	}
	fmt.Fprintln(w)

	total := newVerdict()
	began := time.Now()
	for _, name := range topologies {
		left := time.Duration(s.minutes * float64(time.Minute) / float64(len(topologies)))
		sum, took := newVerdict(), time.Duration(0)
		for n := uint64(0); left > 0 && ctx.Err() == nil; n++ {
			length := min(left, episodeLength)
			if rest := left - length; rest < 20*time.Second {
				length = left // no short rest
			}
			left -= length
			start := time.Now()
			v, err := s.episode(ctx, w, name, s.seed+n, length)
			if err != nil {
				return nil, fmt.Errorf("%s, seed %d: %w", name, s.seed+n, err)
			}
			took += time.Since(start)
			sum.merge(v)
		}
		sum.print(w, name, took)
		total.merge(sum)
	}
	if len(topologies) > 1 {
		total.print(w, "all", time.Since(began))
	}
	return total, nil
}

// episode runs one topology for this long, with a fresh server, and judges it.
func (s *settings) episode(ctx context.Context, w io.Writer, name string, seed uint64, length time.Duration) (*verdict, error) {
	topo, err := startTopology(name)
	if err != nil {
		return nil, err
	}
	defer topo.stop()
	h := newHistory()
	reg, err := newRegister(h)
	if err != nil {
		return nil, err
	}
	defer reg.close()

	watchCtx, stopWatching := context.WithCancel(context.Background())
	var watching watchers
	watching.watch(watchCtx, h, topo.data())
	defer func() { stopWatching(); watching.wg.Wait() }()
	if err := watching.ready(); err != nil {
		return nil, err
	}

	names := []string{"n0", "n1", "n2", "n3"}
	common := topo.client()
	common.Seed, common.Names, common.Goroutines = seed, names, goroutines
	common.Register, common.Control = reg.addr(), s.control
	probe, err := rueidis.NewClient(clientOption(common))
	if err != nil {
		return nil, err
	}
	defer probe.Close()
	f, err := newFleet(h, common, s.clients, topo.nodes())
	defer f.close()
	if err != nil {
		return nil, err
	}

	n := &nemesis{h: h, fleet: f, topo: topo, names: names, rng: rand.New(rand.NewPCG(seed, 1)), probe: probe}
	switch s.control {
	case controlSetNX:
		n.only = []string{stopClient} // no more is needed
	case controlBarging:
		n.only = []string{replaceLibrary} // nor any fault at all
	case controlLate:
		n.only = []string{deafLinks, blackHole}
	}
	// The last part is quiet: all waiters must be served.
	quiet := min(length/4, 5*time.Second)
	stormCtx, endStorm := context.WithTimeout(ctx, length-quiet)
	n.run(stormCtx)
	endStorm()
	select {
	case <-time.After(quiet):
	case <-ctx.Done():
	}
	late := f.finish(patience)
	h.mu.Lock()
	h.end = mono()
	h.mu.Unlock()
	f.close()
	stopWatching()
	watching.wg.Wait()

	v := judge(h)
	if late > 0 {
		v.fail(judgeWaiting, "", h.end-int64(time.Second), h.end, "%d client processes were not through %v after the last fault", late, quiet+patience)
	}
	if s.verbose {
		for _, x := range h.faults {
			fmt.Fprintf(w, "  %s  %s\n", h.clock(x.from), x.describe(h))
		}
	}
	for i, x := range v.violations {
		if i == shown {
			fmt.Fprintf(w, "\n... and %d more violations\n", len(v.violations)-shown)
			break
		}
		printViolation(w, h, x)
	}
	if len(v.violations) > 0 {
		fmt.Fprintf(w, "\nrepeat this episode: CHAOS_SEED=%d CHAOS_TOPOLOGY=%s CHAOS_MINUTES=%.2f make chaos\n", seed, name, length.Minutes())
	}
	return v, nil
}
