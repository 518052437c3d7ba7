// The demo: several processes book a ledger onto one file, under a lock. One is killed while it
// holds the lock, one while it waits, one is stopped for longer than its lease. At the end nothing
// may be lost and nobody may have been overtaken.
//
// It starts a private redis-server, or uses the one at REDIS_URL and leaves nothing there.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// A demo that can only succeed shows nothing. This makes it fail, for the test.
const breakVariable = "REDISLOCK_DEMO_BREAK"

const (
	breakLock  = "lock"  // one write without the lock
	breakGuard = "guard" // the file takes writes with old tokens
	breakOrder = "order" // somebody jumps the queue
)

const timeLimit = 18 * time.Second

func main() {
	runtime.LockOSThread() // children are started by this goroutine, see dieWithParent
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if beWorker() != nil { // told to the director
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	ok, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if !ok {
		os.Exit(1)
	}
}

// run plays the story and tells whether the verdict is good.
func run(ctx context.Context) (ok bool, err error) {
	broken := os.Getenv(breakVariable)
	switch broken {
	case "", breakLock, breakGuard, breakOrder:
	default:
		return false, fmt.Errorf("%s=%q: it is %s, %s or %s", breakVariable, broken, breakLock, breakGuard, breakOrder)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("not done after %v", timeLimit))
	defer cancel()

	epoch := time.Now()
	ledger, err := parseLedger(ledgerText)
	if err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "redislock-demo-")
	if err != nil {
		return false, err
	}
	clean := cleanUp{dirs: []string{dir}}
	defer func() { err = errors.Join(err, clean.run()) }()

	d := &director{
		ctx:      ctx,
		out:      newTimeline(os.Stdout),
		clock:    newClock(epoch),
		ledger:   ledger,
		file:     guardedFile{path: filepath.Join(dir, "book.json")},
		prefix:   "redislock-demo-" + filepath.Base(dir),
		broken:   broken,
		arrivals: map[string]int{},
		costs:    map[string]time.Duration{},
	}
	where := "at REDIS_URL"
	url := os.Getenv("REDIS_URL")
	if url == "" {
		server, err := redistest.Start()
		if err != nil {
			return false, err
		}
		clean.dirs = append(clean.dirs, server.Dir())
		clean.do(server.Stop)
		where = fmt.Sprintf("a private one on %s (%s)", server.Addr(), redistest.Version())
		url = "redis://" + server.Addr()
	}
	if err := d.open(url, os.Getenv("REDIS_URL") != ""); err != nil {
		return false, err
	}
	clean.do(d.close)
	if d.foreign {
		info, err := d.client.Do(ctx, d.client.B().Info().Section("server").Build()).ToString()
		if err != nil {
			return false, err
		}
		where += " (" + redistest.VersionIn(info) + ")"
	}
	d.out.print(bold, "Processes share one file. A lock in Redis lets them at it one at a time, in order of arrival.")
	d.out.print(plain, "Turn by turn they book the %d lines of a ledger: acquire, read the balances, add, write, release.", len(ledger))
	d.out.print(plain, "Redis: %s. Lease of the lock: %v.\n", where, lease)
	d.out.head()
	if err := d.start(url, epoch); err != nil {
		return false, err
	}
	if err := d.story(); err != nil {
		return false, err
	}
	checks, err := d.judge()
	if err != nil {
		return false, err
	}
	checks = append(checks, nothingLeft(clean.run()))
	return d.verdict(checks), nil
}

// cleanUp undoes what was done, last first, however far it came.
type cleanUp struct {
	steps []func() error
	dirs  []string
}

func (c *cleanUp) do(step func() error) { c.steps = append(c.steps, step) }

// run tells as errors what it could not undo.
func (c *cleanUp) run() error {
	var all error
	for len(c.steps) > 0 {
		last := len(c.steps) - 1
		all = errors.Join(all, c.steps[last]())
		c.steps = c.steps[:last]
	}
	for _, dir := range c.dirs {
		all = errors.Join(all, os.RemoveAll(dir))
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			all = errors.Join(all, fmt.Errorf("%s is still there", dir))
		}
	}
	c.dirs = nil
	return all
}
