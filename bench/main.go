// Command bench measures the lock beside its peers and against what is physically possible, all in
// one run. It starts a redis-server of its own, or takes the one of REDIS_URL.
//
//	make bench
//	make bench-quick                             # less of everything, in under a minute
//	cd bench && BENCH_ONLY='handover|free' go run .
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// plan is how much of everything is measured.
type plan struct {
	folder    string
	rounds    int           // slices of each contender
	slice     time.Duration // the length of one
	farRounds int           // the same for hand-overs through the proxy
	farSlice  time.Duration
	cells     []cell
	crowd     int
	idlers    int
	idle      time.Duration
	kills     int
	depths    []int
	batches   int
	count     countPlan
	many      []manyCell
	processes processPlan
	scale     scalePlan
	renew     renewPlan
}

func fullPlan() plan {
	p := plan{
		rounds: 8, slice: 250 * time.Millisecond, farRounds: 5, farSlice: 750 * time.Millisecond,
		crowd: 100_000, idlers: 1000, idle: 50 * time.Second, kills: 3,
		depths: []int{10, 1000, 100_000}, batches: 30,
		count: countPlan{locks: 100, depth: 15, rounds: 4},
		many: []manyCell{
			{names: 1, hold: 5 * time.Millisecond, many: true, rounds: 3, length: 2 * time.Second},
			{names: 20, hold: 5 * time.Millisecond, many: true, rounds: 3, length: 2 * time.Second},
			{names: 200, hold: 100 * time.Millisecond, many: true, rounds: 3, length: 2 * time.Second},
			{names: 10_000, hold: 5 * time.Second, rounds: 1, length: 15 * time.Second},
		},
		scale: scalePlan{names: []int{1, 100, 10_000}, lockers: []int{1, 16}, cluster: true, length: 3 * time.Second},
		renew: renewPlan{locks: 100_000, watch: 65 * time.Second},
		processes: processPlan{
			folder: installed, each: 8, holds: []time.Duration{0, 5 * time.Millisecond}, rounds: 3, length: 1200 * time.Millisecond,
			idle: 6 * time.Second, limit: 15 * time.Second,
		},
	}
	for _, hold := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
		for _, contenders := range []int{2, 16, 64, 256} {
			c := cell{contenders: contenders, hold: hold, rounds: 3, length: 400 * time.Millisecond}
			// Three whole rounds at least, where a cycle takes what a sleep does.
			round := time.Duration(contenders) * (hold + hold/10)
			c.length = max(c.length, 3*round)
			switch {
			case contenders == 16 && hold == 0:
				c.more = 9
			case round > time.Second:
				c.rounds, c.length = 1, 3*round/2 // the first round, and one that counts
			case contenders == 256 || hold == 10*time.Millisecond:
				c.rounds, c.more = 1, 2 // the pollers take long
			}
			p.cells = append(p.cells, c)
		}
	}
	return p
}

func quickPlan() plan {
	return plan{
		rounds: 2, slice: 60 * time.Millisecond, farRounds: 1, farSlice: 150 * time.Millisecond,
		cells: []cell{
			{contenders: 16, hold: 0, rounds: 1, more: 5, length: 120 * time.Millisecond},
			{contenders: 16, hold: time.Millisecond, rounds: 1, length: 100 * time.Millisecond},
			{contenders: 64, hold: time.Millisecond, rounds: 1, length: 200 * time.Millisecond},
		},
		crowd: 5000, idlers: 1000, idle: 12 * time.Second, kills: 1,
		depths: []int{10, 1000, 10_000}, batches: 8,
		count: countPlan{locks: 50, depth: 15, rounds: 2},
		many: []manyCell{
			{names: 20, hold: 5 * time.Millisecond, many: true, rounds: 1, length: time.Second},
			{names: 200, hold: 100 * time.Millisecond, many: true, rounds: 1, length: time.Second},
		},
		scale: scalePlan{names: []int{1, 100}, lockers: []int{1, 16}, cluster: true, length: time.Second},
		renew: renewPlan{locks: 10_000, watch: 21 * time.Second},
		processes: processPlan{
			folder: installed, each: 4, holds: []time.Duration{time.Millisecond}, rounds: 1, length: time.Second,
			idle: 3 * time.Second, limit: 12 * time.Second,
		},
	}
}

// measure is one topic. Each adds its tables, goals and plots to the report.
type measure struct {
	name string
	run  func(context.Context, *bench) error
}

var measures = []measure{
	{"handover", handover},
	{"contend", contend},
	{"processes", processes},
	{"faults", faults},
	{"free", freeLocks},
	{"fcall", fcalls},
	{"instructions", instructions},
	{"many", many},
	{"scale", scale},
	{"renew", renew},
	{"memory", redisMemory},
	{"idle", idle},
	{"kill", kill},
	{"crowd", crowd},
	{"allocs", allocs},
}

// bench is one run.
type bench struct {
	plan   plan
	target target
	admin  rueidis.Client // asks the server
	report *report
	out    io.Writer // tables
	log    io.Writer // what goes on
	serial int
	began  time.Time

	cpuBefore cpuTimes
}

func main() {
	if text := os.Getenv(jobVar); text != "" {
		exit(runChild(text))
	}
	if os.Getenv(contenderVar) != "" {
		exit(runContender(os.Args[1], os.Args[2], os.Stdin, os.Stdout))
	}
	quick := flag.Bool("quick", os.Getenv("BENCH_QUICK") != "", "less of everything (BENCH_QUICK=1)")
	only := flag.String("only", os.Getenv("BENCH_ONLY"), "regular expression of the measures to run (BENCH_ONLY): "+measureNames())
	folder := flag.String("out", "", "where the results go (default results; results-quick)")
	among := flag.String("among", os.Getenv("BENCH_AMONG"), "regular expression of the contenders in processes (BENCH_AMONG): 'redislock|Python'")
	others := flag.String("lua", cmp.Or(os.Getenv("BENCH_LUA"), baseline), "lock.lua's whose instructions are compared, files or revisions (BENCH_LUA)")
	profile := flag.String("cpuprofile", "", "write a CPU profile of this process to a file")
	testing.Init() // for the benchmarks of allocations
	flag.Parse()

	p, command := fullPlan(), "make bench"
	p.folder = "results"
	if *quick {
		p, command = quickPlan(), "make bench-quick"
		p.folder = "results-quick"
		if err := flag.Set("test.benchtime", "100ms"); err != nil {
			exit(err)
		}
	}
	p.count.others = othersOf(*others)
	var err error
	if p.processes.among, err = regexp.Compile(*among); err != nil {
		exit(err)
	}
	if *folder != "" {
		p.folder = *folder
	}
	if *only != "" {
		command = fmt.Sprintf("BENCH_ONLY='%s' %s", *only, command)
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			exit(err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, p, *only, command, os.Getenv("REDIS_URL"), os.Stdout, os.Stderr)
	stop()
	pprof.StopCPUProfile()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func measureNames() string {
	var names []string
	for _, m := range measures {
		names = append(names, m.name)
	}
	return strings.Join(names, ", ")
}

// run makes the measures whose names match and writes the results.
func run(ctx context.Context, p plan, only, command, server string, out, log io.Writer) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	b := &bench{plan: p, report: newReport(command), out: out, log: log, began: time.Now()}
	if server == "" {
		s, err := redistest.Start("--maxclients", "20000")
		if err != nil {
			return err
		}
		defer func() { _ = s.Stop() }()
		server = "redis://" + s.Addr()
	}
	b.target = newTarget(server)
	if b.admin, err = b.target.rueidis(); err != nil {
		return err
	}
	defer b.admin.Close()
	text, err := b.admin.Do(ctx, b.admin.B().Info().Section("server").Build()).ToString()
	if err != nil {
		return err
	}
	b.report.Machine.Redis = redistest.VersionIn(text)
	b.report.Machine.Commit = commit()
	if b.cpuBefore, err = b.cpuTimes(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(p.folder, 0o755); err != nil {
		return err
	}
	b.peerTable()
	ran := false
	var failed []error // the other measures are written all the same
	for _, m := range measures {
		if !wanted.MatchString(m.name) {
			continue
		}
		ran = true
		if err := m.run(ctx, b); err != nil {
			b.say("%s failed: %v", m.name, err)
			failed = append(failed, fmt.Errorf("%s: %w", m.name, err))
		}
		if ctx.Err() != nil {
			return errors.Join(failed...)
		}
	}
	if !ran {
		return fmt.Errorf("no measure matches %q; there are %s", only, measureNames())
	}
	b.report.Machine.Others = b.others(ctx)
	b.report.Machine.Took = time.Since(b.began).Round(time.Second).String()
	b.report.goalTable().print(out)
	fmt.Fprintln(out)
	b.report.Machine.print(out)
	return errors.Join(append(failed, b.report.write(p.folder))...)
}

// commit is that of the work tree, with a + if it was changed.
func commit() string {
	id, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	changes, _ := exec.Command("git", "status", "--porcelain", "--untracked-files=no").Output()
	if len(changes) > 0 {
		return strings.TrimSpace(string(id)) + "+"
	}
	return strings.TrimSpace(string(id))
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.log, "%4.0f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// cpuTimes are those of the whole machine and of this run.
type cpuTimes struct{ all, busy, own time.Duration }

// cpuTimes has no times of the machine where there is no /proc/stat.
func (b *bench) cpuTimes(ctx context.Context) (t cpuTimes, err error) {
	if t.own, err = b.cpu(ctx); err != nil {
		return t, err
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var usage syscall.Rusage
		if err := syscall.Getrusage(who, &usage); err != nil {
			return t, err
		}
		t.own += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	const tick = time.Second / 100
	for i, field := range strings.Fields(line) {
		n, err := strconv.Atoi(field)
		if err != nil || i > 8 { // the name, and guests, who are counted as users
			continue
		}
		t.all += time.Duration(n) * tick
		if idle := i == 4 || i == 5; !idle {
			t.busy += time.Duration(n) * tick
		}
	}
	return t, nil
}

// others is what others than this run took of the machine: the less, the better the numbers.
func (b *bench) others(ctx context.Context) string {
	now, err := b.cpuTimes(ctx)
	all := now.all - b.cpuBefore.all
	if err != nil || all == 0 {
		return "unknown"
	}
	share := float64(now.busy-b.cpuBefore.busy-now.own+b.cpuBefore.own) / float64(all)
	return fmt.Sprintf("%.0f %%", max(0, 100*share))
}

// name is one that was not used before, by this run or another.
func (b *bench) name(label string) string {
	b.serial++
	return fmt.Sprintf("bench-%s-%s-%d-", strings.Trim(label, "*"), newToken()[:6], b.serial)
}

// addr is the address of the server.
func (b *bench) addr() string {
	u, err := url.Parse(b.target.url)
	if err != nil {
		return ""
	}
	return u.Host
}

// cpu is the time that the server has used.
func (b *bench) cpu(ctx context.Context) (time.Duration, error) {
	text, err := b.admin.Do(ctx, b.admin.B().Info().Section("cpu").Build()).ToString()
	if err != nil {
		return 0, err
	}
	user, err1 := strconv.ParseFloat(infoField(text, "used_cpu_user"), 64)
	system, err2 := strconv.ParseFloat(infoField(text, "used_cpu_sys"), 64)
	return time.Duration((user + system) * float64(time.Second)), errors.Join(err1, err2)
}
