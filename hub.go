package redislock

import (
	"container/list"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

const (
	// blockFor is how long one BLPOP blocks. It may block on a primary that is none any more, as nobody
	// tells it: then signals are heard again after this at the latest, and what is handed to waits that
	// are over is passed on. When nobody waits any more, the connection is given back likewise.
	blockFor = 2 * time.Second
	// blockGrace is what BLPOP's reply may be late; after that the connection is given up. A server
	// can ignore the timeout of a BLPOP (CLIENT PAUSE), and a silent network does.
	blockGrace = 2 * time.Second
)

// signal tells of a hand-over.
type signal struct {
	fence    int64 // 0: none
	deadline int64 // server time, ms
}

// pastWaits is how many waits that are over are remembered, see hub.pass.
const pastWaits = 8192

// hub brings signals to those who wait. One goroutine blocks on each signal list: where the server
// is no cluster there is one list for all locks.
type hub struct {
	client  rueidis.Client
	prefix  string
	id      string // names our signal lists
	all     string // the one for all locks, where the server is no cluster
	cluster bool
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	closed    bool                  // nobody may wait any more
	waiters   map[string]*waiter    // by token
	lines     map[string]*list.List // by the lock's key
	listeners map[string]*int       // how many wait, by signal list; there as long as its goroutine
	used      map[string]struct{}   // signal lists that may hold something
	past      map[string]keys       // the locks of the last waits that are over, by token
	order     []string              // the tokens of past, a ring
	oldest    int
	pass      func(k keys, token string) // gives back a lock that nobody here waits for any more
}

func newHub(client rueidis.Client, prefix string) *hub {
	h := &hub{
		client:    client,
		prefix:    prefix,
		id:        randomID(64), // it is in the entry of each waiter
		cluster:   client.Mode() == rueidis.ClientModeCluster,
		waiters:   make(map[string]*waiter),
		lines:     make(map[string]*list.List),
		listeners: make(map[string]*int),
		used:      make(map[string]struct{}),
		past:      make(map[string]keys),
	}
	h.all = prefix + "-signal:" + h.id
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

func (h *hub) signalOf(k keys) string {
	if h.cluster {
		return h.prefix + "-signal:" + k.tagged + ":" + h.id
	}
	return h.all
}

// add has signals for the token of w delivered, also while its first call is under way. This one and
// the following need h.mu.
func (h *hub) add(w *waiter) {
	w.next = h.waiters[w.token]
	h.waiters[w.token] = w
	if w.try {
		return
	}
	if w.line = h.lines[w.keys.lock]; w.line == nil {
		w.line = list.New()
		h.lines[w.keys.lock] = w.line
	}
	w.place = w.line.PushBack(w)
}

func (h *hub) remove(w *waiter) {
	if first := h.waiters[w.token]; first == w && w.next == nil {
		delete(h.waiters, w.token)
	} else if first == w {
		h.waiters[w.token] = w.next
	} else {
		for ; first != nil; first = first.next {
			if first.next == w {
				first.next = w.next
			}
		}
	}
	if w.heard {
		*h.listeners[w.signal]--
	}
	if w.try {
		return
	}
	wasForemost := w.isForemost()
	w.line.Remove(w.place)
	if front := w.line.Front(); front == nil {
		delete(h.lines, w.keys.lock)
	} else if foremost := front.Value.(*waiter); wasForemost && foremost.timer != nil && foremost.calling == nil {
		foremost.callAt(foremost.due) // it has to call sooner now
	}
}

// listen makes sure that somebody blocks on the signal list of w, until w is removed.
func (h *hub) listen(w *waiter) {
	if w.heard {
		return
	}
	count := h.listeners[w.signal]
	if count == nil {
		if h.ctx.Err() != nil {
			return
		}
		count = new(int)
		h.listeners[w.signal] = count
		h.used[w.signal] = struct{}{}
		h.running.Add(1)
		go h.run(w.signal, count)
	}
	w.heard = true
	*count++
}

// run pops signals as long as somebody waits for one.
func (h *hub) run(key string, count *int) {
	defer h.running.Done()
	var retry backoff
	for {
		element, err := h.pop(key)
		switch {
		case err == nil:
			h.deliver(element)
			retry = backoff{}
			continue
		case h.ctx.Err() != nil:
			return
		case rueidis.IsRedisNil(err):
			retry = backoff{}
		case retry.final(err):
			h.fail(key, err)
		}
		h.mu.Lock()
		if *count == 0 {
			delete(h.listeners, key)
			if rueidis.IsRedisNil(err) {
				delete(h.used, key) // it is empty, and nobody is left to be told
			}
			h.mu.Unlock()
			return
		}
		h.mu.Unlock()
		if !rueidis.IsRedisNil(err) {
			select {
			case <-time.After(retry.next()):
			case <-h.ctx.Done():
				return
			}
		}
	}
}

func (h *hub) pop(key string) (string, error) {
	// A ctx without a deadline: only then does rueidis heed its end while it blocks.
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	timer := time.AfterFunc(blockFor+blockGrace, cancel)
	defer timer.Stop()
	reply, err := h.client.Do(ctx, h.client.B().Blpop().Key(key).Timeout(blockFor.Seconds()).Build()).AsStrSlice()
	if err != nil {
		return "", err
	}
	if len(reply) != 2 {
		return "", errors.Join(errReply, errors.New("BLPOP"))
	}
	return reply[1], nil
}

// over notes that a wait has ended for good: it was given up, or its lock was released or lost.
func (h *hub) over(k keys, token string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.past[token]; known {
		return
	}
	if len(h.order) < pastWaits {
		h.order = append(h.order, token)
	} else {
		delete(h.past, h.order[h.oldest])
		h.order[h.oldest] = token
		h.oldest = (h.oldest + 1) % pastWaits
	}
	h.past[token] = k
}

// deliver tells those who wait with the token of a signal. If nobody does, it usually came late. But
// after a failover that lost the last writes, the queue again has waiters that were through: each
// would hold the lock for the two seconds of a dead one. So what a wait that is over is given, is
// passed on at once.
func (h *hub) deliver(element string) {
	fence, rest, _ := strings.Cut(element, " ")
	deadline, token, _ := strings.Cut(rest, " ")
	s := signal{}
	var err1, err2 error
	s.fence, err1 = strconv.ParseInt(fence, 10, 64)
	s.deadline, err2 = strconv.ParseInt(deadline, 10, 64)
	if err1 != nil || err2 != nil || s.fence == 0 {
		return // not written by the library
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	first := h.waiters[token]
	for w := first; w != nil; w = w.next {
		w.tell(s)
	}
	if k, known := h.past[token]; known && first == nil {
		h.pass(k, token)
	}
}

// isIdle tells whether nobody had to wait for any lock of late.
func (h *hub) isIdle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.listeners) == 0
}

// fail ends the wait of everybody who waits for a signal in a list, as there is none to be had.
func (h *hub) fail(key string, err error) {
	h.endAll(func(w *waiter) error {
		if w.heard && w.signal == key {
			return w.wrap(err)
		}
		return nil
	})
}

// endAll ends the waits for which why is an error.
func (h *hub) endAll(why func(*waiter) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.waiters {
		for w != nil {
			next := w.next // undo takes w out
			if err := why(w); err != nil {
				w.undo(err)
			}
			w = next
		}
	}
}

// refuse ends all waits, those that come later at once.
func (h *hub) refuse() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.endAll(func(w *waiter) error { return w.wrap(ErrClosed) })
}

// close ends all listeners and removes their lists, which may hold signals that came too late.
func (h *hub) close() {
	h.stop()
	h.running.Wait()
	h.mu.Lock()
	keys := make([]string, 0, len(h.used))
	for key := range h.used {
		keys = append(keys, key)
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), promptly)
	defer cancel()
	for _, key := range keys {
		if h.client.Do(ctx, h.client.B().Unlink().Key(key).Build()).Error() != nil {
			return // they expire
		}
	}
}
