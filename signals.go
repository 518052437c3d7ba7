package redislock

import (
	"container/list"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

const (
	// pastWaits is how many waits that are over are remembered, see hub.deliver.
	pastWaits = 8192
	// reportEvery is how often trouble is logged at most.
	reportEvery = time.Minute
	// lateSignal is how long after its end a wait may be told of a grant from before that end.
	lateSignal = time.Second
)

// hub knows who waits, and brings signals to them. One goroutine pops each signal list: where the server
// is no cluster there is one list for all locks.
type hub struct {
	l       *Locker
	running sync.WaitGroup // the goroutines that pop

	mu        sync.Mutex           // held over no call; see Locker for the order
	closed    bool                 // nobody may wait any more
	waiters   map[string]*waiter   // by token
	lines     map[string]*line     // by the lock's key
	listeners map[string]*listener // by signal list; there as long as its goroutine
	used      map[string]struct{}  // signal lists that may hold something
	past      map[string]pastWait  // the last waits that are over, by token
	order     []string             // the tokens of past, a ring
	oldest    int
	reported  time.Time // when trouble was logged last
}

// listener is the goroutine that pops a signal list.
type listener struct {
	lines   map[*line]int      // how many wait for a signal in it, by what they wait for
	sharing int                // how many of them do not want the lock alone
	idle    context.CancelFunc // ends the pop under way
}

// line is those of this Locker who wait for one lock.
type line struct {
	waiters list.List // in order
	clock   serverClock
}

// pastWait is a wait that is over.
type pastWait struct {
	keys  wire.Keys
	ended time.Time
}

func newHub(l *Locker) *hub {
	return &hub{
		l:         l,
		waiters:   make(map[string]*waiter),
		lines:     make(map[string]*line),
		listeners: make(map[string]*listener),
		used:      make(map[string]struct{}),
		past:      make(map[string]pastWait),
	}
}

// add has signals for the token of w delivered, also while its first call is under way. This one and
// the following need mu.
func (h *hub) add(w *waiter) {
	w.next = h.waiters[w.token]
	h.waiters[w.token] = w
	if w.try() {
		return
	}
	if w.line = h.lines[w.keys.Lock]; w.line == nil {
		w.line = &line{}
		h.lines[w.keys.Lock] = w.line
	}
	w.place = w.line.waiters.PushBack(w)
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
	h.listen(w, "")
	if w.line == nil {
		return
	}
	wasForemost := w.isForemost()
	w.line.waiters.Remove(w.place)
	if front := w.line.waiters.Front(); front == nil {
		delete(h.lines, w.keys.Lock)
	} else if foremost := front.Value.(*waiter); wasForemost && foremost.timer != nil && foremost.calling == nil {
		foremost.callAt(foremost.due) // it has to call sooner now
	}
}

// pace is when to check in, if one waiter alone would do so after d.
func (h *hub) pace(d time.Duration) time.Duration {
	if d >= foremostCheckIn && len(h.lines) > manyLocks {
		return max(d, crowdCheckIn)
	}
	return d
}

// listen makes sure that somebody pops this signal list, until w is removed; "": none any more.
func (h *hub) listen(w *waiter, signals string) {
	if w.heard == signals {
		return
	}
	if on := h.listeners[w.heard]; on != nil {
		on.add(w, -1)
		if len(on.lines) == 0 && len(h.listeners) > 1 {
			on.idle() // a connection is worth more than a list for each lock
		}
	}
	w.heard = signals
	if signals == "" {
		return
	}
	on := h.listeners[signals]
	if on == nil {
		if h.l.ctx.Err() != nil {
			return
		}
		on = &listener{lines: make(map[*line]int), idle: func() {}} // nothing is popped yet
		h.listeners[signals] = on
		h.used[signals] = struct{}{}
		h.running.Add(1)
		go h.run(signals, on)
	}
	on.add(w, 1)
}

// add needs mu.
func (on *listener) add(w *waiter, n int) {
	if on.lines[w.line] += n; on.lines[w.line] == 0 {
		delete(on.lines, w.line)
	}
	if w.holders != 1 {
		on.sharing += n
	}
}

// run pops signals as long as somebody waits for one.
func (h *hub) run(signals string, on *listener) {
	defer h.running.Done()
	empty := false
	for retry := (backoff{}); ; {
		ctx, most := h.wanted(signals, on, empty)
		if ctx == nil {
			return
		}
		popped, err := h.l.server.Pop(ctx, signals, most)
		idle := ctx.Err() != nil
		on.idle()
		empty = err == nil && len(popped) == 0
		switch {
		case err == nil:
			h.deliver(popped)
			retry = backoff{}
			continue
		case idle:
			continue
		case !wire.Passes(err):
			h.endAll(func(w *waiter) error {
				if w.heard == signals {
					return w.wrap(err)
				}
				return nil
			})
		}
		select {
		case <-time.After(retry.next()):
		case <-h.l.ctx.Done():
		}
	}
}

// wanted is the ctx of the next pop, and how many signals may be there: one for each lock, and one for each
// of those who hold it together. Nil: nobody waits any more, or the Locker is closed. Empty: nothing was left
// in the list.
func (h *hub) wanted(signals string, on *listener, empty bool) (ctx context.Context, most int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(on.lines) == 0 || h.l.ctx.Err() != nil {
		delete(h.listeners, signals)
		if empty {
			delete(h.used, signals)
		}
		return nil, 0
	}
	ctx, on.idle = context.WithCancel(h.l.ctx)
	return ctx, len(on.lines) + on.sharing
}

// remember notes that a wait has ended for good: it was given up, or its lock was released or lost. It
// takes mu.
func (h *hub) remember(k wire.Keys, token string, ended time.Time) {
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
	h.past[token] = pastWait{k, ended}
}

// deliver tells those who wait with the tokens of signals. A signal for a wait that is over usually came
// late. But after a failover that lost the last writes, the queue again has waiters that were through:
// each would hold the lock for the two seconds of a dead one. So when one of them is given the lock, all
// of them for that lock are given up.
func (h *hub) deliver(signals []wire.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range signals {
		first := h.waiters[s.Token]
		for w := first; w != nil; {
			next := w.next
			w.tell(s)
			w = next
		}
		if over, known := h.past[s.Token]; known && first == nil && !time.Now().Before(over.ended) {
			h.l.leavers.again(over.keys, s.Token)
			if time.Since(over.ended) > lateSignal {
				h.giveUpAgain(over.keys)
			}
		}
	}
}

func (h *hub) giveUpAgain(k wire.Keys) {
	for token, over := range h.past {
		if over.keys.Lock == k.Lock && time.Since(over.ended) > lateSignal {
			over.ended = time.Now()
			h.past[token] = over
			h.l.leavers.again(over.keys, token)
		}
	}
}

// isIdle tells whether nobody waits for a lock.
func (h *hub) isIdle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.listeners) == 0
}

// report logs that a wait goes on in trouble.
func (h *hub) report(w *waiter) {
	now := time.Now()
	if w.try() || !h.reported.IsZero() && now.Sub(h.reported) < reportEvery {
		return
	}
	h.reported = now
	waiting, trouble := len(h.waiters), w.trouble
	h.l.bg.Add(1) // not the first: the wait is counted
	go func() {
		defer h.l.bg.Done()
		h.l.opts.Logger.LogAttrs(w.caller, slog.LevelWarn, "redislock: a wait goes on although Redis is in trouble",
			slog.String("lock", w.keys.Name), slog.Int("waiting", waiting), slog.Any("error", trouble))
	}()
}

// endAll ends the waits for which why is an error. It takes mu.
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

// forget removes our signal lists, which may hold signals that came too late.
func (h *hub) forget() {
	h.mu.Lock()
	lists := make([]string, 0, len(h.used))
	for signals := range h.used {
		lists = append(lists, signals)
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = h.l.server.Forget(ctx, lists) // else they expire
}
