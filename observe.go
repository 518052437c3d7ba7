package redislock

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// EventKind says what happened to a lock.
type EventKind int

// Each call of Acquire, TryAcquire or Do makes one event: EventAcquired or EventNotAcquired. (Calls
// that are refused because of their arguments, or because the Locker is closed already, make none.)
// Each EventAcquired is followed by one event that ends it: EventReleased or EventLost.
const (
	// EventAcquired: the caller has the lock.
	EventAcquired EventKind = iota + 1
	// EventNotAcquired: the call returns Event.Err. The lock may have been granted meanwhile, and was
	// given back: the replicas did not confirm it in time, or ctx ended together with the grant.
	EventNotAcquired
	// EventReleased: Release or Close gave the lock back. With an Event.Err, they could not: it ends
	// with its lease, if it has one, or when Release is called again, which makes no other event.
	EventReleased
	// EventLost: the lease could not be kept, or the lock was taken away. If Event.Err is ErrLost,
	// Context has told the holder. If it is ErrNotHeld, only Release found out: the work may have
	// been done beside somebody else's.
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

// Event is what Options.Observe is told: what only the lock knows. Times are those of this machine's
// monotonic clock.
type Event struct {
	Kind  EventKind
	Name  string // of the lock
	Token string // see Lock.Token. Whoever has it can release the lock: keep it out of logs
	Fence int64  // see Lock.Fence. Not with EventNotAcquired

	// Waited, of EventAcquired and EventNotAcquired, is how long the call took.
	Waited time.Duration
	// HandedOver, of EventAcquired: the lock was not free when it was asked for, it came out of the
	// queue. (Or the first answer was lost, so that nobody knows.) Who hands a lock over does not learn
	// to whom: this event is the receiver's, and its Fence is greater than that of whoever had it before, if they do not hold it together.
	HandedOver bool
	// Held, of EventReleased and EventLost, is the time since EventAcquired.
	Held time.Duration
	// Err, of EventNotAcquired, is what the call returns. See EventReleased and EventLost.
	Err error
}

// LogValue is what slog shows of an event: all but the token.
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

// LogEvents is for Options.Observe. It writes a line for each event: a warning if a lock was lost or
// could not be given back, else an information.
func LogEvents(logger *slog.Logger) func(ctx context.Context, e Event) {
	return func(ctx context.Context, e Event) {
		level := slog.LevelInfo
		if e.Kind == EventLost || e.Kind == EventReleased && e.Err != nil {
			level = slog.LevelWarn
		}
		logger.LogAttrs(ctx, level, "redislock", slog.Any("lock", e))
	}
}

// watch tells Options.Observe of one call, and of the lock that it got. All methods of a nil watch do
// nothing: that is how it is off.
type watch struct {
	observe func(context.Context, Event)
	ctx     context.Context
	common  Event     // what all events have
	since   time.Time // when the call began

	mu       sync.Mutex // not held while observe runs
	acquired time.Time  // zero: not told yet
	events   []Event    // to be told, in order
	telling  bool
}

func (l *Locker) watch(ctx context.Context, r *request) *watch {
	if l.opts.Observe == nil {
		return nil
	}
	return &watch{
		observe: l.opts.Observe,
		ctx:     context.WithoutCancel(ctx),
		common:  Event{Name: r.keys.Name, Token: r.token},
		since:   time.Now(),
	}
}

// fail tells that the call returns this error, and returns it.
func (w *watch) fail(err error) error {
	if w != nil {
		e := w.common
		e.Kind, e.Waited, e.Err = EventNotAcquired, time.Since(w.since), err
		w.observe(w.ctx, e)
	}
	return err
}

// got tells that the call returns this lock.
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

// tell has observe called for a lock, by this goroutine or by the one that is at it. The end of a lock can
// be there before it was acquired: a lease of 1 ms is over, or Close was called, before the call returns.
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
		if !done { // a panic: the next event finds nobody at it
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

// next takes out the next event.
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
