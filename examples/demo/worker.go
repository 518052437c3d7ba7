package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// setup is the first line that a worker reads from its stdin; turns follow, one a line.
type setup struct {
	Name     string
	Redis    string // URL
	Prefix   string
	Epoch    time.Time
	File     string
	GuardOff bool
}

// turn is one line of the ledger to be booked.
type turn struct {
	Line   int // from 1
	Lease  time.Duration
	Work   time.Duration // how long it takes, between reading the file and writing it
	NoLock bool          // for the test: skip the lock
}

// event is what a worker tells, one a line. All workers write to the same pipe, so their events
// arrive in the order in which they were told.
type event struct {
	Worker string
	Kind   kind
	At     time.Duration
	Line   int           `json:",omitempty"`
	Waited time.Duration `json:",omitempty"` // holds
	Token  string        `json:",omitempty"` // holds
	Fence  int64         `json:",omitempty"` // holds
	Text   string        `json:",omitempty"` // refused, lost, failed
}

type kind string

const (
	holds   kind = "holds"   // Acquire has returned, the file was read
	wrote   kind = "wrote"   // and calls Release now
	refused kind = "refused" // by the guard
	lost    kind = "lost"    // the lock, as its Context or Release says
	done    kind = "done"    // with this turn; the lock is released
	failed  kind = "failed"
)

// clock tells the time since the director's start. Each process looks at the wall clock once and
// goes on by its monotonic clock, so times of different processes can be compared.
type clock struct {
	started time.Time
	offset  time.Duration
}

func newClock(epoch time.Time) clock {
	now := time.Now()
	return clock{now, now.Round(0).Sub(epoch.Round(0))}
}

func (c clock) now() time.Duration { return c.offset + time.Since(c.started) }

type worker struct {
	setup
	clock  clock
	ledger []entry
	file   guardedFile
	locker *redislock.Locker
}

// beWorker is the whole life of a worker process. It ends with its stdin, and so with the director.
func beWorker() error {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // Ctrl-C reaches all: the director tidies up
	in := bufio.NewScanner(os.Stdin)
	w := &worker{}
	if !in.Scan() {
		return errors.New("a worker reads its orders from stdin: start the demo without arguments")
	}
	if err := json.Unmarshal(in.Bytes(), &w.setup); err != nil {
		return err
	}
	w.clock = newClock(w.Epoch)
	w.file = guardedFile{w.File, w.GuardOff}
	err := w.run(in)
	if err != nil {
		w.tell(event{Kind: failed, Text: err.Error()})
	}
	return err
}

func (w *worker) run(in *bufio.Scanner) (err error) {
	if w.ledger, err = parseLedger(ledgerText); err != nil {
		return err
	}
	client, err := connect(w.Redis)
	if err != nil {
		return err
	}
	defer client.Close()
	if w.locker, err = redislock.New(client, redislock.Options{Prefix: w.Prefix}); err != nil {
		return err
	}
	defer w.locker.Close()

	ctx, cancel := context.WithCancel(context.Background())
	turns := make(chan turn)
	go func() {
		defer close(turns)
		defer cancel()
		for in.Scan() {
			var t turn
			if json.Unmarshal(in.Bytes(), &t) == nil {
				select {
				case turns <- t:
				case <-ctx.Done():
				}
			}
		}
	}()
	for t := range turns {
		if err := w.take(ctx, t); err != nil && ctx.Err() == nil {
			return err
		}
		w.tell(event{Kind: done})
	}
	return nil
}

// take is one turn: queue, read, compute, write, release.
func (w *worker) take(ctx context.Context, t turn) error {
	if t.NoLock {
		return w.intrude(t)
	}
	asked := w.clock.now()
	lock, err := w.locker.Acquire(ctx, lockName, redislock.WithOwner(w.Name), redislock.WithLease(t.Lease))
	if err != nil {
		return err
	}
	got := w.clock.now()
	b, err := w.file.read()
	if err != nil {
		return errors.Join(err, lock.Release(ctx))
	}
	w.tell(event{Kind: holds, At: got, Line: t.Line, Waited: got - asked, Token: lock.Token(), Fence: lock.Fence()})

	select {
	case <-time.After(t.Work):
	case <-lock.Context().Done():
	case <-ctx.Done():
		return lock.Release(ctx)
	}

	// A worker that checks lock.Context() before it writes can still be stopped between the check and
	// the write. So this worker writes in any case: the guard decides.
	b.add(t.Line, w.ledger[t.Line-1])
	b.Fence = lock.Fence()
	err = w.file.write(b)
	var stale *staleError
	switch {
	case err == nil:
		w.tell(event{Kind: wrote, Line: t.Line})
	case errors.As(err, &stale):
		w.tell(event{Kind: refused, Line: t.Line, Text: err.Error()})
		<-lock.Context().Done()
		cause := context.Cause(lock.Context())
		if !errors.Is(cause, redislock.ErrLost) {
			return fmt.Errorf("a write was refused, but the lock ended by: %w", cause)
		}
		w.tell(event{Kind: lost, Line: t.Line, Text: cause.Error()})
	default:
		return errors.Join(err, lock.Release(ctx))
	}
	if err := lock.Release(ctx); !errors.Is(err, redislock.ErrNotHeld) {
		return err
	}
	if stale == nil {
		w.tell(event{Kind: lost, Line: t.Line, Text: "it was not held any more at its release"})
	}
	return nil
}

// intrude books without the lock, with the token that it finds in the file.
func (w *worker) intrude(t turn) error {
	b, err := w.file.read()
	if err != nil {
		return err
	}
	b.add(t.Line, w.ledger[t.Line-1])
	if err := w.file.write(b); err != nil {
		return err
	}
	w.tell(event{Kind: wrote, Line: t.Line})
	return nil
}

// tell writes one line at once: pipes don't mix writes as short as this.
func (w *worker) tell(e event) {
	e.Worker = w.Name
	if e.At == 0 {
		e.At = w.clock.now()
	}
	_ = writeLine(os.Stdout, e)
}

func writeLine(out io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = out.Write(append(line, '\n'))
	return err
}

func connect(url string) (rueidis.Client, error) {
	option, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	option.DisableCache = true
	return rueidis.NewClient(option)
}
