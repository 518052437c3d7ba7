package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// baseline is the revision that the goals compare with.
const baseline = "beaa9ee"

// countPlan is how much is counted.
type countPlan struct {
	locks  int // of a batch; each gets one call
	depth  int // of the queues
	rounds int
	others []string // lock.lua's to compare with: files or revisions
}

// library is a lock.lua.
type library struct{ label, source string }

// instructed is what one call costs the server.
type instructed struct {
	Library string  `json:"library,omitempty"` // "": none
	Call    string  `json:"call"`
	Calls   int     `json:"redis_calls,omitempty"`
	Total   float64 `json:"instructions"`
	// The parts of Total: a function that does nothing, a function that only runs the same commands
	// with fixed arguments less that, and the rest, which is Lua that decides.
	Empty    float64 `json:"empty_function,omitempty"`
	Commands float64 `json:"commands,omitempty"`
	Logic    float64 `json:"logic,omitempty"`
}

// countedTime is the lease and the time that a place is kept: long, as valgrind is slow, and no longer
// than lock-state outlives its lock anyway.
const countedTime = "600000"

// counted is one kind of call.
type counted struct {
	name     string
	function string
	keys     int
	waiting  bool // on a lock that is held and has a queue
	// args are those of the next call on a lock. It notes what the call does to the lock.
	args func(l *rawLock) []string
}

// countedCalls are in an order in which each finds what it needs, and leaves queues as long as they were.
var countedCalls = []counted{
	{name: callFree, function: "lock_acquire", keys: 4, args: func(l *rawLock) []string {
		l.holder = l.token()
		return []string{l.holder, countedTime, countedTime}
	}},
	{name: "lock_extend, nobody waits", function: "lock_extend", keys: 3, args: extendArgs},
	{name: callRelease, function: "lock_release", keys: 3, args: func(l *rawLock) []string { return []string{l.holder} }},
	{name: callEnqueue, function: "lock_acquire", keys: 4, waiting: true, args: func(l *rawLock) []string {
		token := l.token()
		l.queue = append(l.queue, token)
		return []string{token, countedTime, countedTime}
	}},
	{name: "lock_acquire, checks in", function: "lock_acquire", keys: 4, waiting: true, args: func(l *rawLock) []string {
		return []string{l.queue[len(l.queue)/2], countedTime, countedTime}
	}},
	{name: "lock_extend, others wait", function: "lock_extend", keys: 3, waiting: true, args: extendArgs},
	{name: callHandOver, function: "lock_release", keys: 3, waiting: true, args: func(l *rawLock) []string {
		args := []string{l.holder}
		l.holder, l.queue = l.queue[0], l.queue[1:]
		return args
	}},
}

const (
	callFree     = "lock_acquire, free"
	callRelease  = "lock_release, nobody waits"
	callEnqueue  = "lock_acquire, queues"
	callHandOver = "lock_release, hands over"
	callSet      = "SET NX PX"
	callDelete   = "compare and delete (EVALSHA)"
	// Sums of two.
	freeCycle      = "free cycle"
	contendedCycle = "contended cycle"
	setCycle       = "SET and delete"
)

func extendArgs(l *rawLock) []string { return []string{l.holder, countedTime} }

// withMore are the arguments of the next call on a lock, and what the bare functions need beside them: who
// is first in the queue before that call, and the signal list.
func (k counted) withMore(l *rawLock) (args, more []string) {
	if len(l.queue) > 0 {
		more = append(more, l.queue[0])
	}
	more = append(more, l.signal())
	return k.args(l), more
}

func (k counted) call(c rueidis.Client, function string, l *rawLock, args []string) rueidis.Completed {
	keys := append(l.keys(), l.signal())[:k.keys]
	return c.B().Fcall().Function(function).Numkeys(int64(k.keys)).Key(keys...).Arg(args...).Build()
}

// readLibrary takes a file, or a revision of lua/lock.lua.
func readLibrary(of string) (library, error) {
	text, err := os.ReadFile(of)
	if err != nil {
		var failed error
		if text, failed = exec.Command("git", "show", of+":lua/lock.lua").Output(); failed != nil {
			return library{}, fmt.Errorf("BENCH_LUA=%s is no file (%w) and no revision (git show: %w)", of, err, failed)
		}
	}
	return library{of, string(text)}, nil
}

func instructions(ctx context.Context, b *bench) error {
	if !hasCallgrind() {
		b.say("instructions are not counted: there is no valgrind (apt-get install valgrind; `make bench` installs it)")
		return nil
	}
	libraries := []library{{oursName, redislock.Source()}}
	for _, of := range b.plan.count.others {
		l, err := readLibrary(of)
		if err != nil && of != baseline { // which a copy without history lacks
			return err
		}
		if err == nil {
			libraries = append(libraries, l)
		}
	}
	b.say("instructions of each function")
	var all []*instructed
	for _, l := range append(libraries, library{}) {
		counts, err := b.countOn(ctx, l)
		if err != nil {
			return fmt.Errorf("%s: %w", l.label, err)
		}
		all = append(all, counts...)
	}
	b.report.Instructions = all
	b.instructionTable(all, libraries)
	return nil
}

// countOn has a server of its own for each library: what another one has left in Lua's tables costs per cents.
func (b *bench) countOn(ctx context.Context, l library) ([]*instructed, error) {
	v, err := startCallgrind(ctx)
	if err != nil {
		return nil, err
	}
	defer v.stop()
	if l.source == "" {
		return b.countPeer(ctx, v)
	}
	return b.countLibrary(ctx, v, l)
}

// least keeps the least of what was counted: what is above it is a hash table that grows.
func least(to *float64, n float64, err error) error {
	if *to == 0 || n < *to {
		*to = n
	}
	return err
}

const compareAndDelete = `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`

// countPeer counts what the usual lock without a queue sends.
func (b *bench) countPeer(ctx context.Context, v *callgrind) ([]*instructed, error) {
	c := v.client
	sha, err := c.Do(ctx, c.B().ScriptLoad().Script(compareAndDelete).Build()).ToString()
	if err != nil {
		return nil, err
	}
	set, del := &instructed{Call: callSet}, &instructed{Call: callDelete}
	for range b.plan.count.rounds {
		var sets, dels []rueidis.Completed
		for range b.plan.count.locks {
			key, token := v.newLock().keys()[0], newToken()
			sets = append(sets, c.B().Set().Key(key).Value(token).Nx().PxMilliseconds(600_000).Build())
			dels = append(dels, c.B().Evalsha().Sha1(sha).Numkeys(1).Key(key).Arg(token).Build())
		}
		n, err := v.count(ctx, sets)
		if err := least(&set.Total, n, err); err != nil {
			return nil, err
		}
		n, err = v.count(ctx, dels)
		if err := least(&del.Total, n, err); err != nil {
			return nil, err
		}
	}
	return []*instructed{set, del, {Call: setCycle, Total: set.Total + del.Total}}, nil
}

// locksFor makes locks as the counted calls expect them.
func (b *bench) locksFor(ctx context.Context, v *callgrind, n int, waiting bool) ([]*rawLock, error) {
	c := v.client
	var locks []*rawLock
	var calls []rueidis.Completed
	for range n {
		l := v.newLock()
		locks = append(locks, l)
		l.holder = l.token()
		calls = append(calls, l.take(c, l.holder))
		for waiting && len(l.queue) < b.plan.count.depth {
			l.queue = append(l.queue, l.token())
			calls = append(calls, l.take(c, l.queue[len(l.queue)-1]))
		}
		if !waiting {
			calls = append(calls, l.call(c, "lock_release", l.holder))
		}
	}
	return locks, send(ctx, c, calls)
}

func (l *rawLock) take(c rueidis.Client, token string) rueidis.Completed {
	return countedCalls[0].call(c, "lock_acquire", l, []string{token, countedTime, countedTime})
}

// settle does what the client does after a hand-over: it takes the signal and confirms the lease, before
// that runs out.
func settle(ctx context.Context, c rueidis.Client, locks []*rawLock) error {
	var calls []rueidis.Completed
	for _, l := range locks {
		calls = append(calls, l.call(c, "lock_extend", l.holder, countedTime), c.B().Lpop().Key(l.signal()).Build())
	}
	for i, reply := range c.DoMulti(ctx, calls...) {
		if i%2 == 1 {
			continue
		}
		if held, err := reply.AsInt64(); err != nil || held != 1 {
			return fmt.Errorf("a lease that was handed over has run out, the machine is too slow: %w", err)
		}
	}
	return nil
}

// countLibrary counts all calls of a library.
func (b *bench) countLibrary(ctx context.Context, v *callgrind, of library) ([]*instructed, error) {
	c := v.client
	load := func(source string) error {
		return c.Do(ctx, c.B().FunctionLoad().Replace().FunctionCode(source).Build()).Error()
	}
	if err := load(of.source); err != nil {
		return nil, err
	}
	counts := make([]*instructed, len(countedCalls))
	fixed, err := b.record(ctx, v, func(i, n int) {
		counts[i] = &instructed{Library: of.label, Call: countedCalls[i].name, Calls: n}
	})
	if err != nil {
		return nil, err
	}
	if err := load(fixed); err != nil {
		return nil, err
	}
	// The bare functions have locks of their own: they keep nothing right.
	locks := make(map[bool][2][]*rawLock)
	for _, waiting := range []bool{false, true} {
		ours, err1 := b.locksFor(ctx, v, b.plan.count.locks, waiting)
		bares, err2 := b.locksFor(ctx, v, b.plan.count.locks, waiting)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		locks[waiting] = [2][]*rawLock{ours, bares}
	}
	bare, emptyMore := make([]float64, len(counts)), make([]float64, len(counts))
	for range b.plan.count.rounds {
		for i, k := range countedCalls {
			var ours, bares, empty, empties []rueidis.Completed
			for _, l := range locks[k.waiting][0] {
				args := k.args(l)
				ours = append(ours, k.call(c, k.function, l, args))
				empty = append(empty, k.call(c, fmt.Sprint("empty_", i), l, args))
			}
			for _, l := range locks[k.waiting][1] {
				args, more := k.withMore(l)
				args = append(args, more...)
				bares = append(bares, k.call(c, fmt.Sprint("bare_", i), l, args))
				empties = append(empties, k.call(c, fmt.Sprint("empty_", i), l, args))
			}
			for _, batch := range []struct {
				calls []rueidis.Completed
				to    *float64
			}{{ours, &counts[i].Total}, {empty, &counts[i].Empty}, {bares, &bare[i]}, {empties, &emptyMore[i]}} {
				n, err := v.count(ctx, batch.calls)
				if err := least(batch.to, n, err); err != nil {
					return nil, fmt.Errorf("%s: %w", k.name, err)
				}
				if k.name == callHandOver && batch.to == &counts[i].Total {
					if err := settle(ctx, c, locks[true][0]); err != nil {
						return nil, err
					}
				}
			}
		}
	}
	for i, n := range counts {
		n.Commands = bare[i] - emptyMore[i]
		n.Logic = n.Total - n.Empty - n.Commands
	}
	for _, cycle := range [][3]string{{freeCycle, callFree, callRelease}, {contendedCycle, callEnqueue, callHandOver}} {
		x, y := countOf(counts, of.label, cycle[1]), countOf(counts, of.label, cycle[2])
		counts = append(counts, &instructed{of.label, cycle[0], x.Calls + y.Calls, x.Total + y.Total,
			x.Empty + y.Empty, x.Commands + y.Commands, x.Logic + y.Logic})
	}
	return counts, nil
}

func countOf(all []*instructed, library, call string) *instructed {
	i := slices.IndexFunc(all, func(n *instructed) bool { return n.Library == library && n.Call == call })
	if i < 0 {
		return nil
	}
	return all[i]
}

// record makes each call once and notes the commands that its function runs, by MONITOR. It returns a
// library of functions that run the same ones with fixed arguments, and of functions that do nothing.
func (b *bench) record(ctx context.Context, v *callgrind, seen func(i, commands int)) (string, error) {
	c := v.client
	conn, err := net.Dial("unix", v.socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "MONITOR\r\n"); err != nil {
		return "", err
	}
	lines := bufio.NewScanner(conn)
	if !lines.Scan() || lines.Text() != "+OK" {
		return "", fmt.Errorf("MONITOR: %q, %w", lines.Text(), lines.Err())
	}
	locks := make(map[bool][]*rawLock)
	for _, waiting := range []bool{false, true} {
		if locks[waiting], err = b.locksFor(ctx, v, 1, waiting); err != nil {
			return "", err
		}
	}
	var fixed strings.Builder
	fixed.WriteString("#!lua name=fixed\n")
	for i, k := range countedCalls {
		l := locks[k.waiting][0]
		args, more := k.withMore(l)
		mark := func() error { return c.Do(ctx, c.B().Exists().Key(k.name).Build()).Error() }
		if err := errors.Join(mark(), send(ctx, c, []rueidis.Completed{k.call(c, k.function, l, args)}), mark()); err != nil {
			return "", err
		}
		values := make(map[string]string)
		for j, key := range append(l.keys(), l.signal())[:k.keys] {
			values[key] = fmt.Sprintf("keys[%d]", j+1)
		}
		for j, arg := range append(args, more...) {
			if slices.Contains(args[1:], arg) {
				continue // a time
			}
			if _, known := values[arg]; !known {
				values[arg] = fmt.Sprintf("args[%d]", j+1)
			}
		}
		reply := "1"
		if k.keys == 4 {
			reply = "{ 1, 1795457705672123, 600000, 1795457705672 }"
		}
		fmt.Fprintf(&fixed, "redis.register_function('empty_%d', function() return %s end)\n", i, reply)
		fmt.Fprintf(&fixed, "redis.register_function('bare_%d', function(keys, args)\n", i)
		commands := 0
		for marks := 0; marks < 2; {
			if !lines.Scan() {
				return "", fmt.Errorf("MONITOR: %w", lines.Err())
			}
			if strings.Contains(lines.Text(), strconv.Quote(k.name)) {
				marks++
			} else if _, command, found := strings.Cut(lines.Text(), " lua] "); found && marks == 1 {
				commands++
				fmt.Fprintf(&fixed, "  redis.call(%s)\n", luaArgs(command, values))
			}
		}
		fmt.Fprintf(&fixed, "  return %s\nend)\n", reply)
		seen(i, commands)
	}
	return fixed.String(), nil
}

// luaArgs has a command as MONITOR shows it as the arguments of redis.call. Values are what differs
// from lock to lock, each with the Lua that has it.
func luaArgs(command string, values map[string]string) string {
	var args []string
	for command != "" {
		quoted, err := strconv.QuotedPrefix(command)
		if err != nil {
			break
		}
		command = strings.TrimPrefix(command[len(quoted):], " ")
		for text, lua := range values {
			quoted = strings.ReplaceAll(quoted, text, `" .. `+lua+` .. "`)
		}
		quoted = strings.TrimSuffix(strings.TrimPrefix(quoted, `"" .. `), ` .. ""`)
		args = append(args, quoted)
	}
	return strings.Join(args, ", ")
}

// instructionTable has a row for each call. What another lock.lua takes is beside ours.
func (b *bench) instructionTable(all []*instructed, libraries []library) {
	t := &table{
		title: "Instructions of the server, a call",
		note: fmt.Sprintf("Counted by callgrind, in pipelines of %d calls, with queues of %d. Bare: the same commands in a function without logic. "+
			"What is beside them is lock.lua's own Lua. For another lock.lua: its instructions, and ours against them.", b.plan.count.locks, b.plan.count.depth),
		columns: []string{"call", "redis.call's", "instructions", "empty function", "the commands, bare", "Lua that decides"},
	}
	for _, l := range libraries[1:] {
		t.columns = append(t.columns, l.label)
	}
	whole := func(v float64) string { return fmt.Sprintf("%.0f", v) }
	for _, n := range all {
		cells := []any{n.Call, n.Calls, whole(n.Total), whole(n.Empty), whole(n.Commands), whole(n.Logic)}
		switch n.Library {
		case "":
			cells = []any{n.Call, "-", whole(n.Total), "-", "-", "-"}
		case oursName:
		default:
			continue
		}
		for _, l := range libraries[1:] {
			if other := countOf(all, l.label, n.Call); other != nil {
				cells = append(cells, fmt.Sprintf("%.0f (%.3f)", other.Total, n.Total/other.Total))
			} else {
				cells = append(cells, "-")
			}
		}
		t.row(cells...)
	}
	b.table(t)
	b.instructionGoals(all)
}

func (b *bench) instructionGoals(all []*instructed) {
	var calls []string
	few := true
	for _, limit := range []struct {
		call string
		most int
	}{{callFree, 7}, {callEnqueue, 9}, {callHandOver, 11}, {callRelease, 4}} {
		n := countOf(all, oursName, limit.call).Calls
		few = few && n <= limit.most
		calls = append(calls, strconv.Itoa(n))
	}
	b.report.reach(goalCalls, few, "%s", strings.Join(calls, ", "))
	old := countOf(all, baseline, freeCycle)
	if old == nil {
		return
	}
	free := countOf(all, oursName, freeCycle).Total
	freeRatio := free / old.Total
	ratio := countOf(all, oursName, contendedCycle).Total / countOf(all, baseline, contendedCycle).Total
	b.report.reach(goalInstructions, freeRatio <= 0.75 && ratio <= 0.80, "%.3f; %.3f (a free cycle is %.2f times SET and delete)",
		freeRatio, ratio, free/countOf(all, "", setCycle).Total)
}

// othersOf splits the list of BENCH_LUA. A file counts from where the user is.
func othersOf(list string) []string {
	var others []string
	for of := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		if _, err := os.Stat(of); err == nil {
			of = filepath.Clean(of)
		}
		others = append(others, of)
	}
	return others
}
