// Package vectors replays vectors.json with the Go client.
package vectors

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock"
)

var update = flag.Bool("update", false, "rewrite what the client does in vectors.json")

const (
	file = "vectors.json"
	// horizon is how long a client without news is watched: then it does nothing more.
	horizon = time.Hour
)

// vector is one call of Acquire, and the life of the lock that comes of it.
type vector struct {
	Name    string  `json:"name"`
	Request request `json:"request"`
	Steps   []step  `json:"steps"`
}

// request are the options, in milliseconds. See README.md for the defaults.
type request struct {
	Lease    int64  `json:"lease"` // 0: never expires
	WaitTTL  int64  `json:"wait_ttl"`
	Limit    *int64 `json:"limit,omitempty"`
	MaxHold  int64  `json:"max_hold,omitempty"`
	MinHold  int64  `json:"min_hold,omitempty"`
	Holders  *int   `json:"holders,omitempty"` // 0: any number
	NoRenew  bool   `json:"no_renewal,omitempty"`
	OwnToken bool   `json:"own_token,omitempty"`
}

// step is one event, and what the client does. Then, Or and Until come from the client, but for an Until
// that is a range.
type step struct {
	At    int64  `json:"at"`
	Event string `json:"event"`

	To       string  `json:"to,omitempty"`
	Reply    []int64 `json:"reply,omitempty"`
	Error    string  `json:"error,omitempty"`
	Passes   bool    `json:"passes,omitempty"`
	Answered bool    `json:"answered,omitempty"`
	Signal   string  `json:"signal,omitempty"`
	Lease    int64   `json:"lease,omitempty"`

	Then  []action        `json:"then"`
	Or    []action        `json:"or,omitzero"`
	Until json.RawMessage `json:"until"`
}

// action is what the client does or says. Just one field is set.
type action struct {
	Held     *held  `json:"held,omitempty"`
	Lease    *lease `json:"lease,omitempty"`
	Lost     string `json:"lost,omitempty"`
	Failed   string `json:"failed,omitempty"`
	Extended string `json:"extended,omitempty"`
	Released string `json:"released,omitempty"`
	Call     string `json:"call,omitempty"`
	Args     []any  `json:"args,omitempty"`

	at time.Duration
}

type held struct {
	Fence int64 `json:"fence"`
	lease
}

type lease struct {
	Deadline *int64 `json:"deadline"`
	Notice   *int64 `json:"notice"`
}

// rank is the order of the actions of one step.
func (a action) rank() int {
	return slices.Index([]bool{a.Held != nil, a.Lease != nil, a.Lost != "", a.Failed != "", a.Extended != "", a.Released != "", true}, true)
}

// TestVectors has the Go client live through each vector, and compares. With -update it writes down what
// the client did.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&vectors); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for i := range vectors {
		v := &vectors[i]
		if names[v.Name] {
			t.Errorf("two vectors have the name %q", v.Name)
		}
		names[v.Name] = true
		t.Run(v.Name, func(t *testing.T) { replay(t, v) })
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(file, format(t, vectors), 0o644); err != nil { //nolint:gosec // a file of the repository
			t.Fatal(err)
		}
	}
}

// replay plays the vector once for each step: up to this step, and then nothing else. So it sees what the
// client does next, and when, even if the next step would come before.
func replay(t *testing.T, v *vector) {
	var last lease
	have := false
	for i := range v.Steps {
		s := &v.Steps[i]
		from := time.Duration(-1)
		if i > 0 {
			from = ms(v.Steps[i-1].At)
		}
		var o outcome
		synctest.Test(t, func(*testing.T) { o = play(v.Request, v.Steps[:i+1]) })
		then, until := []action{}, json.RawMessage("null")
		var notice *int64
		for _, a := range o.actions {
			switch {
			case a.at > from && a.at <= ms(s.At):
				then = append(then, a)
				if a.at < ms(s.At) && !isRange(v.Steps[i-1].Until) {
					t.Errorf("step %d: it acts at %v, before that", i, a.at)
				}
			case a.at > ms(s.At) && string(until) == "null":
				until = json.RawMessage(fmt.Sprint(a.at.Milliseconds()))
				if !isRange(s.Until) {
					whole(t, a.at)
				}
			}
			if a.Lost != "" && a.at > ms(s.At) {
				notice = new(int64)
				*notice = whole(t, a.at)
			}
		}
		// The lease, where it is new.
		if o.holds {
			now := lease{Notice: notice}
			if o.expires {
				now.Deadline = new(int64)
				*now.Deadline = whole(t, o.deadline)
			}
			for j := range then {
				if then[j].Held != nil {
					then[j].Held.lease = now
					last, have = now, true
				}
			}
			if have && !reflect.DeepEqual(now, last) {
				then = append(then, action{Lease: &now})
				last = now
			}
		}
		slices.SortStableFunc(then, func(a, b action) int { return cmp.Compare(a.rank(), b.rank()) })

		var or []action
		switch {
		case s.Event != "signal":
		case slices.ContainsFunc(then, func(a action) bool { return a.Held != nil }):
			or = []action{o.asking} // another client may always ask
		case slices.ContainsFunc(o.actions, func(a action) bool { return a.Failed != "" && a.at <= from }):
			or = []action{} // it may forget waits that are over
		}
		if isRange(s.Until) {
			var bounds [2]int64
			var at int64
			if json.Unmarshal(s.Until, &bounds) != nil || json.Unmarshal(until, &at) != nil || at < bounds[0] || at > bounds[1] {
				t.Errorf("step %d: it acts next at %s, not in %s", i, until, s.Until)
			}
			until = s.Until
		}
		got := *s
		got.Then, got.Or, got.Until = then, or, until
		if *update {
			*s = got
		} else if want, have := line(t, *s), line(t, got); want != have {
			t.Errorf("step %d\nwant %s\ngot  %s", i, want, have)
		}
		if i > 0 && s.Event != "time" && string(v.Steps[i-1].Until) == fmt.Sprint(s.At) {
			t.Errorf("step %d: the client acts at the same time", i)
		}
	}
}

func isRange(until json.RawMessage) bool { return bytes.HasPrefix(until, []byte("[")) }

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

func whole(t *testing.T, d time.Duration) int64 {
	t.Helper()
	if d%time.Millisecond != 0 {
		t.Errorf("%v are no whole milliseconds: take other numbers", d)
	}
	return d.Milliseconds()
}

// outcome is what was seen of a client.
type outcome struct {
	actions  []action
	asking   action // the call by which it would ask again
	holds    bool   // after the last step, and then:
	expires  bool
	deadline time.Duration
}

// play lives through the steps, in a bubble, and watches what comes after them.
func play(r request, steps []step) (o outcome) {
	s := newServer()
	locker, err := redislock.New(client{server: s}, redislock.Options{
		WaitTTL:        ms(r.WaitTTL),
		WithoutRenewal: r.NoRenew,
		MaxHold:        ms(r.MaxHold),
		LoadMode:       redislock.LoadNever,
		Logger:         slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, step := range steps {
		time.Sleep(time.Until(s.start.Add(ms(step.At))))
		synctest.Wait()
		switch step.Event {
		case "acquire":
			go func() {
				lock, err := locker.Acquire(ctx, "orders", r.options()...)
				if err != nil {
					s.note(action{Failed: strings.Replace(kind(err), "lease", "lost", 1)})
					return
				}
				s.holds(lock)
				s.note(action{Held: &held{Fence: lock.Fence()}})
				<-lock.Context().Done()
				if cause := context.Cause(lock.Context()); errors.Is(cause, redislock.ErrLost) {
					s.note(action{Lost: kind(cause)})
				}
			}()
		case "cancel":
			cancel()
		case "extend":
			lock, _ := s.seen()
			go func() { s.note(action{Extended: kind(lock.Extend(context.Background(), ms(step.Lease)))}) }()
		case "release":
			lock, _ := s.seen()
			go func() { s.note(action{Released: kind(lock.Release(context.Background()))}) }()
		case "reply", "error":
			s.answer(step)
		case "signal":
			s.tell(step.Signal)
		case "time":
		default:
			panic("no such event: " + step.Event)
		}
		synctest.Wait()
	}
	lock, asking := s.seen()
	if lock != nil && lock.Context().Err() == nil {
		var deadline time.Time
		deadline, o.expires = lock.Deadline()
		o.holds, o.deadline = true, deadline.Sub(s.start)
	}
	o.asking = asking
	time.Sleep(horizon)
	synctest.Wait()
	o.actions = s.stop()
	locker.Close()
	return o
}

func (r request) options() (options []redislock.Option) {
	if r.Lease == 0 {
		options = append(options, redislock.WithoutExpiry())
	} else {
		options = append(options, redislock.WithLease(ms(r.Lease)))
	}
	switch {
	case r.Holders == nil:
	case *r.Holders == 0:
		options = append(options, redislock.WithShared())
	default:
		options = append(options, redislock.WithHolders(*r.Holders))
	}
	if r.MinHold != 0 {
		options = append(options, redislock.WithMinHold(ms(r.MinHold)))
	}
	if r.Limit != nil {
		options = append(options, redislock.WithWait(ms(*r.Limit)))
	}
	if r.OwnToken {
		options = append(options, redislock.WithToken("TOKEN"))
	}
	return options
}

// kind is the error as README.md names it.
func kind(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, redislock.ErrLost) && strings.Contains(err.Error(), "maximum hold"):
		return "max_hold"
	case errors.Is(err, redislock.ErrLost) && strings.Contains(err.Error(), "taken away"):
		return "taken"
	case errors.Is(err, redislock.ErrLost):
		return "lease"
	case errors.Is(err, redislock.ErrNotHeld):
		return "not_held"
	case errors.Is(err, redislock.ErrNotAcquired):
		return "busy"
	case errors.Is(err, redislock.ErrUnavailable):
		return "unavailable"
	}
	return "error"
}

// format writes a step a line.
func format(t *testing.T, vectors []vector) []byte {
	t.Helper()
	var b strings.Builder
	b.WriteString("[\n")
	for i, v := range vectors {
		fmt.Fprintf(&b, "{\"name\": %s, \"request\": %s, \"steps\": [\n", line(t, v.Name), line(t, v.Request))
		for j, s := range v.Steps {
			b.WriteString("  " + line(t, s) + comma(j, len(v.Steps)))
		}
		b.WriteString("]}" + comma(i, len(vectors)))
	}
	b.WriteString("]\n")
	return []byte(b.String())
}

func comma(i, n int) string {
	if i < n-1 {
		return ",\n"
	}
	return "\n"
}

func line(t *testing.T, what any) string {
	t.Helper()
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(what); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}
