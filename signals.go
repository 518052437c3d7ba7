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
	// pastWaits is how many past waits the hub remembers, see hub.deliver.
	pastWaits = 8192
	// reportEvery is the shortest time between two reports of trouble.
	reportEvery = time.Minute
	// lateSignal is how long after the end of a wait a signal may come that was sent before the end.
	lateSignal = time.Second
)

// hub delivers signals to the waiters. One goroutine pops each signal list. Outside a cluster, one list is
// for all locks.
type hub struct {
	l       *Locker
	running sync.WaitGroup // the goroutines that pop

	mu        sync.Mutex           // not held during a call; see Locker for the order
	closed    bool                 // accepts no waiter
	waiters   map[string]*waiter   // by token
	lines     map[string]*line     // by the lock's key
	listeners map[string]*listener // by signal list, while its goroutine runs
	used      map[string]struct{}  // signal lists that may have elements
	past      map[string]pastWait  // the last waits that are over, by token
	order     []string             // the tokens of past, a ring
	oldest    int
	reported  time.Time // when trouble was last logged
}

// listener is the goroutine that pops a signal list.
type listener struct {
	lines   map[*line]int      // the number of waiters, by line
	sharing int                // the number of waiters that do not want the lock alone
	idle    context.CancelFunc // ends the pop under way
}

// line is this Locker's waiters for one lock.
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

// add registers w for signals to its token, before its first call. This method and the following ones need
// mu.
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
		foremost.callAt(foremost.due) // the foremost waiter calls sooner
	}
}

// pace slows down a check-in after d if this Locker waits for many locks.
func (h *hub) pace(d time.Duration) time.Duration {
	if d >= foremostCheckIn && len(h.lines) > manyLocks {
		return max(d, crowdCheckIn)
	}
	return d
}

// listen makes a listener pop this signal list until w is removed. "": w needs no list any more.
func (h *hub) listen(w *waiter, signals string) {
	if w.heard == signals {
		return
	}
	if on := h.listeners[w.heard]; on != nil {
		on.add(w, -1)
		if len(on.lines) == 0 && len(h.listeners) > 1 {
			on.idle() // frees its connection at once
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
		on = &listener{lines: make(map[*line]int), idle: func() {}} // no pop is under way
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

// run pops signals while somebody waits for one.
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

// wanted returns the ctx of the next pop, and how many signals to expect: one for each lock, and one for
// each waiter that wants to share it. A nil ctx: nobody waits, or the Locker is closed. empty says that the
// last pop found nothing.
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

// remember notes the end of a wait: it was given up, or its lock was released or lost. It takes mu.
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

// deliver brings signals to the waiters with their tokens. A signal for a past wait is usually just late.
// But after a failover that lost the last writes, the queue has past waits again. Each of them would keep
// the lock for the 2 s of a dead waiter. So when one of them gets the lock, deliver gives up all past
// waits for that lock.
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

// isIdle tells whether nobody waits for any lock.
func (h *hub) isIdle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.listeners) == 0
}

// report logs that a wait goes on although Redis is in trouble.
func (h *hub) report(w *waiter) {
	now := time.Now()
	if w.try() || !h.reported.IsZero() && now.Sub(h.reported) < reportEvery {
		return
	}
	h.reported = now
	waiting, trouble := len(h.waiters), w.trouble
	h.l.bg.Add(1) // allowed during Close: it waits for w already
	go func() {
		defer h.l.bg.Done()
		h.l.opts.Logger.LogAttrs(w.caller, slog.LevelWarn, "redislock: a wait goes on although Redis is in trouble",
			slog.String("lock", w.keys.Name), slog.Int("waiting", waiting), slog.Any("error", trouble))
	}()
}

// endAll ends the waits for which why returns an error. It takes mu.
func (h *hub) endAll(why func(*waiter) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.waiters {
		for w != nil {
			next := w.next // undo removes w
			if err := why(w); err != nil {
				w.undo(err)
			}
			w = next
		}
	}
}

// refuse ends all waits, and all later ones at once.
func (h *hub) refuse() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.endAll(func(w *waiter) error { return w.wrap(ErrClosed) })
}

// forget deletes our signal lists: they may have late signals.
func (h *hub) forget() {
	h.mu.Lock()
	lists := make([]string, 0, len(h.used))
	for signals := range h.used {
		lists = append(lists, signals)
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = h.l.server.Forget(ctx, lists) // they expire anyway
}
