//go:build !race

// Without the race detector: it finds no mutant, and takes ten times as long.

package virtualtest

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// mutant is the client with one mistake. The numbers are those of known faults.
type mutant struct {
	name, file, old, new string
}

var mutants = []mutant{
	// The mutants of lock.pml.
	{"stale-signal-believed", "wait.go",
		"deadline := w.line.clock.earliest(s.Deadline, time.Now())",
		"deadline := time.Now().Add(length)"},
	{"older-signal-believed", "wait.go",
		"case s.Deadline-ceilMillis(w.handed()) < w.clock.now:",
		"case false:"},
	{"deadline-from-reply", "wait.go",
		"term: term{reply.Sent, reply.Lease}",
		"term: term{now, reply.Lease}"},
	{"leaves-silently", "wait.go",
		"w.undo(errUnserved)",
		"w.end(errUnserved)"},
	{"never-checks-in", "wait.go",
		"w.due = due\n",
		"if w.due = due; w.clock.now != 0 && w.trouble == nil {\n\t\treturn\n\t}\n"},

	{"asked-is-told", "wait.go",
		"case s.Fence == 0 || w.clock.now == 0",
		"case w.clock.now == 0"},

	{"told-too-late (1)", "lease.go",
		"t.from.Add(t.length - min(t.length/noticeShare, noticeMax))",
		"t.deadline()"},
	{"never-is-a-lease (2)", "lease.go",
		"l.unconfirmed = false\n",
		"if l.unconfirmed = false; t.length == wire.Never {\n\t\treturn l\n\t}\n"},
	{"do-forgets-the-loss (4)", "hold.go",
		"if errors.Is(cause, ErrLost) {",
		"if errors.Is(cause, ErrLost) && failed != nil {"},
	{"outage-looks-busy (5)", "wait.go",
		"w.busy = w.busy || err == nil && !reply.Held",
		"w.busy = true"},
	{"extended-after-release (7)", "hold.go",
		"if !ok || l.stage != held {",
		"if !ok || l.stage == lost {"},
	{"never-by-arithmetic (36)", "lease.go",
		"return term{now, max(min(length, left), l.toKeep(now))}, left > 0",
		"return term{now, max(min(length, left), l.toKeep(now))}, true"},
	{"doubt-ignored (38)", "lease.go",
		"l.term = t.atMost(l.doubt)",
		"l.term = t"},
	{"joiner-releases (45)", "wait.go",
		"return !w.ownToken || w.clock.now != 0 || reply.Fence/1000 == reply.Now",
		"return true"},
	{"joiner-without-answer-releases (45)", "wait.go",
		"err == nil && w.isOurs(reply)",
		"w.isOurs(reply)"},

	{"foremost-never-checks-in", "wait.go",
		"w.isForemost() && sooner.Before(due)",
		"false && sooner.Before(due)"},
	{"trouble-ends-the-calls", "wait.go",
		"w.callAt(time.Now().Add(w.retry.next()))",
		"w.due = time.Now()"},
	{"lost-release-reply", "hold.go",
		"case held, l.replyLost:",
		"case held:"},
	{"renewal-not-rescheduled", "hold.go",
		"l.keeping = false\n\tl.schedule()",
		"l.keeping = false"},
	{"deadline-of-extend-from-reply", "hold.go",
		"l.lease.confirmed(term{reply.Sent, next.length})",
		"l.lease.confirmed(term{time.Now(), next.length})"},
	{"alarm-not-rearmed", "hold.go",
		"l.alarm.Reset(time.Until(next.term.notice()))",
		"_ = next"},
	{"shorter-lease-when-answered", "hold.go",
		"l.setLease(before.asked(next))",
		"_ = next"},
	{"leaver-not-retried", "leave.go",
		"err == nil || !wire.Passes(err) || s.l.ctx.Err() != nil {",
		"true || err == nil {"},
	{"leaver-too-late", "leave.go",
		"v.until = time.Now().Add(v.lives)",
		"_ = v"},
	{"clock-trusted", "clock.go",
		"today.Sub(c.at) / 10",
		"today.Sub(c.at) / 1000"},
	{"close-under-fn", "hold.go",
		"if !l.inDo {",
		"if l != nil {"},
	{"close-leaves-waiters", "signals.go",
		"h.endAll(func(w *waiter) error { return w.wrap(ErrClosed) })",
		"_ = h"},
	{"entry-left: held", "hold.go", "l.locker.forget(l)\n", "\n"},
	{"hand-over-believed-twice", "signals.go", "delete(h.waiters, w.token)", "_ = w"},
	{"entry-left: lines", "signals.go", "delete(h.lines, w.keys.Lock)", "_ = w"},
	{"entry-left: listeners", "signals.go", "delete(h.listeners, signals)", "_ = on"},
	{"entry-left: leavers", "leave.go", "delete(s.all, v.token)", "_ = v"},
}

// TestMutants: each mistake is caught.
func TestMutants(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			found := m.hunt(t, root)
			if found == "" {
				t.Fatal("not caught")
			}
			t.Logf("%-36s %5.1f s  %s", m.name, time.Since(start).Seconds(), found)
		})
	}
}

// caught is what a judge prints, or what Go says of a crash.
var caught = regexp.MustCompile(`(?m)^seed \d+: ([^:]*)|^(panic|fatal error): .*`)

// hunt runs the worlds with the mutant until one fails. Nothing is written into the tree.
func (m mutant) hunt(t *testing.T, root string) string {
	t.Helper()
	folder, path := t.TempDir(), filepath.Join(root, m.file)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		t.Fatalf("%s has this %d times instead of once, write the mutant anew:\n%s", m.file, n, m.old)
	}
	changed, overlay, binary := filepath.Join(folder, m.file), filepath.Join(folder, "overlay.json"), filepath.Join(folder, "test")
	replace, _ := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	err = errors.Join(
		os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600),
		os.WriteFile(overlay, replace, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "go", "test", "-overlay", overlay, "-c", "-o", binary, "."); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := run(t, binary, "-test.run", "^TestClients$", "-test.parallel", "1")
	if err == nil {
		return ""
	}
	return caught.FindString(out)
}

func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, name, args...)
	command.Env = append(os.Environ(), "VIRTUAL_STOP=1", "VIRTUAL_SEED=1-200")
	out, err := command.CombinedOutput()
	return string(out), err
}

// TestMutantsOfTheModel: the mistakes of a client in lock.pml and shared.pml are among those here.
func TestMutantsOfTheModel(t *testing.T) {
	text, err := os.ReadFile("../../lua/model/mutants")
	if err != nil {
		t.Fatal(err)
	}
	_, clients, found := strings.Cut(string(text), "# In the client")
	own, shared, _ := strings.Cut(clients, "# Of shared.pml, in the server")
	_, shared, _ = strings.Cut(shared, "# Of shared.pml, in the client")
	names := regexp.MustCompile(`(?m)^([a-z-]+) .*\n- `).FindAllStringSubmatch(own+shared, -1)
	if !found || len(names) == 0 {
		t.Fatal("no mutants of the client in lua/model/mutants")
	}
	for _, name := range names {
		if !slices.ContainsFunc(mutants, func(m mutant) bool { return m.name == name[1] }) {
			t.Errorf("%s is missing here", name[1])
		}
	}
}
