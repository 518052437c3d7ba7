package model

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/seed-ee05a192/redislock"
)

// mutant is lock.lua with one mistake. The names are those of the mutants of lock.pml; a client's mistakes
// are in internal/virtualtest.
type mutant struct {
	name, old, new string
	keysOnly       bool // lock.pml does not have it: it shows in the keys alone
}

var mutants = []mutant{
	{name: "release-by-anyone",
		old: "  if c.holder == c.token then\n    c.holder, c.replaces = '', true",
		new: "  if c.holder ~= '' and c.holder ~= SHARED then\n    c.holder, c.replaces = '', true"},
	{name: "signal-without-grant",
		old: "      call('SET', c.lock, token, 'PX', lease_text)",
		new: "      call('SET', c.lock, c.token, 'PX', lease_text)"},
	{name: "claim-not-short",
		old: "    if lease == 0 or lease > CLAIM_MS then",
		new: "    if lease == 0 then"},
	{name: "check-in-not-noted",
		old: "local entry = now .. ' ' .. wait",
		new: "local entry = c.mine or now .. ' ' .. wait"},
	{name: "lapsed-granted",
		old: "if not dead and not lapsed(c, waiter) and",
		new: "if not dead and"},
	{name: "newcomer-overtakes",
		old: "      let_in(c)\n    end\n    if fits(c, holders) and (not c.first or c.first.token == token) then",
		new: "    end\n    if fits(c, holders) then"},
	{name: "release-drops",
		old: "    c.holder, c.replaces = '', true\n    pass_on(c)\n    return 1\n  elseif",
		new: "    call('DEL', c.lock)\n    return 1\n  elseif"},
	{name: "last-first",
		old: "call('ZRANGE', c.queue, '0', last)",
		new: "call('ZREVRANGE', c.queue, '0', last)"},
	{name: "fence-repeats",
		old: "  return after(c, c.fence)",
		new: "  return c.fence or '0', stored(c.fence) or 0"},
	{name: "fence-not-from-clock",
		old: "    return c.micros_text, c.micros\n",
		new: "    return decimal(number + 1), number + 1\n"},
	{name: "leaver-stays",
		old: "local left = leave(c, c.token)",
		new: "local left = call('ZSCORE', c.queue, c.token)"},
	{name: "extend-by-anyone",
		old: "if c.holder ~= c.token then",
		new: "if c.holder == '' then"},
	{name: "check-in-requeues",
		old: "    elseif not (c.mine and lapsed(c, waiter_of(c, c.token, c.mine))) then",
		new: "    elseif not c.mine then"},
	{name: "expired-not-passed-on",
		old: "      let_in(c)\n    end\n    if fits(c, holders) and",
		new: "    end\n    if fits(c, holders) and"},

	{name: "reset-leaves-block",
		old: "c.unblocks = '', true, free",
		new: "c.unblocks = '', true, false"},
	{name: "reset-drops-behind-a-holder", keysOnly: true,
		old: "c.unblocks = '', true, free",
		new: "c.unblocks = '', true, true"},
	{name: "silent-blocks", keysOnly: true,
		old: "elseif unread_since or c.unblocks or silent(c, waiter) then",
		new: "elseif unread_since or c.unblocks then"},
	{name: "silent-too-soon", keysOnly: true,
		old: "waiter.called + math.min(waiter.wait / 3, SILENCE_MS) + CLAIM_MS",
		new: "waiter.called + CLAIM_MS"},
	{name: "any-list-told", keysOnly: true,
		old: "if not list or not is_signal_list(c.lock, list) then",
		new: "if not list then"},
	{name: "prefix-not-told", keysOnly: true,
		old: "if prefix and lock:sub(1, #prefix + 1) == prefix .. ':' then",
		new: "if false then"},
	{name: "tag-not-told", keysOnly: true,
		old: "return tag and tag ~= '{}' and list:find(tag, 1, true)",
		new: "return false"},
	{name: "list-of-jobs-told", keysOnly: true,
		old: "if not deadline then -- somebody else's list",
		new: "if false then"},
	{name: "signal-left-in-jobs", keysOnly: true,
		old: "somebody else's list\n      call('RPOP', list)",
		new: "somebody else's list"},
	{name: "token-of-any-length", keysOnly: true,
		old: "elseif #value > TOKEN_MAX then",
		new: "elseif false then"},
	{name: "key-of-any-length", keysOnly: true,
		old: "if #key > KEY_MAX then",
		new: "if false then"},
}

// source is the text of lock.lua with the mistake in it.
func (m mutant) source(t *testing.T) string {
	t.Helper()
	text := redislock.Source()
	if n := strings.Count(text, m.old); n != 1 {
		t.Fatalf("%s: lock.lua has this %d times instead of once, write the mutant anew:\n%s", m.name, n, m.old)
	}
	return strings.Replace(text, m.old, m.new, 1)
}

// TestMutants has each mistake found by the reference.
func TestMutants(t *testing.T) {
	srv := begin(t)
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			if err := srv.load(m.source(t)); err != nil {
				t.Fatal(err)
			}
			found, steps := hunt(t, srv, 400, callsRun(srv))
			if found == "" {
				t.Errorf("%s is not caught", m.name)
			}
			t.Logf("%-21s %5d steps: %s", m.name, steps, found)
		})
	}
}

// TestMutantsOfTheModel: those here, and those of the server in lock.pml, have the same names.
func TestMutantsOfTheModel(t *testing.T) {
	text, err := os.ReadFile("mutants")
	if err != nil {
		t.Fatal(err)
	}
	var here, there []string
	for _, m := range mutants {
		if !m.keysOnly {
			here = append(here, m.name)
		}
	}
	text, _, _ = bytes.Cut(text, []byte("# In the client"))
	for _, found := range regexp.MustCompile(`(?m)^([a-z-]+) .*\n- `).FindAllSubmatch(text, -1) {
		there = append(there, string(found[1]))
	}
	slices.Sort(here)
	slices.Sort(there)
	if !slices.Equal(here, there) {
		t.Errorf("here:  %q\nthere: %q", here, there)
	}
}

// hunt looks for a failure from always the same seed, and says which property failed after how many steps.
func hunt(t *testing.T, srv *realServer, checks int, run func(*rapid.T)) (found string, steps int) {
	t.Helper()
	settings(t, map[string]string{
		"rapid.seed": "1", "rapid.shrinktime": "0s", "rapid.nofailfile": "true", "rapid.steps": "50",
		"rapid.checks": strconv.Itoa(checks),
	})
	before := srv.steps
	judge := &judge{name: t.Name()}
	rapid.Check(judge, func(t *rapid.T) {
		if judge.failure != "" {
			return
		}
		defer func() {
			if t.Failed() && steps == 0 {
				steps = srv.steps - before
			}
		}()
		run(t)
	})
	if err := srv.revive(); err != nil {
		t.Fatal(err)
	}
	_, found, _ = strings.Cut(judge.failure, "tests: ")
	found, _, _ = strings.Cut(found, "\n")
	return found, steps
}

// judge is a test that is supposed to fail.
type judge struct {
	name, failure string
}

func (j *judge) Helper()                   {}
func (j *judge) Name() string              { return j.name }
func (j *judge) Logf(string, ...any)       {}
func (j *judge) Log(...any)                {}
func (j *judge) Skipf(string, ...any)      {}
func (j *judge) Skip(...any)               {}
func (j *judge) SkipNow()                  {}
func (j *judge) Errorf(f string, a ...any) { j.failure = fmt.Sprintf(f, a...) }
func (j *judge) Error(a ...any)            { j.failure = fmt.Sprint(a...) }
func (j *judge) Fatalf(f string, a ...any) { j.Errorf(f, a...) }
func (j *judge) Fatal(a ...any)            { j.Error(a...) }
func (j *judge) FailNow()                  {}
func (j *judge) Fail()                     {}
func (j *judge) Failed() bool              { return false }
