package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// contender is a kind of lock of which each client is a process of its own, in its own language, and
// speaks the protocol of peers/README.md.
type contender struct {
	Lock     string `json:"lock"`
	Language string `json:"language"`
	Note     string `json:"note"`
	Versions string `json:"versions,omitempty"` // as the process says them
	Missing  string `json:"missing,omitempty"`  // why it could not be had

	kind string // for the process
	etcd bool   // its server is etcd
}

const (
	inGo     = "Go"
	inPython = "Python"
	inNode   = "Node.js"
	inJava   = "Java"
)

// contenders all have leases of ten seconds, as far as they have leases.
var contenders = []contender{
	{Lock: oursName, Language: inGo, kind: oursName, Note: "defaults"},
	{Lock: "redsync", Language: inGo, kind: "redsync", Note: "defaults: retries every 50 to 250 ms"},
	{Lock: "bsm/redislock", Language: inGo, kind: "bsm", Note: "as in its README: retries every 100 ms"},
	{Lock: "rueidislock", Language: inGo, kind: "rueidislock 1 key", Note: "KeyMajority 1 and NoLoopTracking, for one server"},
	{Lock: "etcd Mutex", Language: inGo, kind: etcdName, Note: "concurrency.Mutex, session of 10 s (default 60 s), one node of Debian's etcd-server", etcd: true},
	{Lock: oursName, Language: inPython, kind: oursName, Note: "defaults, clients/python"},
	{Lock: "python-redis-lock", Language: inPython, kind: "python-redis-lock", Note: "expire=10, auto_renewal=True (default: it never expires); socket_timeout=None, without which redis-py 8 fails a wait of 5 s"},
	{Lock: "redis-py Lock", Language: inPython, kind: "redis-py", Note: "timeout=10 (default: it never expires); sleeps 0.1 s between tries"},
	{Lock: "redis-py Lock 1ms", Language: inPython, kind: "redis-py-1ms", Note: "sleep=0.001"},
	{Lock: oursName, Language: inNode, kind: oursName, Note: "defaults, clients/node on ioredis"},
	{Lock: "redlock", Language: inNode, kind: "redlock", Note: "@sesamecare-oss/redlock, the kept successor: retries every 200 ms and jitter; retryCount -1"},
	{Lock: "redlock 1ms", Language: inNode, kind: "redlock-1ms", Note: "retryDelay 1, retryJitter 0"},
	{Lock: "redis-semaphore", Language: inNode, kind: "redis-semaphore", Note: "its Mutex, defaults: retries every 10 ms; acquireTimeout: Infinity"},
	{Lock: "Redisson RFairLock", Language: inJava, kind: "rfairlock", Note: "watchdog of 10 s (default 30 s); the JVM without C2, as runs are short"},
	{Lock: "Redisson RLock", Language: inJava, kind: "rlock", Note: "the same; not fair"},
}

const etcdName = "etcd"

// name is for tables: ours is there in three languages.
func (c contender) name() string { return fmt.Sprintf("%s (%s)", c.Lock, c.Language) }

// command starts one process of a contender. The error says why that is impossible: peers are installed in folder.
func (c contender) command(folder, url string) (*exec.Cmd, error) {
	program, args := "", []string{c.kind, url}
	var env []string
	switch c.Language {
	case inGo:
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		program, env = self, []string{contenderVar + "=1"}
	case inPython:
		program = filepath.Join(folder, "python", "bin", "python")
		args, env = append([]string{"peers/peer.py"}, args...), []string{"PYTHONPATH=../clients/python/src"}
	case inNode:
		program = "node"
		args, env = append([]string{"peers/peer.mjs"}, args...), []string{"PEERS=" + folder}
		if _, err := os.Stat(filepath.Join(folder, "node_modules")); err != nil {
			return nil, err
		}
	case inJava:
		program = "java"
		classes := filepath.Join(folder, "redisson")
		args = append([]string{"-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classes + ":" + classes + "/*", "Peer"}, args...)
		if _, err := os.Stat(filepath.Join(classes, "Peer.class")); err != nil {
			return nil, err
		}
	}
	if _, err := exec.LookPath(program); err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	return cmd, nil
}

// monotonic is the clock that all processes of a machine share, in ns.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // there is no such system
	}
	return t.Nano()
}

const startLimit = 2 * time.Minute

// process is one contender.
type process struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out      chan string // its lines; closed at their end
	errors   string      // the file of its standard error
	versions string
}

func (c contender) start(folder, url string) (*process, error) {
	cmd, err := c.command(folder, url)
	if err != nil {
		return nil, err
	}
	log, err := os.CreateTemp("", "bench-peer-")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	p := &process{cmd: cmd, out: make(chan string, 64), errors: log.Name()}
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.out)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.out <- lines.Text()
		}
	}()
	if p.versions, err = p.answer("ready", startLimit); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

func (p *process) say(format string, args ...any) error {
	_, err := fmt.Fprintf(p.in, format+"\n", args...)
	return err
}

var errSilent = errors.New("no answer")

// line is the next one within a limit.
func (p *process) line(limit time.Duration) (string, error) {
	select {
	case line, open := <-p.out:
		if !open {
			text, _ := os.ReadFile(p.errors)
			return "", fmt.Errorf("it has ended: %s", strings.TrimSpace(string(text)))
		}
		if failed, found := strings.CutPrefix(line, "error "); found {
			return "", errors.New(failed)
		}
		return line, nil
	case <-time.After(limit):
		return "", errSilent
	}
}

// answer is what follows a word that has to come.
func (p *process) answer(word string, limit time.Duration) (string, error) {
	line, err := p.line(limit)
	if err != nil {
		return "", err
	}
	rest, found := strings.CutPrefix(line, word)
	if !found {
		return "", fmt.Errorf("%q in place of %s", line, word)
	}
	return strings.TrimSpace(rest), nil
}

// moment is an answer that says when something happened.
func (p *process) moment(word string, limit time.Duration) (int64, error) {
	text, err := p.answer(word, limit)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

// records are the cycles that it made.
func (p *process) records(limit time.Duration) ([]cycled, error) {
	var all []cycled
	for {
		line, err := p.line(limit)
		if err != nil || line == "done" {
			return all, err
		}
		var r cycled
		if _, err := fmt.Sscan(line, &r.asked, &r.granted, &r.left); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		all = append(all, r)
	}
}

// kill ends it by SIGKILL, also if it is stopped, and returns when it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	for range p.out { // nobody reads them
	}
	_ = p.cmd.Wait()
	_ = os.Remove(p.errors)
}

func (p *process) signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// cpu is the time that it has used, 0 where there is no /proc.
func (p *process) cpu() time.Duration { return cpuOf(p.cmd.Process.Pid) }

func cpuOf(pid int) time.Duration {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ") // the name may have spaces
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	const tick = time.Second / 100
	return time.Duration(user+system) * tick
}

// contenderVar is set in the environment of a contender in Go: kind and URL are its arguments.
const contenderVar = "BENCH_CONTENDER"

// runContender is a contender in Go.
func runContender(kind, url string, in io.Reader, out io.Writer) error {
	open := openEtcd
	modules := "go.etcd.io/etcd/client/v3"
	for _, p := range peers {
		if p.name == kind {
			open, modules = p.open, p.modules
		}
	}
	l, err := open(newTarget(url))
	if err != nil {
		return err
	}
	defer l.close()
	w := bufio.NewWriter(out)
	defer w.Flush()
	say := func(format string, args ...any) {
		fmt.Fprintf(w, format+"\n", args...)
		_ = w.Flush() // fails if the parent has gone: then the input ends, too
	}
	say("ready %s", versionsOf(modules))

	var stopped atomic.Bool
	lines := make(chan []string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(in); in.Scan(); {
			if in.Text() == "stop" {
				stopped.Store(true)
				continue
			}
			stopped.Store(false)
			lines <- strings.Fields(in.Text())
		}
		os.Exit(0) // in the middle of a wait, too
	}()
	var held func() error
	for words := range lines {
		var err error
		switch words[0] {
		case "cycle":
			hold, _ := strconv.Atoi(words[2])
			var all []cycled
			if all, err = cycle(l, words[1], time.Duration(hold)*time.Microsecond, &stopped); err == nil {
				for _, r := range all {
					fmt.Fprintln(w, r.asked, r.granted, r.left)
				}
				say("done")
			}
		case "acquire":
			if held, err = l.lock(context.Background(), words[1]); err == nil {
				say("granted %d", monotonic())
			}
		case "release":
			if err = held(); err == nil {
				say("released %d", monotonic())
			}
		}
		if err != nil {
			say("error %s", strings.Join(strings.Fields(err.Error()), " "))
		}
	}
	return nil
}

// cycle takes and gives back until it has been told to stop, and then once more without a hold.
func cycle(l locker, name string, hold time.Duration, stopped *atomic.Bool) (all []cycled, err error) {
	for last := false; !last; {
		r := cycled{asked: monotonic()}
		unlock, err := l.lock(context.Background(), name)
		if err != nil {
			return nil, err
		}
		r.granted = monotonic()
		last = stopped.Load()
		if hold > 0 && !last {
			time.Sleep(hold)
		}
		r.left = monotonic()
		if err := unlock(); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// versionsOf are those of some modules that this binary was built with.
func versionsOf(modules string) string {
	var all []string
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, path := range strings.Fields(modules) {
			for _, dep := range info.Deps {
				if dep.Path == path {
					all = append(all, strings.TrimPrefix(path, "github.com/")+" "+dep.Version)
				}
			}
		}
	}
	return strings.Join(append(all, runtime.Version()), ", ")
}
