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
	keysOnly       bool   // lock.pml and shared.pml do not have it: it shows in the keys alone
	rule           string // that finds it, also without the reference
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

	// Those of shared.pml.
	{name: "reader-overtakes", rule: "somebody is overtaken",
		old: "if fits(c, holders) and (not c.first or c.first.token == token) then",
		new: "if fits(c, holders) then"},
	{name: "too-many", rule: "too many hold the lock",
		old: "return holders == 0 or holders > 1 and shares(c) < holders",
		new: "return holders == 0 or holders > 1 and shares(c) <= holders"},
	{name: "writer-joins", rule: "a lease is taken away",
		old: "return holders == 0 or holders > 1 and shares(c) < holders",
		new: "return holders < 2 or shares(c) < holders"},
	{name: "joins-a-writer", rule: "a lease is taken away",
		old: "  elseif c.holder == '' or c.holder == SHARED then\n    read_front(c, '0')",
		new: "  elseif c.holder == '' or c.holder == SHARED or holders == 0 then\n    if c.holder ~= SHARED then\n      c.holder, c.replaces = '', true\n    end\n    read_front(c, '0')"},
	{name: "fence-for-each", rule: "those who hold the lock together have two fences",
		old: "local number = c.holder ~= '' and stored(c.fence)",
		new: "local number = c.holder ~= '' and c.holder == c.token and stored(c.fence)"},
	{name: "fence-of-the-last", rule: "the fence does not grow",
		old: "local number = c.holder ~= '' and stored(c.fence)",
		new: "local number = stored(c.fence)"},
	{name: "release-takes-all", rule: "a lease is taken away",
		old: "    call('ZREM', c.lock, c.token)\n",
		new: "    call('DEL', c.lock)\n"},
	{name: "one-at-a-time", rule: "room is not given to the first in line",
		old: "local LET_IN_MAX = 100",
		new: "local LET_IN_MAX = 1"},
	{name: "leaver-lets-nobody-in", rule: "room is not given to the first in line",
		old: "    pass_on(c)\n  end\n  return left and 2 or 0",
		new: "    local _ = c.holder == '' and pass_on(c)\n  end\n  return left and 2 or 0"},
	{name: "extend-hands-nothing-on", rule: "room is not given to the first in line",
		old: "    c.token = '' -- a waiter like any other\n    let_in(c)\n"},
	{name: "asking-again-changes", rule: "a lease is taken away",
		old: "      return hold(c, lease, 0)",
		new: "      return hold(c, lease, holders)"},
	{name: "dead-writer-blocks",
		old: "elseif c.sharing and c.holder == SHARED and waiter.holders == 1 then",
		new: "elseif false then"},
	{name: "asked-is-dead", rule: "a waiter has lost its place",
		old: "    if told and fence == '0' then\n      return\n",
		new: "    if told and fence == '0' then\n      drop_first(c, { waiter.token }, 1)\n"},
	{name: "reset-spares-some", rule: "a handed-over lease does not start short",
		old: "    if c.replaces then\n      call('UNLINK', c.lock)\n    end\n"},

	{name: "others-renewed", keysOnly: true, rule: "a lease ends by somebody else's call",
		old: "  call('ZADD', c.lock, lease == 0 and NEVER or decimal(c.now + lease + 1), token)",
		new: "  for _, t in ipairs(call('ZRANGE', c.lock, '0', '-1')) do\n    call('ZADD', c.lock, decimal(c.now + lease), t)\n  end\n  call('ZADD', c.lock, lease == 0 and NEVER or decimal(c.now + lease + 1), token)"},
	{name: "set-ends-with-the-last-call", keysOnly: true, rule: "the lock does not end with the longest lease",
		old: "call('ZRANGE', c.lock, '-1', '-1', 'WITHSCORES')[2]\n  if ends + 0",
		new: "call('ZRANGE', c.lock, '0', '0', 'WITHSCORES')[2]\n  if ends + 0"},
	{name: "ended-shares-count", keysOnly: true, rule: "room is not given to the first in line",
		old: "call('ZCOUNT', c.lock, '(' .. decimal(c.now), '+inf')",
		new: "call('ZCARD', c.lock)"},
	{name: "holders-forgotten", keysOnly: true, rule: "too many hold the lock",
		old: "    lease = lease .. '/' .. holders\n",
		new: "    lease = lease .. '/0'\n"},

	{name: "reset-leaves-block",
		old: "c.unblocks = '', true, free",
		new: "c.unblocks = '', true, false"},
	{name: "reset-drops-behind-a-holder", keysOnly: true,
		old: "c.unblocks = '', true, free",
		new: "c.unblocks = '', true, true"},
	{name: "silent-blocks", keysOnly: true,
		old: "elseif unread_since or c.unblocks or silent(c, waiter) and not moving then",
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

// TestRules has the mistakes found that the rules know, by them alone.
func TestRules(t *testing.T) {
	srv := begin(t)
	srv.judged = true
	for _, m := range mutants {
		if m.rule == "" {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			if err := srv.load(m.source(t)); err != nil {
				t.Fatal(err)
			}
			found, steps := hunt(t, srv, 400, callsRun(srv))
			if found != m.rule {
				t.Errorf("found after %d steps: %q", steps, found)
			}
		})
	}
}

// TestMutantsOfTheModel: those here, and those of the server in lock.pml and shared.pml, have the same names.
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
	text, shared, _ := bytes.Cut(text, []byte("# In the client"))
	_, shared, _ = bytes.Cut(shared, []byte("# Of shared.pml, in the server"))
	shared, _, _ = bytes.Cut(shared, []byte("# Of shared.pml, in the client"))
	text = append(bytes.Clone(text), shared...)
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
