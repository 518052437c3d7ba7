package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

const (
	lockName  = "ledger"
	stepLimit = 8 * time.Second  // for each thing the director waits for
	lookEvery = time.Millisecond // at the queue
)

// director starts the workers, gives them turns, kills some, and notes what happens. All in one
// goroutine.
type director struct {
	ctx    context.Context
	out    *timeline
	clock  clock
	ledger []entry
	file   guardedFile
	prefix string
	broken string
	quiet  bool // no rows

	finished bool

	client  rueidis.Client
	locker  *redislock.Locker
	foreign bool            // somebody else's Redis
	loaded  bool            // that had the function library before us
	signals map[string]bool // the waiters' keys

	workers []*hand
	events  chan event
	ended   chan *hand

	booked int   // lines of the ledger given out
	todo   []int // lines that came back from a worker

	state    redislock.State
	arrivals map[string]int // by token of those seen waiting: its rank of arrival
	grants   []event        // in the order in which the workers held
	holder   *hand
	freed    time.Duration // when the lock was released, or its holder killed or stopped
	crash    string        // the reason if the next one has to wait longer than usual
	costs    map[string]time.Duration
	handed   []time.Duration // hand-overs from release to the next holder
	together []string        // those who held at the same time
	late     []event         // refused and lost
}

// hand is a worker, seen from the director.
type hand struct {
	name    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	turns   int // given and not yet done
	line    int // of the ledger, given last
	arrived bool
	place   int // in the queue, 0: not there
	killed  bool
	ended   bool // the process has, and was waited for
}

// open connects to Redis, and notes what a foreign one has.
func (d *director) open(url string, foreign bool) (err error) {
	if d.client, err = connect(url); err != nil {
		return fmt.Errorf("no Redis: %w", err)
	}
	if d.locker, err = redislock.New(d.client, redislock.Options{Prefix: d.prefix}); err != nil {
		return err
	}
	d.foreign = foreign
	d.signals = map[string]bool{}
	if foreign {
		d.loaded, err = d.hasLibrary()
	}
	return err
}

func (d *director) hasLibrary() (bool, error) {
	list, err := d.client.Do(d.ctx, d.client.B().FunctionList().Libraryname("lock").Build()).ToArray()
	return len(list) > 0, err
}

// start runs the workers and waits for nothing: their turns wait for them.
func (d *director) start(url string, epoch time.Time) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close()
	d.events = make(chan event, 100)
	d.ended = make(chan *hand, len(names))
	go func() {
		for lines := bufio.NewScanner(read); lines.Scan(); {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				e = event{Worker: "?", Kind: failed, Text: fmt.Sprintf("%q: %v", lines.Text(), err)}
			}
			d.events <- e
		}
	}()
	for _, name := range names {
		h := &hand{name: name, cmd: exec.Command(program, "worker", name)}
		h.cmd.Stdout, h.cmd.Stderr = write, os.Stderr
		h.cmd.SysProcAttr = dieWithParent()
		if h.in, err = h.cmd.StdinPipe(); err != nil {
			return err
		}
		if err := h.cmd.Start(); err != nil {
			return err
		}
		d.workers = append(d.workers, h)
		go func() {
			_ = h.cmd.Wait()
			d.ended <- h
		}()
		err := writeLine(h.in, setup{
			Name: name, Redis: url, Prefix: d.prefix, Epoch: epoch,
			File: d.file.path, GuardOff: d.broken == breakGuard,
		})
		if err != nil {
			return err
		}
	}
	return d.file.write(book{})
}

// named finds a worker; a stranger gets an entry that nobody looks at.
func (d *director) named(name string) *hand {
	for _, h := range d.workers {
		if h.name == name {
			return h
		}
	}
	return &hand{name: name}
}

// give tells a worker to book the next line of the ledger.
func (d *director) give(h *hand, t turn) error {
	if len(d.todo) > 0 {
		t.Line, d.todo = d.todo[0], d.todo[1:]
	} else {
		d.booked++
		t.Line = d.booked
	}
	if t.Lease == 0 {
		t.Lease = lease
	}
	h.line = t.Line
	h.turns++
	h.arrived = false
	return writeLine(h.in, t)
}

// queue gives a turn and waits until the worker is in the queue, or holds.
func (d *director) queue(name string, t turn) error {
	h := d.named(name)
	if err := d.give(h, t); err != nil {
		return err
	}
	return d.until(name+" to queue", func() bool { return h.arrived })
}

// until goes on with what happens until something is true.
func (d *director) until(what string, done func() bool) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	limit := time.NewTimer(stepLimit)
	defer limit.Stop()
	for !done() {
		var err error
		select {
		case e := <-d.events:
			err = d.note(e)
		case <-tick.C:
			err = d.look()
		case h := <-d.ended:
			if h.ended = true; !h.killed {
				err = fmt.Errorf("%s ended by itself: %v", h.name, h.cmd.ProcessState)
			}
		case <-limit.C:
			err = fmt.Errorf("waited %v for %s in vain; holder %q, %d in the queue",
				stepLimit, what, d.state.Holder, d.state.Waiting)
		case <-d.ctx.Done():
			err = d.ctx.Err()
		}
		if err == nil {
			continue
		}
		// Ctrl-C also ends Redis, perhaps before we hear of it ourselves.
		select {
		case <-d.ctx.Done():
			return fmt.Errorf("%w while waiting for %s", context.Cause(d.ctx), what)
		case <-time.After(100 * time.Millisecond):
			return err
		}
	}
	return nil
}

func (d *director) untilIdle() error {
	return d.until("all turns to be done", func() bool {
		for _, h := range d.workers {
			if h.turns > 0 && !h.killed {
				return false
			}
		}
		return true
	})
}

// look notes who waits at which place.
func (d *director) look() (err error) {
	if d.state, err = d.locker.Inspect(d.ctx, lockName); err != nil {
		return err
	}
	for _, h := range d.workers {
		h.place = 0
	}
	for i, waiter := range d.state.Waiters {
		owner, _, _ := strings.Cut(waiter.Token, ":")
		h := d.named(owner)
		h.place = i + 1
		if _, known := d.arrivals[waiter.Token]; !known {
			d.arrivals[waiter.Token] = len(d.arrivals) + 1
			d.signals[waiter.Signal] = true
			h.arrived = true
			d.add(row{style: dim, at: d.clock.now() - waiter.Waited, who: owner,
				place: fmt.Sprintf("waits %d", i+1)})
		}
	}
	return nil
}

// note takes in what a worker tells.
func (d *director) note(e event) error {
	h := d.named(e.Worker)
	switch e.Kind {
	case holds:
		h.arrived = true
		if d.holder != nil {
			d.together = append(d.together, d.holder.name+" and "+h.name)
		}
		d.holder = h
		d.grants = append(d.grants, e)
		d.add(row{style: green, at: e.At, who: h.name, place: "holds", fence: e.Fence, handOver: d.handOver(e),
			what: fmt.Sprintf("line %d: %v", e.Line, d.ledger[e.Line-1])})
	case wrote:
		if d.holder == h {
			d.holder, d.freed = nil, e.At
		}
	case refused:
		d.todo = append(d.todo, e.Line)
		d.late = append(d.late, e)
		d.add(row{style: red, at: e.At, who: h.name, what: "its write is refused: the file has a newer token"})
	case lost:
		d.late = append(d.late, e)
		d.add(row{style: red, at: e.At, who: h.name, what: "its lock: " + e.Text})
	case done:
		h.turns--
	default:
		return fmt.Errorf("%s failed: %s", e.Worker, e.Text)
	}
	return nil
}

// handOver measures from the release to the return of the next Acquire; after a crash, from there.
func (d *director) handOver(e event) string {
	took := e.At - d.freed
	switch asked := e.At - e.Waited; {
	case d.crash != "":
		d.costs[d.crash] = took
		d.crash = ""
	case asked < d.freed:
		d.handed = append(d.handed, took)
	default:
		return "was free"
	}
	return ms(took)
}

func (d *director) add(r row) {
	if !d.quiet {
		d.out.add(r)
	}
}

// kill ends a worker with SIGKILL. It is killed while it works or waits, long before it writes, so
// somebody else gets its line.
func (d *director) kill(name, what string) error {
	h := d.named(name)
	h.killed = true
	d.todo = append(d.todo, h.line)
	return d.signal(h, syscall.SIGKILL, "SIGKILL", what)
}

func (d *director) stop(h *hand, what string) error {
	return d.signal(h, syscall.SIGSTOP, "SIGSTOP", what)
}

// signal takes the lock from the holder for all that is measured here: a crash costs the time from
// now until the next one holds.
func (d *director) signal(h *hand, sig syscall.Signal, name, what string) error {
	now := d.clock.now()
	if err := h.cmd.Process.Signal(sig); err != nil {
		return err
	}
	if d.holder == h {
		d.holder, d.freed = nil, now
	}
	d.add(row{style: red, at: now, who: h.name, place: name, what: what})
	return nil
}

// close ends all workers, by force those that do not end by themselves, and tidies up in Redis.
func (d *director) close() error {
	for _, h := range d.workers {
		_ = h.in.Close()
		_ = h.cmd.Process.Signal(syscall.SIGCONT)
	}
	go func() {
		for range d.events { // nobody shall block on a full pipe
		}
	}()
	grace := time.NewTimer(time.Second)
	defer grace.Stop()
	for d.running() > 0 {
		select {
		case h := <-d.ended:
			h.ended = true
		case <-grace.C:
			for _, h := range d.workers {
				_ = h.cmd.Process.Kill()
			}
		}
	}
	d.locker.Close()
	defer d.client.Close()
	if d.foreign || d.finished {
		return d.tidy()
	}
	return nil // all of Redis goes
}

func (d *director) running() int {
	n := 0
	for _, h := range d.workers {
		if !h.ended {
			n++
		}
	}
	return n
}

// tidy removes what would be left in Redis: the memory of the last fencing token, the signals to
// the dead, and the function library if it came with us.
func (d *director) tidy() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var all error
	keys := d.keys()
	for key := range d.signals {
		keys = append(keys, key)
	}
	for _, key := range keys {
		all = errors.Join(all, d.client.Do(ctx, d.client.B().Del().Key(key).Build()).Error())
	}
	if !d.foreign {
		// Are these all? Only a Redis of our own can tell.
		if n, err := d.client.Do(ctx, d.client.B().Dbsize().Build()).ToInt64(); n > 0 || err != nil {
			all = errors.Join(all, err, fmt.Errorf("%d keys in Redis", n))
		}
	} else if !d.loaded {
		for _, node := range d.client.Nodes() {
			_ = node.Do(ctx, node.B().FunctionDelete().LibraryName("lock").Build()).Error() // a replica refuses
		}
	}
	return all
}

// keys are lock, queue and state.
func (d *director) keys() []string {
	name := ":{" + lockName + "}"
	return []string{d.prefix + name, d.prefix + "-queue" + name, d.prefix + "-state" + name}
}
