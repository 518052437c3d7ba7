package main

import (
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// mono reads the monotonic clock, which all processes of this machine share.
func mono() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // never fails for this clock
	return t.Nano()
}

// monoOf turns a time.Time of this process into that clock.
func monoOf(t time.Time) int64 { return mono() + int64(time.Until(t)) }

// The reports of a client process about its operations.
const (
	evCall     = "call"     // it asks for the lock and will wait for it
	evTry      = "try"      // it asks for the lock and will not wait
	evGot      = "got"      // it holds the lock, until Deadline as far as it knows
	evFailed   = "failed"   // it did not get the lock
	evRenewed  = "renewed"  // Deadline has moved
	evLost     = "lost"     // it was told that the lock may be lost
	evEnded    = "ended"    // its Context has ended; reported at once, even if the holder is busy
	evAlive    = "alive"    // its Context has not ended, though Release has returned
	evRelease  = "release"  // it is about to give the lock back
	evReleased = "released" // it has given the lock back, or Err
)

// Event is one line that a client process writes.
type Event struct {
	T        int64  `json:"t"` // mono
	Kind     string `json:"k"`
	Op       string `json:"o"` // worker.incarnation.goroutine.number, also the token's label
	Name     string `json:"n"`
	Fence    int64  `json:"f,omitempty"`
	Deadline int64  `json:"d,omitempty"` // mono; 0: no deadline
	Lease    int64  `json:"l,omitempty"`
	Share    int    `json:"s,omitempty"` // see options
	Loyal    bool   `json:"w,omitempty"` // renewed: it works until it is told to stop
	Err      string `json:"e,omitempty"`
}

// op is one operation, from its events.
type op struct {
	id       string
	name     string
	worker   int
	life     int // the incarnation of the worker's process
	try      bool
	share    int // how many may hold the lock together; 0: alone, below 0: any number
	call     int64
	end      int64 // it got the lock or failed; 0: not reported
	held     bool
	err      string
	fence    int64
	lease    int64
	deadline int64 // the last one reported
	lost     int64
	ended    int64
	survived bool // its Context outlived Release
	release  int64
	released int64
	relErr   string
}

// until is when the holder stopped trusting the lock; died is when its process was killed.
func (o *op) until(died int64) int64 {
	t := died
	for _, end := range []int64{o.deadline, o.lost, o.release} {
		if end != 0 && end < t {
			t = end
		}
	}
	return t
}

// aliveTo is when its Context ended, at the latest the death of its process. Release ends Context before it
// sends anything, so the report may come after the release.
func (o *op) aliveTo(died int64) int64 {
	t := died
	if o.ended != 0 {
		t = min(t, o.ended)
	}
	if o.release != 0 && !o.survived {
		t = min(t, o.release)
	}
	return t
}

// fault is one action of the nemesis, from its begin to the end of its effects: a server answers again, a
// link is whole.
type fault struct {
	kind     string
	from, to int64
	worker   int    // the client that it hits; below 0: all
	name     string // the lock whose key was deleted
	key      string // lock, queue or state
	lossy    bool   // a failover that can lose writes: Redis replicates asynchronously
	quiet    int64  // lossy: until then there may be two primaries
	note     string
}

const everyone = -1

func (f *fault) overlaps(from, to int64) bool { return f.from <= to && from <= f.to }

// forgets tells whether writes may have been lost in that time.
func (f *fault) forgets(from, to int64) bool {
	return f.lossy && f.from <= to && from <= max(f.to, f.quiet)
}

// silences tells whether the fault keeps a client from doing its part: it is dead, stopped or cut off.
func (f *fault) silences(worker int) bool {
	if f.worker != worker {
		return false
	}
	switch f.kind {
	case killClient, stopClient, cutLinks, blackHole, deafLinks, dropReply:
		return true
	}
	return false
}

// serverEvent is one effect of a call, as the server's MONITOR shows it.
type serverEvent struct {
	at     int64 // the server's wall clock, us
	begun  int64 // when its call began: leases count from there
	node   string
	kind   string
	name   string
	token  string
	number int64 // a fence, or a lease in ms
	fn     string
	caller string // the token of its call
}

const (
	srvGap     = "gap"     // MONITOR was interrupted: events may be missing
	srvEnqueue = "enqueue" // ZADD to the queue; no effect on a token that is there
	srvGone    = "gone"    // its entry is removed: left, granted or dropped
	srvGrant   = "grant"   // SET lock; the same token again is a renewal
	srvShare   = "share"   // ZADD to the lock; the same token again is a renewal
	srvRenew   = "renew"   // PEXPIRE lock, by its holder
	srvLeave   = "leave"   // ZREM from the lock
	srvFree    = "free"    // the lock is removed by the library
	srvFence   = "fence"   // a new fencing token
	srvDelete  = "delete"  // the nemesis deleted a key; token is the kind of key
)

// history is the record of one episode.
type history struct {
	mu         sync.Mutex
	start      int64
	wallOffset int64 // wall clock minus mono, ns
	events     []Event
	faults     []*fault
	server     []serverEvent
	register   []registerEvent
	deaths     map[string]int64 // "worker.incarnation": when the process was killed
	end        int64
	renewing   chan int // workers with a loyal holder that has just renewed its lease
}

func newHistory() *history {
	now := mono()
	return &history{start: now, wallOffset: time.Now().UnixNano() - now, deaths: map[string]int64{}, renewing: make(chan int)}
}

func (h *history) add(e Event) {
	if e.Loyal {
		worker, _ := processOf(e.Op)
		select {
		case h.renewing <- worker:
		default: // nobody waits
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

// awaitRenewal returns a worker with a loyal holder that renews its lease now; below 0: none does in this time.
func (h *history) awaitRenewal(limit time.Duration) int {
	select {
	case worker := <-h.renewing:
		return worker
	case <-time.After(limit):
		return -1
	}
}

func (h *history) addServer(e serverEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.server = append(h.server, e)
}

func (h *history) addRegister(e registerEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.register = append(h.register, e)
}

// begin notes a fault that lasts until done.
func (h *history) begin(f fault) *fault {
	f.from, f.to = mono(), 1<<62
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, &f)
	return &f
}

func (h *history) done(f *fault, note string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.to, f.note = mono(), note
}

// moved corrects the begin of a fault that had to wait.
func (h *history) moved(f *fault, from int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.from = max(f.from, from)
}

// aimed is for a fault that had to look for its client: it begins now.
func (h *history) aimed(f *fault, worker int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.worker, f.from = worker, mono()
}

func (h *history) settled(f *fault, note string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.quiet = mono()
	if note != "" {
		f.note += " " + note
	}
}

func (h *history) died(worker, life int, at int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deaths[lifeKey(worker, life)] = at
}

// processOf reads worker and incarnation from the name of an operation.
func processOf(id string) (worker, life int) {
	if parts := strings.SplitN(id, ".", 3); len(parts) == 3 {
		worker, _ = strconv.Atoi(strings.TrimPrefix(parts[0], "w"))
		life, _ = strconv.Atoi(parts[1])
	}
	return worker, life
}

func lifeKey(worker, life int) string { return strconv.Itoa(worker) + "." + strconv.Itoa(life) }

// wall turns the server's stamp into mono.
func (h *history) wall(us int64) int64 { return us*1000 - h.wallOffset }

// ops returns the operations, in order of their calls.
func (h *history) ops() []*op {
	byID := map[string]*op{}
	var all []*op
	for _, e := range h.events {
		o := byID[e.Op]
		if o == nil {
			o = &op{id: e.Op, name: e.Name}
			o.worker, o.life = processOf(e.Op)
			byID[e.Op] = o
			all = append(all, o)
		}
		switch e.Kind {
		case evCall, evTry:
			o.call, o.try, o.lease, o.share = e.T, e.Kind == evTry, e.Lease, e.Share
		case evGot:
			o.end, o.held, o.fence, o.deadline = e.T, true, e.Fence, e.Deadline
		case evFailed:
			o.end, o.err = e.T, e.Err
		case evRenewed:
			o.deadline = e.Deadline
		case evLost:
			o.lost = e.T
		case evEnded:
			o.ended = e.T
		case evAlive:
			o.survived = true
		case evRelease:
			o.release = e.T
		case evReleased:
			o.released, o.relErr = e.T, e.Err
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].call < all[j].call })
	return all
}

// died of an operation's process, or the end of the episode.
func (h *history) deathOf(o *op) int64 {
	if at, ok := h.deaths[lifeKey(o.worker, o.life)]; ok {
		return at
	}
	return h.end
}
