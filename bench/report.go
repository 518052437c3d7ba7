package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// report is what a run found. It is written as results.json and, for people, as results.md.
type report struct {
	Machine      machine        `json:"machine"`
	HandoverFar  []*handedOver  `json:"handover_10ms,omitempty"`
	HandoverNear []*handedOver  `json:"handover_loopback,omitempty"`
	Contended    []*contended   `json:"contended,omitempty"`
	Contenders   []contender    `json:"contenders,omitempty"`
	Processes    []*fought      `json:"processes,omitempty"`
	Faults       []*faulted     `json:"faults,omitempty"`
	Free         []*uncontended `json:"free,omitempty"`
	Crowd        *crowded       `json:"crowd,omitempty"`
	Idle         *idled         `json:"idle,omitempty"`
	FCALL        []*fcallCost   `json:"fcall,omitempty"`
	Memory       *memories      `json:"redis_memory,omitempty"`
	Instructions []*instructed  `json:"instructions,omitempty"`
	Many         []*manyNames   `json:"many_names,omitempty"`
	Scale        []*scaled      `json:"scale,omitempty"`
	Renewed      *renewed       `json:"renewed,omitempty"`
	Kill         *killed        `json:"kill,omitempty"`
	Allocs       []allocated    `json:"allocations,omitempty"`
	Goals        []goal         `json:"goals"`

	tables []table
}

// machine is where and how a run was made.
type machine struct {
	Date    string            `json:"date"`
	Command string            `json:"command"`
	Commit  string            `json:"commit"`
	CPU     string            `json:"cpu"`
	Cores   int               `json:"cores"`
	OS      string            `json:"os"`
	Load    string            `json:"load_average_before"`
	Others  string            `json:"cpu_used_by_others"`
	Go      string            `json:"go"`
	Redis   string            `json:"redis"`
	Modules map[string]string `json:"modules"`
	Took    string            `json:"took"`
}

func thisMachine(command string) machine {
	m := machine{
		Date:    time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		Command: command,
		CPU:     "unknown",
		Cores:   runtime.NumCPU(),
		OS:      runtime.GOOS + "/" + runtime.GOARCH,
		Go:      runtime.Version(),
		Modules: make(map[string]string),
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(text), "model name")
		line, _, _ := strings.Cut(rest, "\n")
		m.CPU = strings.TrimLeft(line, " \t:")
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(text))[:3], " ")
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			switch dep.Path {
			case "github.com/redis/rueidis", "github.com/redis/go-redis/v9",
				"github.com/go-redsync/redsync/v4", "github.com/bsm/redislock":
				m.Modules[dep.Path] = dep.Version
			}
		}
	}
	return m
}

func (m machine) print(w io.Writer) {
	fmt.Fprintf(w, "%s, `%s`, commit %s, took %s\n\n", m.Date, m.Command, m.Commit, m.Took)
	fmt.Fprintf(w, "%s, %d cores, %s, load before: %s, CPU used by others meanwhile: %s; %s, %s", m.CPU, m.Cores, m.OS, m.Load, m.Others, m.Redis, m.Go)
	for _, path := range slices.Sorted(func(yield func(string) bool) {
		for path := range m.Modules {
			if !yield(path) {
				return
			}
		}
	}) {
		fmt.Fprintf(w, ", %s %s", strings.TrimPrefix(path, "github.com/"), m.Modules[path])
	}
	fmt.Fprintln(w)
}

// table is printed as Markdown.
type table struct {
	title, note string
	columns     []string
	rows        [][]string
}

func (t *table) row(cells ...any) {
	row := make([]string, 0, len(cells))
	for _, cell := range cells {
		row = append(row, show(cell))
	}
	t.rows = append(t.rows, row)
}

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n### %s\n\n", t.title)
	if t.note != "" {
		fmt.Fprintf(w, "%s\n\n", t.note)
	}
	width := make([]int, len(t.columns))
	for _, row := range append([][]string{t.columns}, t.rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	line := func(cells []string) {
		for i, cell := range cells {
			fmt.Fprintf(w, "| %-*s ", width[i], cell)
		}
		fmt.Fprintln(w, "|")
	}
	line(t.columns)
	rule := make([]string, len(t.columns))
	for i := range rule {
		rule[i] = strings.Repeat("-", width[i])
	}
	line(rule)
	for _, row := range t.rows {
		line(row)
	}
}

// show has three digits of a number and a fitting unit of a time.
func show(v any) string {
	switch v := v.(type) {
	case time.Duration:
		switch {
		case v < time.Millisecond:
			return digits(float64(v)/1e3) + " µs"
		case v < time.Second:
			return digits(float64(v)/1e6) + " ms"
		}
		return digits(v.Seconds()) + " s"
	case float64:
		return digits(v)
	case spread:
		if v.N == 0 {
			return "-"
		}
		return fmt.Sprintf("%s (%s .. %s)", digits(v.Median), digits(v.Min), digits(v.Max))
	}
	return fmt.Sprint(v)
}

func digits(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || a == 0:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// goal is a line of the last table.
type goal struct {
	Measure string `json:"measure"`
	Goal    string `json:"goal"`
	Reached string `json:"reached"`
	OK      string `json:"ok"` // "ok", "NOT REACHED", or "not run"
}

// The goals, in the order of the last table.
const (
	goalHandover     = "hand-over with 10 ms round trip, p50 / p99"
	goalRate         = "rate with 16 contenders, no hold, against the bare ring"
	goalFair         = "Jain index; largest bypass"
	goalWaits        = "wait p99 / p50, 16 and 64 contenders, 1 ms hold"
	goalPeers        = "wait p99 of the best peer against ours, 16 and 64 contenders, 1 ms hold"
	goalProcesses    = "wait p99 of the best peer in the same language against ours, in processes with the longest hold"
	goalCommands     = "client commands per contended cycle, any number of contenders"
	goalFreeTrip     = "free acquire + release: round trips"
	goalFreeRate     = "free acquire + release: rate against redsync and bsm/redislock"
	goalCrowd        = "many goroutines waiting in one process"
	goalIdle         = "1,000 idle waiters in one process"
	goalFCALL        = "FCALL time with the longest queue against the shortest"
	goalInstructions = "instructions of the server against " + baseline + ": free cycle; contended cycle"
	goalMany         = "one Locker, 20 and 200 names, 1 ms each way: rate against many Lockers; median wait against ideal"
	goalCalls        = "redis.call's: free acquire, enqueue, hand-over, plain release"
	goalMemory       = "Redis memory: held lock; waiter"
	goalKill         = "next live waiter after SIGKILL of a process with waiters"
)

var goals = []goal{
	{Measure: goalHandover, Goal: "<= 1.05 / 1.2 round trips"},
	{Measure: goalRate, Goal: ">= 0.80"},
	{Measure: goalFair, Goal: ">= 0.999; 0"},
	{Measure: goalWaits, Goal: "<= 1.3"},
	{Measure: goalPeers, Goal: ">= 3"},
	{Measure: goalProcesses, Goal: ">= 1"},
	{Measure: goalCommands, Goal: "<= 3.05"},
	{Measure: goalFreeTrip, Goal: "2 (<= 2.1 measured)"},
	{Measure: goalFreeRate, Goal: ">= 0.95; >= 1.0"},
	{Measure: goalCrowd, Goal: "100,000: <= 2 blocked connections, <= 5 KB each, in order, >= 5,000 a second"},
	{Measure: goalIdle, Goal: "<= 50 commands a second"},
	{Measure: goalFCALL, Goal: "<= 2 with 100,000 against 10"},
	{Measure: goalMany, Goal: ">= 0.8; <= 1.3"},
	{Measure: goalInstructions, Goal: "<= 0.75; <= 0.80"},
	{Measure: goalCalls, Goal: "<= 7, 9, 11, 4"},
	{Measure: goalMemory, Goal: "<= 400 bytes; <= 300 bytes"},
	{Measure: goalKill, Goal: "<= 5 s"},
}

// reach fills in a goal.
func (r *report) reach(measure string, ok bool, format string, args ...any) {
	i := slices.IndexFunc(r.Goals, func(g goal) bool { return g.Measure == measure })
	r.Goals[i].Reached, r.Goals[i].OK = fmt.Sprintf(format, args...), "NOT REACHED"
	if ok {
		r.Goals[i].OK = "ok"
	}
}

func newReport(command string) *report {
	r := &report{Machine: thisMachine(command), Goals: slices.Clone(goals)}
	for i := range r.Goals {
		r.Goals[i].Reached, r.Goals[i].OK = "-", "not run"
	}
	return r
}

func (r *report) goalTable() *table {
	t := &table{title: "Goals", columns: []string{"measure", "goal", "reached", ""}}
	for _, g := range r.Goals {
		t.row(g.Measure, g.Goal, g.Reached, g.OK)
	}
	return t
}

// write leaves results.json and results.md in a folder.
func (r *report) write(folder string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "results.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	var md strings.Builder
	fmt.Fprint(&md, "# Results\n\n")
	r.Machine.print(&md)
	for _, t := range r.tables {
		t.print(&md)
	}
	r.goalTable().print(&md)
	return os.WriteFile(filepath.Join(folder, "results.md"), []byte(md.String()), 0o644)
}

// table shows a table at once, and keeps it for the report.
func (b *bench) table(t *table) {
	b.report.tables = append(b.report.tables, *t)
	t.print(b.out)
}

func (b *bench) peerTable() {
	t := &table{
		title:   "Who is compared",
		note:    "Each contender has a client of its own, as a process would, with connections of its own.",
		columns: []string{"lock", "how"},
	}
	for _, p := range peers {
		t.row(p.name, p.note)
	}
	b.table(t)
}

func (b *bench) handoverTables(far, near []*handedOver) {
	t := &table{
		title: "Hand-over with a round trip of 10 ms",
		note: "From the call of release to the next holder's return, in round trips: the median of a bare PING through the same proxy in the same slices. " +
			"In brackets: the least and the most of the slices.",
		columns: []string{"lock", "p50 in round trips", "p99 in round trips", "p50", "p99", "max", "samples"},
	}
	for _, r := range far {
		t.row(r.Lock, r.Ratio, r.P99In, r.P50, r.P99, r.Max, r.Samples)
		if r.Lock == oursName {
			b.report.reach(goalHandover, r.Ratio.Median <= 1.05 && r.P99In <= 1.2, "%s / %s", digits(r.Ratio.Median), digits(r.P99In))
		}
	}
	b.table(t)
	t = &table{
		title:   "Hand-over on loopback",
		note:    "Two clients; the reference is the bare ring of two, which does RPUSH and BLPOP.",
		columns: []string{"lock", "p50 against the ring", "p50", "p99", "max", "samples"},
	}
	for _, r := range near {
		t.row(r.Lock, r.Ratio, r.P50, r.P99, r.Max, r.Samples)
	}
	b.table(t)
}

func (b *bench) contendedTable(c cell, results []*contended) {
	t := &table{
		title: fmt.Sprintf("%d contenders, hold %v", c.contenders, c.hold),
		note:  fmt.Sprintf("%d slices of %v each.", c.rounds, c.length),
		columns: []string{"lock", "grants a second", "against the ring", "wait p50", "p99", "max", "Jain index", "largest bypass",
			"commands a cycle", "server CPU a cycle"},
	}
	ring := find(results, ringName)
	for _, r := range results {
		against := "-"
		if ring != nil {
			against = show(paired(r.Rates, ring.Rates))
		}
		name := r.Lock
		if r.Doubles > 0 {
			name += fmt.Sprintf(" (HELD TWICE: %d)", r.Doubles)
		}
		bypass := strconv.Itoa(r.Bypass)
		if isRing(r.Lock) {
			bypass = "-" // nobody queues: the order is that of the ring
		}
		t.row(name, r.Rate.Median, against, r.P50, r.P99, r.Max, fmt.Sprintf("%.4f", r.Jain.Median), bypass, r.Commands, r.ServerCPU)
	}
	b.table(t)
}

func find(results []*contended, name string) *contended {
	for _, r := range results {
		if r.Lock == name {
			return r
		}
	}
	return nil
}

// of is one cell of one lock, nil if it was not run.
func of(all []*contended, name string, contenders int, hold time.Duration) *contended {
	for _, r := range all {
		if r.Lock == name && r.Contenders == contenders && r.Hold == hold {
			return r
		}
	}
	return nil
}

func (b *bench) contendedGoals(all []*contended) {
	if us, ring := of(all, oursName, 16, 0), of(all, ringName, 16, 0); us != nil && ring != nil {
		ratio := paired(us.Rates, ring.Rates)
		limit := func(name string) string { return show(paired(of(all, name, 16, 0).Rates, ring.Rates)) }
		b.report.reach(goalRate, ratio.Median >= 0.8, "%s; the ring of three itself %s, the ring of twenty %s",
			show(ratio), limit(threeRingName), limit(twentyRingName))
	}
	worst, bypass, doubles := 1.0, 0, 0
	var most *contended
	for _, r := range all {
		if r.Lock != oursName {
			continue
		}
		worst, bypass, doubles = min(worst, r.Jain.Median), max(bypass, r.Bypass), doubles+r.Doubles
		if most == nil || r.Commands > most.Commands {
			most = r
		}
	}
	b.report.reach(goalFair, worst >= 0.999 && bypass == 0 && doubles == 0, "%.4f; %d (the worst of all cells)", worst, bypass)
	if most != nil {
		b.report.reach(goalCommands, most.Commands <= 3.05, "%s (the most: %d contenders, hold %v, where waits take %s: so %s to check in, %s to block anew)",
			digits(most.Commands), most.Contenders, most.Hold, show(most.P50), digits(most.Commands-most.Blocking-2), digits(most.Blocking-1))
	}

	flat, apart := true, true
	var flats, aparts []string
	for _, n := range []int{16, 64} {
		us := of(all, oursName, n, time.Millisecond)
		if us == nil {
			continue
		}
		ratio := float64(us.P99) / float64(us.P50)
		flat = flat && ratio <= 1.3
		flats = append(flats, fmt.Sprintf("%d: %s", n, digits(ratio)))
		var best *contended
		for _, p := range peers {
			if r := of(all, p.name, n, time.Millisecond); r != nil && !p.ring && p.name != oursName && (best == nil || r.P99 < best.P99) {
				best = r
			}
		}
		times := float64(best.P99) / float64(us.P99)
		apart = apart && times >= 3
		aparts = append(aparts, fmt.Sprintf("%d: %s (%s)", n, digits(times), best.Lock))
	}
	if len(flats) > 0 {
		b.report.reach(goalWaits, flat, "%s", strings.Join(flats, ", "))
		b.report.reach(goalPeers, apart, "%s", strings.Join(aparts, ", "))
	}
}

func (b *bench) freeTable(all []*uncontended) {
	t := &table{
		title: "A free lock: acquire and release",
		note:  "Goroutines of one client, each with a name of its own. The ratio is ours to theirs, of paired slices.",
		columns: []string{"lock", "goroutines", "cycles a second", "ours against it", "commands a cycle",
			"round trips (of 10 ms)"},
	}
	rates, limits, enough := []string{}, []string{}, true
	trips := 0.0
	for _, r := range all {
		i := slices.IndexFunc(all, func(us *uncontended) bool { return us.Lock == oursName && us.Goroutines == r.Goroutines })
		ratio := paired(all[i].Rates, r.Rates)
		shown := "-"
		if r.RoundTrips > 0 {
			shown = digits(r.RoundTrips)
		}
		t.row(r.Lock, r.Goroutines, r.Rate, ratio, r.Commands, shown)
		switch r.Lock {
		case oursName:
			trips = max(trips, r.RoundTrips)
		case "redsync", "bsm":
			least := map[string]float64{"redsync": 0.95, "bsm": 1.0}[r.Lock]
			enough = enough && ratio.Median >= least
			rates = append(rates, fmt.Sprintf("%s, %d: %s", r.Lock, r.Goroutines, digits(ratio.Median)))
		}
	}
	for _, r := range all {
		if r.Lock != bareName {
			continue
		}
		for _, peer := range all {
			if peer.Goroutines == r.Goroutines && (peer.Lock == "redsync" || peer.Lock == "bsm") {
				limits = append(limits, fmt.Sprintf("%s, %d: %s", peer.Lock, r.Goroutines, digits(paired(r.Rates, peer.Rates).Median)))
			}
		}
	}
	b.table(t)
	b.report.reach(goalFreeTrip, trips <= 2.1, "%s", digits(trips))
	b.report.reach(goalFreeRate, enough, "%s (the bare functions: %s)", strings.Join(rates, "; "), strings.Join(limits, "; "))
}

func (b *bench) crowdTable(c *crowded) {
	t := &table{
		title:   fmt.Sprintf("%d goroutines waiting for one lock in one process", c.Waiters),
		note:    "The memory of that process less what it had before: heap and stacks in use after a garbage collection, and what the kernel counts as resident.",
		columns: []string{"measure", "value"},
	}
	t.row("until all had queued", c.Queued)
	t.row("connections; of these blocked", fmt.Sprintf("%d; %d", c.Connections, c.Blocked))
	t.row("bytes in use each", c.InUse)
	t.row("bytes resident each", c.Resident)
	t.row("bytes resident each, at the most", c.Peak)
	t.row("until the last was served", c.Took)
	t.row("served a second", c.rate())
	t.row("overtaken by others", c.Overtaken)
	t.row("leases that ran out before the release", c.Lost)
	b.table(t)
	b.report.reach(goalCrowd, c.Waiters >= 100_000 && c.Blocked <= 2 && c.InUse <= 5<<10 && c.Overtaken == 0 && c.Lost == 0 && c.rate() >= 5000,
		"%d: %d blocked, %.0f bytes (resident: %.0f), %d overtaken, %d lost, %.0f a second",
		c.Waiters, c.Blocked, c.InUse, c.Resident, c.Overtaken, c.Lost, c.rate())
}

func (b *bench) idleTable(r *idled) {
	t := &table{title: "Idle waiters", columns: []string{"waiters in one process", "watched for", "commands a second"}}
	t.row(r.Waiters, r.Over, r.Commands)
	b.table(t)
	b.report.reach(goalIdle, r.Commands <= 50, "%s (over %v)", digits(r.Commands), r.Over)
}

func (b *bench) killTable(r *killed) {
	t := &table{
		title:   fmt.Sprintf("Until the next live waiter holds, after SIGKILL of a process with %d waiters before it", r.Waiters),
		columns: []string{"run", "time"},
	}
	worst := time.Duration(0)
	for i, took := range r.Took {
		t.row(i+1, took)
		worst = max(worst, took)
	}
	b.table(t)
	b.report.reach(goalKill, worst <= 5*time.Second, "%s (the longest of %d)", show(worst), len(r.Took))
}

func (b *bench) fcallTable(costs []*fcallCost) {
	t := &table{
		title: "Time of each function on the server, µs a call",
		note: fmt.Sprintf("By commandstats (whole µs, rounded down, of each call), medians of batches of %d calls or more, on %d locks or, with the longest queue, on one. "+
			"The ratio is that of paired batches to those with the shortest queue.", locksOf*batch, locksOf),
		columns: []string{"call", "nobody waits"},
	}
	for _, d := range b.plan.depths {
		t.columns = append(t.columns, fmt.Sprintf("%d queued", d))
	}
	t.columns = append(t.columns, "longest against shortest")
	worst, worstCall := 0.0, ""
	var calls []string
	for _, c := range costs {
		if !slices.Contains(calls, c.Call) {
			calls = append(calls, c.Call)
		}
	}
	for _, call := range calls {
		cells := []any{call}
		last := "-"
		for _, d := range append([]int{0}, b.plan.depths...) {
			i := slices.IndexFunc(costs, func(c *fcallCost) bool { return c.Call == call && c.Depth == d })
			if i < 0 {
				cells = append(cells, "-")
				continue
			}
			c := costs[i]
			cells = append(cells, c.Usec.Median)
			if c.Ratio == nil || d != b.plan.depths[len(b.plan.depths)-1] {
				continue
			}
			last = digits(c.Ratio.Median)
			if call != inspectCall && c.Ratio.Median > worst {
				worst, worstCall = c.Ratio.Median, call
			}
		}
		t.row(append(cells, last)...)
	}
	b.table(t)
	b.report.reach(goalFCALL, worst <= 2, "%s (%s; %d against %d; without lock_inspect)", digits(worst), worstCall,
		b.plan.depths[len(b.plan.depths)-1], b.plan.depths[0])
}

func (b *bench) memoryTable(m *memories) {
	t := &table{title: "Memory of Redis", columns: []string{"what", "bytes each", "of how many"}}
	t.row("held lock", m.Lock, m.Locks)
	t.row("waiter", m.Waiter, m.Waiters)
	b.table(t)
	b.report.reach(goalMemory, m.Lock <= 400 && m.Waiter <= 300, "%.0f; %.0f", m.Lock, m.Waiter)
}

func (b *bench) allocTable() {
	t := &table{title: "Allocations of the client", columns: []string{"operation", "allocations", "bytes"}}
	for _, a := range b.report.Allocs {
		t.row(a.What, a.Allocs, a.Bytes)
	}
	b.table(t)
}
