package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/rpc"
	"os"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// job is what a client process is told, as JSON in its environment.
type job struct {
	Worker, Life int
	Seed         uint64
	Names        []string
	Goroutines   int
	Register     string
	Control      string
	Init         []string          // addresses to begin with
	Dial         map[string]string // the address that Redis announces -> our proxy to it
	MasterSet    string            // of Sentinel
	Replicated   bool
}

const jobVar = "CHAOS_JOB"

// waitTTL is short, so that the places of dead clients lapse within an episode.
const waitTTL = 10 * time.Second

// options of one acquire.
type options struct {
	label   string
	lease   time.Duration
	renew   bool
	maxHold time.Duration
	replica bool // a grant counts when a replica has it
	share   int  // how many may hold the lock together; 0: alone, below 0: any number
}

// hold is a lock that was got; *redislock.Lock is one.
type hold interface {
	Fence() int64
	Deadline() (time.Time, bool)
	Context() context.Context
	Release(ctx context.Context) error
}

// locks is the lock under test, or a control in its place.
type locks interface {
	acquire(ctx context.Context, name string, try bool, o options) (hold, error)
	close()
}

type realLocks struct{ locker *redislock.Locker }

func (l realLocks) acquire(ctx context.Context, name string, try bool, o options) (hold, error) {
	opts := []redislock.Option{redislock.WithLease(o.lease), redislock.WithOwner(o.label)}
	if !o.renew {
		opts = append(opts, redislock.WithoutRenewal())
	}
	if o.maxHold > 0 {
		opts = append(opts, redislock.WithMaxHold(o.maxHold))
	}
	if o.replica {
		opts = append(opts, redislock.WithReplicas(1, 500*time.Millisecond))
	}
	if o.share < 0 {
		opts = append(opts, redislock.WithShared())
	} else if o.share > 0 {
		opts = append(opts, redislock.WithHolders(o.share))
	}
	get := l.locker.Acquire
	if try {
		get = l.locker.TryAcquire
	}
	lock, err := get(ctx, name, opts...)
	if err != nil {
		return nil, err
	}
	return lock, nil
}

func (l realLocks) close() { l.locker.Close() }

// worker is a client process: goroutines that take locks and use the register until stdin ends or
// says so.
type worker struct {
	job      job
	locks    locks
	register *rpc.Client
	stop     chan struct{} // closed: begin nothing new

	mu  sync.Mutex
	out *bufio.Writer
}

// runWorker returns when stdin has said "stop" and all goroutines are through.
func runWorker(text string) error {
	w := &worker{stop: make(chan struct{}), out: bufio.NewWriter(os.Stdout)}
	if err := json.Unmarshal([]byte(text), &w.job); err != nil {
		return err
	}
	go func() {
		in := bufio.NewReader(os.Stdin)
		_, err := in.ReadString('\n')
		close(w.stop)
		if err == nil {
			_, err = in.ReadString('\n') // the parent closes it when it has waited long enough
		}
		if err != nil && !errors.Is(err, io.EOF) {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(3) // the parent has gone, or has no more patience
	}()
	var err error
	if w.register, err = rpc.Dial("tcp", w.job.Register); err != nil {
		return err
	}
	client, err := w.connect()
	if err != nil {
		return nil //nolint:nilerr // stopped before Redis could be reached
	}
	defer client.Close()
	if w.locks, err = w.lockOf(client); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for g := range w.job.Goroutines {
		wg.Go(func() { w.run(g) })
	}
	wg.Wait()
	w.locks.close()
	return nil
}

// connect tries until it succeeds: the process may have been started in the middle of a fault.
func (w *worker) connect() (rueidis.Client, error) {
	for {
		client, err := rueidis.NewClient(clientOption(w.job))
		if err == nil {
			return client, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-w.stop:
			return nil, err
		}
	}
}

func clientOption(j job) rueidis.ClientOption {
	// Half the clients set what a user would who cares about failover. The others dial for as long as rueidis
	// does by itself: 5 s, longer than a lease, and all their calls hang in that dial.
	dial := time.Second
	if j.Worker%2 == 1 {
		dial = rueidis.DefaultDialTimeout
	}
	o := rueidis.ClientOption{
		InitAddress:         j.Init,
		DisableCache:        true,
		ReadBufferEachConn:  16 << 10,
		WriteBufferEachConn: 16 << 10,
		Dialer:              net.Dialer{Timeout: dial, KeepAlive: time.Second},
		ConnWriteTimeout:    2 * time.Second, // then a silent server is given up
		DialCtxFn: func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			if to, ok := j.Dial[addr]; ok {
				addr = to
			}
			return d.DialContext(ctx, "tcp", addr)
		},
	}
	if j.MasterSet != "" {
		o.Sentinel = rueidis.SentinelOption{MasterSet: j.MasterSet}
	}
	return o
}

func (w *worker) lockOf(client rueidis.Client) (locks, error) {
	switch w.job.Control {
	case controlSetNX:
		return setNX{client}, nil
	case controlBarging:
		return barging{client}, nil
	}
	locker, err := redislock.New(client, redislock.Options{WaitTTL: waitTTL})
	if err == nil && w.job.Control == controlLate {
		return late{realLocks{locker}, client}, nil
	}
	return realLocks{locker}, err
}

func (w *worker) say(e Event) {
	e.T = mono()
	line, _ := json.Marshal(e)
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = w.out.Write(append(line, '\n'))
	_ = w.out.Flush() // at once: the process may be killed any time
}

func (w *worker) run(g int) {
	rng := rand.New(rand.NewPCG(w.job.Seed, uint64(w.job.Worker)<<32|uint64(w.job.Life)<<16|uint64(g)))
	for n := 0; ; n++ {
		select {
		case <-w.stop:
			return
		case <-time.After(time.Duration(rng.ExpFloat64() * float64(30*time.Millisecond))):
		}
		id := fmt.Sprintf("w%d.%d.%d.%d", w.job.Worker, w.job.Life, g, n)
		w.once(rng, id, w.job.Names[rng.IntN(len(w.job.Names))])
	}
}

// once takes a lock in one of many ways, works and gives it back.
func (w *worker) once(rng *rand.Rand, id, name string) {
	o := options{label: id}
	o.lease = shortestLease + time.Duration(rng.IntN(int((longestLease-shortestLease)/time.Millisecond)))*time.Millisecond
	o.renew = rng.IntN(4) > 0
	if rng.IntN(20) == 0 {
		o.maxHold = time.Duration(500+rng.IntN(1500)) * time.Millisecond
	}
	o.replica = rng.IntN(10) == 0 && w.job.Replicated
	o.share = shareOf(rng, name)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	kind := evCall
	switch rng.IntN(20) {
	case 0, 1:
		kind = evTry
	case 2, 3: // a short patience
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(300))*time.Millisecond)
		defer cancel()
	case 4:
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(3000))*time.Millisecond)
		defer cancel()
	case 5: // cancelled in the middle
		time.AfterFunc(time.Duration(rng.IntN(100))*time.Millisecond, cancel)
	}

	w.say(Event{Kind: kind, Op: id, Name: name, Lease: int64(o.lease), Share: o.share})
	lock, err := w.locks.acquire(ctx, name, kind == evTry, o)
	if err != nil {
		w.say(Event{Kind: evFailed, Op: id, Name: name, Err: err.Error()})
		return
	}
	got := Event{Kind: evGot, Op: id, Name: name, Fence: lock.Fence(), Deadline: deadlineOf(lock)}
	w.say(got)
	// A goroutine of its own tells it: this one may be busy when the Context ends.
	context.AfterFunc(lock.Context(), func() { w.say(Event{Kind: evEnded, Op: id, Name: name}) })
	w.work(rng, id, name, lock, o, got.Deadline)

	w.say(Event{Kind: evRelease, Op: id, Name: name})
	released := Event{Kind: evReleased, Op: id, Name: name}
	if err := lock.Release(context.Background()); err != nil {
		released.Err = "failed: " + err.Error()
		if errors.Is(err, redislock.ErrNotHeld) {
			released.Err = notHeld
		}
	}
	if lock.Context().Err() == nil {
		w.say(Event{Kind: evAlive, Op: id, Name: name})
	}
	w.say(released)
}

// shareOf draws how a lock is held: n2 is for readers and writers, n3 for permits, and now and then all of it.
func shareOf(rng *rand.Rand, name string) int {
	switch {
	case name == "n2" && rng.IntN(4) > 0:
		return -1
	case name == "n3" && rng.IntN(10) > 0:
		return 3
	}
	return 0
}

const notHeld = "not held"

func deadlineOf(lock hold) int64 {
	deadline, ok := lock.Deadline()
	if !ok {
		return 0
	}
	return monoOf(deadline)
}

// The leases that are taken.
const (
	shortestLease = time.Second
	longestLease  = 3 * time.Second
)

// loyal holders are one in loyalOneIn: they work for two leases, and until they are told to stop if their
// renewal is overdue by then. So they still hold the lock when their links are dead.
const loyalOneIn = 200

// work reads the register, holds the lock for a while and writes. Every other one does not look
// whether its lock is lost before it writes: that is what fencing tokens are for. Who shares a lock only reads:
// the token does not tell it from the others.
func (w *worker) work(rng *rand.Rand, id, name string, lock hold, o options, deadline int64) {
	lease := o.lease
	span := time.Duration(rng.ExpFloat64() * float64(8*time.Millisecond))
	if rng.IntN(80) == 0 {
		span = time.Duration(rng.IntN(2500)) * time.Millisecond // often longer than a lease without renewal
	}
	loyal := rng.IntN(loyalOneIn) == 0 || w.job.Control == controlLate && rng.IntN(2) == 0
	select {
	case <-w.stop: // the others who wait have to get through
		loyal = false
	default:
	}
	if loyal {
		span = 2 * lease
	}
	stubborn := rng.IntN(2) == 0

	read, err := w.ask(Ask{Op: id, Name: name, Fence: lock.Fence()})
	if err != nil || read.Refused {
		return
	}
	end := time.NewTimer(span)
	defer end.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	lost := lock.Context().Done()
	overtime := false
	for working := true; working; {
		select {
		case <-end.C:
			overdue := deadline-mono() < int64(lease/2)
			working = loyal && overdue && lost != nil && !overtime
			overtime = true
			end.Reset(2 * lease) // a lock that never tells must not stop the fleet
		case <-look.C:
			if now := deadlineOf(lock); now/1e6 != deadline/1e6 {
				deadline = now
				w.say(Event{Kind: evRenewed, Op: id, Name: name, Deadline: now, Loyal: loyal})
			}
		case <-lost:
			w.say(Event{Kind: evLost, Op: id, Name: name})
			lost = nil
			if !stubborn {
				return
			}
			working = !loyal
		}
	}
	if o.share == 0 {
		_, _ = w.ask(Ask{Op: id, Name: name, Fence: lock.Fence(), Write: true, Base: read.Value})
	}
}

func (w *worker) ask(a Ask) (Answer, error) {
	var answer Answer
	err := w.register.Call("Register.Do", a, &answer)
	return answer, err
}
