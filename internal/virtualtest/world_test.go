// Package virtualtest has the real client live through hours of accidents in seconds: several Lockers
// share a few locks in a testing/synctest bubble, on the server of internal/memory, over a network that
// delays and loses. Judges compare each client's beliefs with the truth on the server.
//
// A run is drawn from its seed. Goroutines of one instant run in any order, and the client itself draws
// tokens and pauses, so the same seed gives a similar run and not the same one: rapid could not shrink it.
package virtualtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/memory"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

const (
	slots     = 3                // processes at a time
	users     = 4                // goroutines that use the locks, in each
	lastSteps = 2000             // of a failed run are printed
	stormFor  = 45 * time.Second // at most
	calmFor   = 40 * time.Second
	settled   = 20 * time.Second // of calm: no call of the storm is still under way
	latest    = 12 * time.Second // a call that was given up arrives within this, or never
	drainFor  = 15 * time.Minute // everybody is served
)

// world is one run.
type world struct {
	seed   uint64
	names  []string
	shared *memory.Shared
	steps  *atomic.Int64
	start  time.Time
	leases []time.Duration
	shares bool     // some hold the locks together
	kinds  []string // the accidents that happen in this world

	over    context.Context // ends with the run, or with its failure
	stop    context.CancelFunc
	ending  atomic.Bool // users begin nothing new
	running sync.WaitGroup

	mu      sync.Mutex // held over nothing that blocks
	rnd     *rand.Rand
	failed  string
	history []string
	oldest  int
	slots   [slots]*process
	all     []*process
	calm    time.Time // since then; zero: a storm
	storm   weather
	saved   *memory.Server

	// The server.
	turn    time.Time // of the last call
	ticked  time.Time
	rate    float64 // by which its clock runs faster than ours
	maxRate float64
	step    int64 // orders what happens there
	putBack int64 // the step in which the clock was put back last
	putBy   time.Duration
	jump    int64 // and forward, or may have been
	back    time.Duration
	locks   map[string]*lock // by name
	waits   map[string]*wait // by token
	now     view
	stale   bool // now is not what is
}

// weather is what the network does.
type weather struct {
	lose, late float64       // how likely
	delay      time.Duration // of each way, at most
	missing    error         // the answer to every call
}

// process is one Locker with its link to the server.
type process struct {
	w      *world
	id     int
	slot   int
	list   string
	locker *redislock.Locker
	ctx    context.Context // ends when it is killed
	kill   context.CancelFunc

	// Guarded by w.mu.
	waiting int // calls of Acquire and TryAcquire
	closing bool
	closed  chan struct{}
	silent  chan struct{} // closed when the link works again; nil: it does
	refused bool
	fatal   int // how many calls get a lasting error
}

// client is what redislock.New is given: it has the Server of a process, and knows no commands.
type client struct {
	rueidis.Client
	p *process
}

func (c client) Wire(prefix string) wire.Server {
	return &server{Server: c.p.w.shared.Client(prefix, network{c.p}), p: c.p}
}

func newWorld(seed uint64, steps *atomic.Int64) *world {
	w := &world{
		seed: seed, steps: steps, start: time.Now(), rnd: rand.New(rand.NewPCG(seed, 0)),
		shared: memory.NewShared(redislock.Version),
		locks:  map[string]*lock{}, waits: map[string]*wait{}, stale: true,
	}
	w.turn, w.ticked = w.start, w.start
	w.over, w.stop = context.WithCancel(context.Background())
	for i := range 1 + w.rnd.IntN(3) {
		w.names = append(w.names, fmt.Sprintf("{%d}", i))
		w.locks[w.names[i]] = newLock(w, w.names[i])
	}
	w.leases = []time.Duration{300 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 10 * time.Second}
	w.shares = w.rnd.IntN(2) == 0
	for _, kind := range accidents {
		if w.rnd.IntN(2) == 0 {
			w.kinds = append(w.kinds, kind)
		}
	}
	if w.has("rate") {
		w.rate = []float64{0.0005, 0.01, 0.02, 0.02, -0.0005, -0.02}[w.rnd.IntN(6)]
		w.maxRate = max(w.rate, 0)
	}
	if w.maxRate <= 0.001 {
		w.leases = append(w.leases, 2*time.Minute)
	}
	for i := range w.slots {
		w.slots[i] = w.begin(i)
	}
	return w
}

func (w *world) has(kind string) bool { return slices.Contains(w.kinds, kind) }

// begin starts a process. It needs mu, or a world of its own.
func (w *world) begin(slot int) *process {
	p := &process{w: w, id: len(w.all) + 1, slot: slot, closed: make(chan struct{})}
	p.list = fmt.Sprintf("lock-signal:%d", p.id)
	p.ctx, p.kill = context.WithCancel(w.over)
	options := redislock.Options{Owner: fmt.Sprint("p", p.id), Logger: silentLogger, LoadMode: redislock.LoadNever}
	if w.rnd.IntN(3) == 0 {
		options.WaitTTL = 3 * time.Second
	}
	var err error
	if p.locker, err = redislock.New(client{p: p}, options); err != nil {
		panic(err)
	}
	w.all = append(w.all, p)
	return p
}

// run is the whole life of a world, up to its end, at which nothing is left.
func (w *world) run(length time.Duration) {
	for slot := range slots {
		for i := range users {
			u := &user{w: w, slot: slot, name: fmt.Sprintf("u%d.%d", slot, i), rnd: rand.New(rand.NewPCG(w.seed, uint64(100*slot+i+1)))}
			w.running.Go(u.run)
		}
	}
	w.running.Go(w.nemesis)
	w.sleep(length)
	w.drain()
	var closing sync.WaitGroup
	for _, p := range w.processes() {
		closing.Go(func() { w.close(p) })
	}
	closing.Wait()
	synctest.Wait()
	w.judgeClosed()
	w.judgeEmpty()
	w.stop()
	w.running.Wait()
	for _, l := range w.locks {
		l.expiry.Stop()
	}
}

func (w *world) processes() []*process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

// drain is the end of the accidents: everybody who waits is served, and nothing is left in the clients.
func (w *world) drain() {
	w.ending.Store(true)
	w.note("the end begins")
	w.settle()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.running.Wait()
	}()
	start := time.Now()
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-w.over.Done():
			return
		case <-time.After(time.Minute):
			if time.Since(start) > drainFor {
				w.failure(served, "after %v of calm some still wait", drainFor)
				return
			}
			w.operate() // a lock without expiry that nobody knows of: a call came late
		}
	}
	w.sleep(settled)
	w.operate()
	w.mu.Lock()
	last := w.begin(0)
	w.mu.Unlock()
	for _, name := range w.names {
		ctx, cancel := context.WithTimeout(w.over, 5*time.Minute)
		lock, err := last.locker.Acquire(ctx, name)
		cancel()
		if err != nil {
			w.failure(served, "the last one to ask for %s: %v", name, err)
			return
		}
		_ = lock.Release(context.Background())
	}
	w.sleep(settled)
	w.judgeIdle()
}

func (w *world) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-w.over.Done():
	}
}

// close is a process that ends in good order.
func (w *world) close(p *process) {
	w.mu.Lock()
	mine := !p.closing
	p.closing = true
	w.mu.Unlock()
	if !mine {
		<-p.closed
		return
	}
	w.note("process %d: Close", p.id)
	start := time.Now()
	p.locker.Close()
	w.note("process %d: closed after %v", p.id, time.Since(start))
	took := time.Since(start)
	time.Sleep(300 * time.Millisecond) // until the waiters have left
	w.mu.Lock()
	w.judgeClose(p, took)
	w.mu.Unlock()
	close(p.closed)
}

// note keeps the last steps, for the report of a failure.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes(format, args...)
}

// notes needs mu.
func (w *world) notes(format string, args ...any) {
	if w.failed != "" {
		return
	}
	line := fmt.Sprintf("%12v  %s", time.Since(w.start), fmt.Sprintf(format, args...))
	if len(w.history) < lastSteps {
		w.history = append(w.history, line)
		return
	}
	w.history[w.oldest] = line
	w.oldest = (w.oldest + 1) % lastSteps
}

func (w *world) failure(judge, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail(judge, format, args...)
}

// fail ends the run: a judge has found something. It needs mu.
func (w *world) fail(judge, format string, args ...any) {
	if w.failed != "" {
		return
	}
	w.notes("FAILED")
	what := judge + ": " + fmt.Sprintf(format, args...)
	steps := slices.Concat(w.history[w.oldest:], w.history[:w.oldest])
	w.failed = fmt.Sprintf("seed %d: %s\naccidents: %v\nthe last steps:\n%s\n%s\nto repeat it: VIRTUAL_SEED=%d go test -count=1 -run TestClients ./internal/virtualtest\n",
		w.seed, what, w.kinds, strings.Join(steps, "\n"), what, w.seed)
	fmt.Fprint(os.Stderr, w.failed) // also if the run cannot end any more
	if os.Getenv("VIRTUAL_STOP") != "" {
		os.Exit(1)
	}
	w.stop()
}
