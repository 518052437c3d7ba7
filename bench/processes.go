package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// installed is where peers/fetch leaves the peers of other languages.
const installed = "../.cache/peers"

// processPlan is what is measured of contenders in processes of their own.
type processPlan struct {
	folder string // where the peers of other languages are
	each   int    // processes of each kind of lock
	holds  []time.Duration
	rounds int
	length time.Duration
	idle   time.Duration
	limit  time.Duration // how long the next holder is waited for after a fault
	among  *regexp.Regexp
}

func (p processPlan) contenders() []contender {
	return slices.DeleteFunc(slices.Clone(contenders), func(c contender) bool {
		return p.among != nil && !p.among.MatchString(c.name())
	})
}

// fought is what one kind of lock came to, its contenders being processes.
type fought struct {
	contended
	Language  string        `json:"language"`
	ClientCPU time.Duration `json:"client_cpu_per_cycle_ns"`
	Idle      float64       `json:"idle_commands_per_second_and_waiter"`
	Failed    string        `json:"failed,omitempty"`

	clients time.Duration
	store   bool // not Redis
}

// crew is the processes of one kind of lock.
type crew struct {
	contender
	procs []*process
	b     *bench
	store *etcdServer     // not Redis
	conns map[string]bool // the addresses of its connections, as Redis has seen them
}

// recruit starts n processes of each kind that can be had, a few at a time. Those that cannot be had
// are named.
func (b *bench) recruit(n int, store *etcdServer) ([]*crew, error) {
	folder, err := filepath.Abs(b.plan.processes.folder)
	if err != nil {
		return nil, err
	}
	all := make([]*crew, len(b.plan.processes.contenders()))
	var g errgroup.Group
	g.SetLimit(4)
	for i, c := range b.plan.processes.contenders() {
		all[i] = &crew{contender: c, b: b, conns: map[string]bool{}}
		url := b.target.url
		if c.etcd {
			if all[i].store = store; store == nil {
				all[i].Missing = "there is no etcd"
				continue
			}
			url = store.url
		}
		g.Go(func() error {
			for range n {
				p, err := c.start(folder, url)
				if err != nil {
					all[i].Missing = err.Error()
					break
				}
				all[i].procs = append(all[i].procs, p)
				all[i].Versions = p.versions
			}
			return nil
		})
	}
	err = g.Wait()
	var crews []*crew
	b.report.Contenders = nil
	for _, c := range all {
		if c.Missing != "" {
			c.Missing = strings.ReplaceAll(c.Missing, folder, "the peers' folder")
			b.say("%s cannot be had: %s", c.name(), c.Missing)
			c.dismiss()
		} else {
			crews = append(crews, c)
		}
		b.report.Contenders = append(b.report.Contenders, c.contender)
	}
	return crews, err
}

func (c *crew) dismiss() {
	for _, p := range c.procs {
		p.kill()
	}
}

// all runs something for each process at once.
func (c *crew) all(do func(i int, p *process) error) error {
	var g errgroup.Group
	for i, p := range c.procs {
		g.Go(func() error { return do(i, p) })
	}
	return g.Wait()
}

func (c *crew) cpu(ctx context.Context) (server, clients time.Duration, err error) {
	for _, p := range c.procs {
		clients += p.cpu()
	}
	if c.store != nil {
		return cpuOf(c.store.cmd.Process.Pid), clients, nil
	}
	server, err = c.b.cpu(ctx)
	return server, clients, err
}

// drain is how long the last cycle of each may take: pollers can starve for long.
const drain = time.Minute

// cycles has all of them take the lock over and over for a time.
func (c *crew) cycles(name string, hold, length time.Duration) (all [][]cycled, stop int64, err error) {
	all = make([][]cycled, len(c.procs))
	for _, p := range c.procs {
		err = errors.Join(err, p.say("cycle %s %d", name, hold.Microseconds()))
	}
	time.Sleep(length)
	stop = monotonic()
	for _, p := range c.procs {
		err = errors.Join(err, p.say("stop"))
	}
	err = errors.Join(err, c.all(func(i int, p *process) (err error) {
		all[i], err = p.records(length + drain)
		return err
	}))
	return all, stop, err
}

// slice runs one and adds it to r. The first failure of a lock is kept, and ends its part.
func (c *crew) slice(ctx context.Context, r *fought, name string, length time.Duration) error {
	if r.Failed != "" {
		return nil
	}
	stopPings := make(chan struct{})
	var pings errgroup.Group
	slack := time.Millisecond
	pings.Go(func() error {
		longest, err := (&contest{pinger: c.b.admin}).ping(ctx, stopPings)
		slack = max(longest, slack)
		return err
	})
	server, clients, err := c.cpu(ctx)
	if err != nil {
		return err
	}
	cycles, stop, failed := c.cycles(name, r.Hold, length)
	serverAfter, clientsAfter, err := c.cpu(ctx)
	close(stopPings)
	if err := errors.Join(err, pings.Wait()); err != nil {
		return err
	}
	if failed != nil {
		r.Failed = failed.Error()
		return nil
	}
	r.cpu += serverAfter - server
	r.clients += clientsAfter - clients
	r.add(judge(cycles, stop, slack))
	return nil
}

// monitor shows each command of a client while something runs, but for PING and for those inside of
// scripts and functions: Redis's own counters have them all.
func (b *bench) monitor(ctx context.Context, seen func(addr, command string), during func() error) error {
	conn, err := b.target.dial(ctx, &net.Dialer{}, b.addr())
	if err != nil {
		return err
	}
	defer conn.Close()
	hello := "MONITOR\r\n"
	if u, err := url.Parse(b.target.url); err == nil && u.User != nil {
		password, _ := u.User.Password()
		hello = fmt.Sprintf("AUTH %s %s\r\n%s", cmp.Or(u.User.Username(), "default"), password, hello)
	}
	if _, err := io.WriteString(conn, hello); err != nil {
		return err
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	for range strings.Count(hello, "\n") {
		if !lines.Scan() || lines.Text() != "+OK" {
			return fmt.Errorf("MONITOR: %s", lines.Text())
		}
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		for lines.Scan() {
			head, command, _ := strings.Cut(lines.Text(), "] ")
			addr := head[strings.LastIndex(head, " ")+1:]
			if addr != "lua" && !strings.EqualFold(command, `"ping"`) {
				seen(addr, command)
			}
		}
	})
	err = during()
	_ = conn.Close()
	reader.Wait()
	return err
}

// fight measures one hold, for all crews in turns.
func (b *bench) fight(ctx context.Context, crews []*crew, hold time.Duration) ([]*fought, error) {
	var results []*fought
	var steps []func() error
	p := b.plan.processes
	for _, c := range crews {
		n := len(c.procs)
		r := &fought{Language: c.Language, store: c.etcd, contended: contended{Lock: c.Lock, Contenders: n, Hold: hold, of: make([][]time.Duration, n)}}
		results = append(results, r)
		name := b.name("process")
		steps = append(steps, func() error { return c.slice(ctx, r, name, p.length) })
		// Each has all its connections and scripts before anything counts.
		warm := *r
		warm.of = make([][]time.Duration, n)
		if err := c.slice(ctx, &warm, name, p.length/4); err != nil {
			return nil, err
		}
		r.Failed = warm.Failed
	}
	if err := interleave(p.rounds, steps...); err != nil {
		return nil, err
	}
	for i, r := range results {
		if r.Failed != "" {
			b.say("%s failed: %s", crews[i].name(), r.Failed)
			continue
		}
		r.finish()
		r.ClientCPU = r.clients / time.Duration(r.done)
		if crews[i].store != nil {
			continue // it counts no commands
		}
		cycles, commands := 0, 0
		if err := b.monitor(ctx, func(addr, _ string) {
			crews[i].conns[addr] = true // the others wait for theirs: no command is another's
			commands++
		}, func() error {
			all, _, err := crews[i].cycles(b.name("process"), hold, p.length/2)
			for _, records := range all {
				cycles += len(records)
			}
			return err
		}); err != nil {
			return nil, fmt.Errorf("%s: %w", crews[i].name(), err)
		}
		r.Commands = float64(commands) / float64(max(cycles, 1))
	}
	return results, nil
}

// idleCrews counts what waiters send while one holds the lock, all kinds at once.
func (b *bench) idleCrews(ctx context.Context, crews []*crew) ([]float64, error) {
	names := make([]string, len(crews))
	for i := range crews {
		names[i] = b.name("process")
	}
	var counting, holding sync.WaitGroup
	counting.Add(1)
	var g errgroup.Group
	for i, c := range crews {
		holding.Add(1)
		g.Go(func() error {
			return c.all(func(j int, p *process) error {
				if j > 0 {
					holding.Wait() // all holders are first
				}
				err := p.say("acquire %s", names[i])
				if err == nil {
					_, err = p.answer("granted", startLimit)
				}
				if j == 0 {
					holding.Done()
					counting.Wait()
				}
				if err != nil || p.say("release") != nil {
					return err
				}
				_, _ = p.answer("released", drain) // a lease that nobody renewed may be over
				return nil
			})
		})
	}
	holding.Wait()
	time.Sleep(time.Second) // all of them wait
	counts := make([]int, len(crews))
	err := b.monitor(ctx, func(addr, command string) {
		i := slices.IndexFunc(crews, func(c *crew) bool { return c.conns[addr] })
		if i < 0 { // a new connection
			i = slices.IndexFunc(names, func(name string) bool { return strings.Contains(command, name) })
		}
		if i >= 0 {
			counts[i]++
		}
	}, func() error {
		time.Sleep(b.plan.processes.idle)
		return nil
	})
	counting.Done()
	err = errors.Join(err, g.Wait())
	rates := make([]float64, len(crews))
	for i, c := range crews {
		rates[i] = float64(counts[i]) / b.plan.processes.idle.Seconds() / float64(max(len(c.procs)-1, 1))
	}
	return rates, err
}

func processes(ctx context.Context, b *bench) error {
	store, err := startEtcd()
	if err != nil {
		b.say("etcd cannot be had: %v", err)
	} else {
		defer store.stop()
	}
	b.say("%d processes of each kind of lock start", b.plan.processes.each)
	crews, err := b.recruit(b.plan.processes.each, store)
	for _, c := range crews {
		defer c.dismiss()
	}
	if err != nil {
		return err
	}
	b.contenderTable()
	var all []*fought
	for _, hold := range b.plan.processes.holds {
		b.say("processes, hold %v", hold)
		results, err := b.fight(ctx, crews, hold)
		if err != nil {
			return err
		}
		all = append(all, results...)
	}
	b.say("processes that wait, %v", b.plan.processes.idle)
	rates, err := b.idleCrews(ctx, crews)
	if err != nil {
		return err
	}
	for i, r := range all {
		r.Idle = rates[i%len(crews)]
	}
	b.report.Processes = all
	b.processGoal(all[len(all)-len(crews):])
	for i := range b.plan.processes.holds {
		b.processTable(all[i*len(crews) : (i+1)*len(crews)])
	}
	return nil
}

// processGoal compares the long waits with those of the best peer of each language.
func (b *bench) processGoal(all []*fought) {
	ahead := true
	var ratios []string
	for _, us := range all {
		var best *fought
		for _, r := range all {
			if r.Language == us.Language && r.Lock != oursName && r.Failed == "" && (best == nil || r.P99 < best.P99) {
				best = r
			}
		}
		if us.Lock != oursName || best == nil {
			continue
		}
		ratio := float64(best.P99) / float64(max(us.P99, 1))
		ahead = ahead && us.Failed == "" && ratio >= 1
		ratios = append(ratios, fmt.Sprintf("%s: %s (%s)", us.Language, digits(ratio), best.Lock))
	}
	if len(ratios) > 0 {
		b.report.reach(goalProcesses, ahead, "%s", strings.Join(ratios, ", "))
	}
}

// etcdServer is one node of etcd, in a folder of its own.
type etcdServer struct {
	cmd       *exec.Cmd
	dir       string
	addr, url string
}

// startEtcd returns once a client can take a lock.
func startEtcd() (*etcdServer, error) {
	dir, err := os.MkdirTemp("", "bench-etcd-")
	if err != nil {
		return nil, err
	}
	var addrs [2]string
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		addrs[i] = l.Addr().String()
		_ = l.Close()
	}
	e := &etcdServer{dir: dir, addr: addrs[0], url: "http://" + addrs[0]}
	peer := "http://" + addrs[1]
	e.cmd = exec.Command("etcd", "--name", "bench", "--data-dir", dir, "--logger", "zap", "--log-level", "error",
		"--listen-client-urls", e.url, "--advertise-client-urls", e.url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "bench="+peer)
	if err := e.cmd.Start(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	if err := e.ready(); err != nil {
		e.stop()
		return nil, err
	}
	return e, nil
}

func (e *etcdServer) ready() error {
	l, err := openEtcd(newTarget(e.url))
	if err != nil {
		return err
	}
	defer l.close()
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	unlock, err := l.lock(ctx, "ready")
	if err != nil {
		return err
	}
	return unlock()
}

func (e *etcdServer) stop() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
	_ = os.RemoveAll(e.dir)
}

func (b *bench) contenderTable() {
	t := &table{
		title:   "Who is compared, in processes",
		note:    "Each contender is a process of its own, with the library as its registry has it. A lease, where there is one, is 10 s for all.",
		columns: []string{"lock", "how", "versions"},
	}
	for _, c := range b.report.Contenders {
		versions := c.Versions
		if c.Missing != "" {
			versions = "NOT HAD: " + c.Missing
		}
		t.row(c.name(), c.Note, versions)
	}
	b.table(t)
}

func (b *bench) processTable(results []*fought) {
	if len(results) == 0 {
		return
	}
	t := &table{
		title: fmt.Sprintf("%d processes, hold %v", results[0].Contenders, results[0].Hold),
		note: fmt.Sprintf("%d slices of %v each. The ratio is ours in the same language to it (Redisson: ours in Go), of paired slices. "+
			"Idle: commands a second of one waiter while another process holds the lock.", b.plan.processes.rounds, b.plan.processes.length),
		columns: []string{"lock", "grants a second", "ours against it", "wait p50", "p99", "max", "Jain index", "largest bypass",
			"held twice", "commands a cycle", "idle", "server CPU a cycle", "client CPU a cycle"},
	}
	for _, r := range results {
		name := fmt.Sprintf("%s (%s)", r.Lock, r.Language)
		if r.Failed != "" {
			t.row(name, "failed: "+r.Failed, "", "", "", "", "", "", "", "", "", "", "")
			continue
		}
		us := results[0]
		for _, other := range results {
			if other.Lock == oursName && other.Language == r.Language {
				us = other
			}
		}
		against := show(paired(us.Rates, r.Rates))
		commands, idle := show(r.Commands), show(r.Idle)
		if r.store {
			commands, idle = "-", "-" // nobody counts them
		}
		t.row(name, r.Rate.Median, against, r.P50, r.P99, r.Max, fmt.Sprintf("%.4f", r.Jain.Median), r.Bypass,
			r.Doubles, commands, idle, r.ServerCPU, r.ClientCPU)
	}
	b.table(t)
}
