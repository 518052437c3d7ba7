package redislock

import (
	"context"
	"errors"
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
	// to whom: this event is the receiver's, and its Fence is greater than that of whoever had it before.
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

	// mu is held while observe runs: the events of a lock come one after the other. The end can be
	// there first: a lease of 1 ms is over, or Close was called, before the call returns.
	mu       sync.Mutex
	since    time.Time // when the call began; then when the lock was acquired
	acquired bool
	event    Event // what all have in common, then the last one
}

func (l *Locker) watch(ctx context.Context, r *request) *watch {
	if l.opts.Observe == nil {
		return nil
	}
	return &watch{
		observe: l.opts.Observe,
		ctx:     context.WithoutCancel(ctx),
		since:   time.Now(),
		event:   Event{Name: r.keys.name, Token: r.token},
	}
}

// fail tells that the call returns this error, and returns it.
func (w *watch) fail(err error) error {
	if w == nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.event.Kind, w.event.Waited, w.event.Err = EventNotAcquired, time.Since(w.since), err
	w.observe(w.ctx, w.event)
	return err
}

// got tells that the call returns this lock.
func (w *watch) got(lock *Lock, queued bool) {
	if w == nil {
		return
	}
	told := false
	defer func() {
		if !told { // a panic: nobody gets the lock
			_ = lock.Release(w.ctx)
		}
	}()
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.event.Fence = lock.fence
	e := w.event
	e.Kind, e.Waited, e.HandedOver, e.Err = EventAcquired, now.Sub(w.since), queued, nil
	w.since, w.acquired = now, true
	w.observe(w.ctx, e)
	told = true
	w.tellEnd()
}

// end is called once, by who has ended the lock.
func (w *watch) end(kind EventKind, err error) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.event.Kind, w.event.Err = kind, err
	w.tellEnd()
}

// released is end with the result of Release.
func (w *watch) released(err error) {
	if errors.Is(err, ErrNotHeld) {
		w.end(EventLost, err)
	} else {
		w.end(EventReleased, err)
	}
}

// tellEnd needs mu. It does nothing unless the lock was acquired, and has ended.
func (w *watch) tellEnd() {
	if w.acquired && w.event.Kind != 0 {
		w.event.Held = time.Since(w.since)
		w.observe(w.ctx, w.event)
	}
}
