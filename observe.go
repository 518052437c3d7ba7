package redislock

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// EventKind says what happened to a lock.
type EventKind int

// Each call of Acquire, TryAcquire or Do makes one event: EventAcquired or EventNotAcquired. A call
// with wrong arguments, or after Close, makes none. One event ends each EventAcquired: EventReleased
// or EventLost.
const (
	// EventAcquired: the caller has the lock.
	EventAcquired EventKind = iota + 1
	// EventNotAcquired: the call returns Event.Err. If the lock was granted meanwhile, the package has
	// given it back: the replicas did not confirm it in time, or ctx ended together with the grant.
	EventNotAcquired
	// EventReleased: Release, Detach or Close ended the hold. With an Event.Err, Redis did not take
	// the lock back: the lock ends with its lease, or with another Release, which makes no event.
	EventReleased
	// EventLost: the lease could not be kept, or somebody took the lock away. If Event.Err is ErrLost,
	// Context has told the holder. If Event.Err is ErrNotHeld, Release found the loss: somebody else
	// may have worked at the same time.
	EventLost
)

func (k EventKind) String() string {
	switch k {
	case EventAcquired:
		return "acquired"
	case EventNotAcquired:
		return "not acquired"
	case EventReleased:
		return "released"
	case EventLost:
		return "lost"
	}
	return "unknown"
}

// Event is the argument of Options.Observe. Times are measured with this machine's monotonic clock.
type Event struct {
	Kind  EventKind
	Name  string // of the lock
	Token string // see Lock.Token. Anybody with the token can release the lock: keep it out of logs
	Fence int64  // see Lock.Fence; 0 with EventNotAcquired

	// Waited is how long the call took. Set with EventAcquired and EventNotAcquired.
	Waited time.Duration
	// HandedOver says that the lock came out of the queue. Set with EventAcquired. It is also true if
	// the first answer was lost. The former holder does not learn who gets the lock: compare Fence,
	// which grows with each holder and is the same for all who hold the lock together.
	HandedOver bool
	// Held is the time since EventAcquired. Set with EventReleased and EventLost.
	Held time.Duration
	// Err is the error that the call returns with EventNotAcquired. For the other kinds, see
	// EventReleased and EventLost.
	Err error
}

// LogValue shows an event to slog, without the token.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("event", e.Kind.String()), slog.String("name", e.Name)}
	if e.Fence != 0 {
		attrs = append(attrs, slog.Int64("fence", e.Fence))
	}
	switch e.Kind {
	case EventAcquired:
		attrs = append(attrs, slog.Duration("waited", e.Waited), slog.Bool("handed_over", e.HandedOver))
	case EventNotAcquired:
		attrs = append(attrs, slog.Duration("waited", e.Waited))
	default:
		attrs = append(attrs, slog.Duration("held", e.Held))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("error", e.Err.Error()))
	}
	return slog.GroupValue(attrs...)
}

// LogEvents returns a function for Options.Observe. It logs each event: a lock that was lost or could
// not be given back as a warning, all others at level info.
func LogEvents(logger *slog.Logger) func(ctx context.Context, e Event) {
	return func(ctx context.Context, e Event) {
		level := slog.LevelInfo
		if e.Kind == EventLost || e.Kind == EventReleased && e.Err != nil {
			level = slog.LevelWarn
		}
		logger.LogAttrs(ctx, level, "redislock", slog.Any("lock", e))
	}
}

// watch reports one call, and the lock that it got, to Options.Observe. Without Observe, the watch is
// nil and its methods do nothing.
type watch struct {
	observe func(context.Context, Event)
	ctx     context.Context
	common  Event     // the fields that all events share
	since   time.Time // when the call began

	mu       sync.Mutex // not held while observe runs
	acquired time.Time  // zero: EventAcquired is not told yet
	events   []Event    // still to tell, in order
	telling  bool       // a goroutine is in Observe
}

func (l *Locker) watch(ctx context.Context, r *request, since time.Time) *watch {
	if l.opts.Observe == nil {
		return nil
	}
	return &watch{
		observe: l.opts.Observe,
		ctx:     context.WithoutCancel(ctx),
		common:  Event{Name: r.keys.Name, Token: r.token},
		since:   since,
	}
}

// fail reports the error that the call returns, and returns it.
func (w *watch) fail(err error) error {
	if w != nil {
		e := w.common
		e.Kind, e.Waited, e.Err = EventNotAcquired, time.Since(w.since), err
		w.observe(w.ctx, e)
	}
	return err
}

// got reports the lock that the call returns.
func (w *watch) got(lock *Lock, queued bool) {
	told := false
	defer func() {
		if !told { // a panic: nobody gets the lock
			_ = lock.abandon(lock.calls)
		}
	}()
	w.tell(Event{Kind: EventAcquired, Fence: lock.fence, HandedOver: queued})
	told = true
}

// tell calls observe, or leaves the event to the goroutine that is in observe now. A lock can end before
// its EventAcquired: a lease of 1 ms runs out, or Close is called, before Acquire returns.
func (w *watch) tell(e Event) {
	if w == nil {
		return
	}
	now := time.Now()
	e.Name, e.Token = w.common.Name, w.common.Token
	w.mu.Lock()
	if e.Kind == EventAcquired {
		e.Waited, w.acquired = now.Sub(w.since), now
		w.events = append([]Event{e}, w.events...)
	} else {
		if !w.acquired.IsZero() {
			e.Held = now.Sub(w.acquired)
		}
		w.events = append(w.events, e)
	}
	mine := !w.telling && !w.acquired.IsZero()
	w.telling = w.telling || mine
	w.mu.Unlock()
	if !mine {
		return
	}
	done := false
	defer func() {
		if !done { // a panic: the next event starts anew
			w.mu.Lock()
			w.telling = false
			w.mu.Unlock()
		}
	}()
	for e, ok := w.next(); ok; e, ok = w.next() {
		w.observe(w.ctx, e)
	}
	done = true
}

// next removes and returns the first event; false: no event.
func (w *watch) next() (e Event, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok = len(w.events) > 0; ok {
		e, w.events = w.events[0], w.events[1:]
	} else {
		w.telling = false
	}
	return e, ok
}
