package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(jobVar); text != "" {
		exit(runChild(text)) // a child of a measure
	}
	if os.Getenv(contenderVar) != "" {
		exit(runContender(os.Args[1], os.Args[2], os.Stdin, os.Stdout)) // another one
	}
	os.Exit(m.Run())
}

// The whole run, with as little of everything as possible: no times are looked at, but that all
// is measured, shown and written.
func TestRun(t *testing.T) {
	if err := flag.Set("test.benchtime", "1x"); err != nil {
		t.Fatal(err)
	}
	p := plan{
		folder: t.TempDir(),
		rounds: 1, slice: 5 * time.Millisecond, farRounds: 1, farSlice: time.Millisecond,
		cells: []cell{
			{contenders: 2, rounds: 1, length: 5 * time.Millisecond},
			{contenders: 16, hold: time.Millisecond, rounds: 1, length: 5 * time.Millisecond},
			{contenders: 16, rounds: 1, more: 1, length: 5 * time.Millisecond},
		},
		crowd: 50, idlers: 20, idle: 10 * time.Millisecond, kills: 1, depths: []int{10, 50}, batches: 2,
		count: countPlan{locks: 50, depth: 3, rounds: 2, others: []string{baseline}},
		many: []manyCell{
			{names: 1, hold: time.Millisecond, rounds: 1, length: time.Second},
			{names: 20, hold: time.Millisecond, many: true, rounds: 1, length: time.Second},
			{names: 200, hold: 10 * time.Millisecond, many: true, rounds: 1, length: time.Second},
		},
		scale: scalePlan{names: []int{1, 20}, lockers: []int{1, 2}, length: 10 * time.Millisecond},
		renew: renewPlan{locks: 100, watch: 10 * time.Millisecond},
		// One that is there, and one that is not installed.
		processes: processPlan{
			folder: t.TempDir(), each: 2, holds: []time.Duration{time.Millisecond}, rounds: 1, length: 5 * time.Millisecond,
			idle: 10 * time.Millisecond, limit: 12 * time.Second, among: regexp.MustCompile(`^(redislock|redsync) \(Go\)|python-redis-lock`),
		},
	}
	var out bytes.Buffer
	if err := run(t.Context(), p, "", "the test", "", &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(p.folder, "results.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]int) // by the title of the table
	title := ""
	for line := range strings.Lines(string(text)) {
		if name, found := strings.CutPrefix(line, "### "); found {
			title = strings.TrimSpace(name)
		} else if strings.HasPrefix(line, "|") {
			rows[title]++
		}
	}
	const head = 2
	n := len(peers)
	expected := map[string]int{
		"Who is compared":                                head + n,
		"Who is compared, in processes":                  head + 3,
		"2 processes, hold 1ms":                          head + 2,
		"Until the next process holds, after a fault":    head + 2,
		"Hand-overs of many names":                       head + 4,
		"100 held locks, renewed by one process":         head + 6,
		"Hand-over with a round trip of 10 ms":           head + n, // a PING more, and no piped ring
		"Hand-over on loopback":                          head + n - 1,
		"2 contenders, hold 0s":                          head + n,
		"16 contenders, hold 1ms":                        head + n,
		"16 contenders, hold 0s":                         head + n,
		"A free lock: acquire and release":               head + 2*7,
		"Time of each function on the server, µs a call": head + 9,
		"Memory of Redis":                                head + 2,
		"Many contended names, 1 ms each way":            head + 5,
		"Idle waiters":                                   head + 1,
		"Until the next live waiter holds, after SIGKILL of a process with 20 waiters before it": head + 1,
		"50 goroutines waiting for one lock in one process":                                      head + 9,
		"Allocations of the client":                                                              head + 4,
		"Goals":                                                                                  head + len(goals),
	}
	if hasCallgrind() {
		expected["Instructions of the server, a call"] = head + len(countedCalls) + 5
	} else {
		t.Log("instructions are not counted: there is no valgrind")
	}
	want(t, "rows", rows, expected)

	var r report
	if text, err = os.ReadFile(filepath.Join(p.folder, "results.json")); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	for _, g := range r.Goals {
		counted := g.Measure == goalInstructions || g.Measure == goalCalls
		if g.OK == "not run" && (hasCallgrind() || !counted) {
			t.Errorf("not run: %s", g.Measure)
		}
	}
	for _, c := range r.Contended {
		if len(c.Rates) == 0 || c.Rate.Median <= 0 || c.Max <= 0 || c.Commands < 1.5 || c.Doubles > 0 {
			t.Errorf("%s, %d contenders, hold %v: %+v", c.Lock, c.Contenders, c.Hold, c)
		}
		// Three commands a cycle at the most and all in turn, but for what a window of one round cuts off.
		if c.Lock == oursName && (c.Commands > 3.6 || c.Jain.Min < 0.7) {
			t.Errorf("not in turn, or with more than three commands: %+v", c)
		}
	}
	for _, n := range r.Instructions {
		if sum := n.Empty + n.Commands + n.Logic; n.Library != "" && (n.Empty <= 0 || n.Commands <= 0 || n.Logic <= 0 || math.Abs(n.Total-sum) > 1) || n.Total <= 0 {
			t.Errorf("the instructions are not the sum of parts: %+v", n)
		}
	}
	for _, m := range r.Many {
		if m.Rate.Median <= 0 || m.P50 <= 0 || m.Failed > 0 || m.RoundTrip < 2*manyDelay {
			t.Errorf("%d names, %d Lockers: %+v", m.Names, m.Lockers, m)
		}
	}
	for _, c := range r.Contenders {
		want(t, "missing: "+c.Lock, c.Missing != "", c.Language == inPython)
	}
	for _, f := range r.Processes {
		if f.Failed != "" || len(f.Rates) == 0 || f.Doubles > 0 || f.Lock == oursName && (f.Commands < 2 || f.Commands > 3.6) {
			t.Errorf("%s in processes: %+v", f.Lock, f)
		}
	}
	for _, f := range r.Faults {
		for i, took := range f.Took {
			if f.Lock == oursName && (f.Failed[i] != "" || took <= 0 || took >= p.processes.limit) {
				t.Errorf("%s: %v, %s", faultKinds[i].name, took, f.Failed[i])
			}
		}
	}
	for _, s := range r.Scale {
		if s.Rate <= 0 || s.Failed > 0 || s.Not != "" {
			t.Errorf("%d names: %+v", s.Names, s)
		}
	}
	want(t, "renewed locks that were lost", r.Renewed.Lost, 0)
	for _, f := range r.Free {
		if f.Lock == oursName {
			want(t, "commands of a free cycle", f.Commands, 2)
		}
	}
	want(t, "waiters overtaken", r.Crowd.Overtaken, 0)
	want(t, "leases lost", r.Crowd.Lost, 0)
	want(t, "blocked connections", r.Crowd.Blocked, 1)
	for _, name := range []string{"waits.svg", "rate.svg", "handover.svg", "cost.svg"} {
		if info, err := os.Stat(filepath.Join(p.folder, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What the bare functions run is what lock.lua runs, command by command.
func TestBare(t *testing.T) {
	ctx := t.Context()
	s, err := redistest.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Stop() }()
	client, err := newTarget(fmt.Sprint("redis://", s.Addr())).rueidis()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := errors.Join(redislock.Load(ctx, client), loadBare(client)); err != nil {
		t.Fatal(err)
	}
	l := &rawLock{name: "x", holder: "h"}
	do := func(calls ...rueidis.Completed) {
		t.Helper()
		if err := send(ctx, client, calls); err != nil {
			t.Fatal(err)
		}
	}
	// ran returns how often each command was run by these calls.
	ran := func(calls ...rueidis.Completed) map[string]string {
		t.Helper()
		do(client.B().ConfigResetstat().Build())
		do(calls...)
		stats, err := client.Do(ctx, client.B().Info().Section("commandstats").Build()).ToString()
		if err != nil {
			t.Fatal(err)
		}
		counts := make(map[string]string)
		for _, m := range regexp.MustCompile(`(?m)^cmdstat_(\w+)[^:]*:calls=(\d+)`).FindAllStringSubmatch(stats, -1) {
			counts[m[1]] = m[2]
		}
		// Those of new connections; PTTL follows a PEXPIRE that another call in the same millisecond has made superfluous.
		for _, own := range []string{"config", "hello", "client", "pttl"} {
			delete(counts, own)
		}
		return counts
	}
	bare := func(function string, n int, args ...string) rueidis.Completed {
		keys := append(l.keys(), l.signal())[:n]
		return client.B().Fcall().Function(function).Numkeys(int64(n)).Key(keys...).Arg(args...).Build()
	}
	do(l.acquire(client, l.holder, longWait), l.call(client, "lock_release", l.holder)) // from now on there is a state
	acquire, release := ran(l.acquire(client, l.holder, longWait)), ran(l.call(client, "lock_release", l.holder))
	want(t, "a free acquire", ran(bare("bare_acquire", 4, "t", "1", "1")), acquire)
	want(t, "a release that nobody waits for", ran(bare("bare_release", 3, "t")), release)
	do(append([]rueidis.Completed{l.acquire(client, l.holder, longWait)}, l.join(client, 3)...)...)
	enqueue, handOver := ran(l.acquire(client, "one more", "30000")), ran(l.call(client, "lock_release", l.holder))
	want(t, "queueing", ran(bare("bare_enqueue", 4, "t", "1", "1")), enqueue)
	want(t, "a hand-over", ran(bare("bare_hand_over", 3, "t", "list")), handOver)
}

// A library is the same as itself, by any way to name it; one that does more takes more instructions.
func TestInstructions(t *testing.T) {
	if !hasCallgrind() {
		t.Fatal("there is no valgrind: apt-get install valgrind, or make test")
	}
	const more = "local function release(keys, args)\n"
	slow := filepath.Join(t.TempDir(), "slow.lua")
	source := strings.Replace(redislock.Source(), more, more+"  redis.call('PTTL', keys[1])\n", 1)
	if err := os.WriteFile(slow, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bench{plan: plan{count: countPlan{locks: 50, depth: 3, rounds: 2, others: []string{"../lua/lock.lua", slow}}},
		report: newReport("the test"), out: io.Discard, log: io.Discard}
	if err := instructions(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{callFree, callRelease, callEnqueue, callHandOver} {
		ours, same, slower := countOf(b.report.Instructions, oursName, call), countOf(b.report.Instructions, "../lua/lock.lua", call),
			countOf(b.report.Instructions, slow, call)
		if ratio := same.Total / ours.Total; ratio < 0.97 || ratio > 1.03 {
			t.Errorf("%s: the same library takes %f times the instructions of itself", call, ratio)
		}
		releases := call == callRelease || call == callHandOver
		if added := slower.Calls - ours.Calls; added == 1 != releases || releases && slower.Total < ours.Total+1000 {
			t.Errorf("%s: with a command more in a release: %+v instead of %+v", call, slower, ours)
		}
	}
}

func TestLuaArgs(t *testing.T) {
	values := map[string]string{"lock:{a}": "keys[1]", "tok": "args[1]"}
	for command, lua := range map[string]string{
		`"GET" "lock:{a}"`:                          `"GET", keys[1]`,
		`"HMGET" "s" "fence" "@tok"`:                `"HMGET", "s", "fence", "@" .. args[1]`,
		`"RPUSH" "l" "17 18 tok" "a\"b" "tok toks"`: `"RPUSH", "l", "17 18 " .. args[1], "a\"b", args[1] .. " " .. args[1] .. "s"`,
	} {
		want(t, command, luaArgs(command, values), lua)
	}
}

func TestBenchLua(t *testing.T) {
	if _, err := readLibrary("no-such-revision"); err == nil || !strings.Contains(err.Error(), "BENCH_LUA=no-such-revision") {
		t.Error(err)
	}
}

func TestRunOfNothing(t *testing.T) {
	err := run(t.Context(), plan{folder: t.TempDir()}, "no such measure", "the test", "", io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "no measure matches") {
		t.Fatal(err)
	}
}

// For benchstat: go test -run '^$' -bench . -count 10 . | benchstat -
func BenchmarkAcquireRelease(b *testing.B) {
	s, err := redistest.Start()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Stop() }()
	t := newTarget(fmt.Sprint("redis://", s.Addr()))
	for _, bench := range []struct {
		name string
		run  func(*testing.B, target)
	}{{"free", benchmarkLibrary}, {"free-commands-only", benchmarkCommands}, {"contended", benchmarkHandOver}} {
		b.Run(bench.name, func(b *testing.B) { bench.run(b, t) })
	}
}
