// Package model ties lua/lock.lua to its model: tests that compare the library with its reference in plain
// Go, internal/memory, step by step. See README.md.
package model

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"pgregory.net/rapid"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/memory"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// began is what the server's clock shows at the start of each run, in microseconds.
const began = 1_767_225_600_000_000

const millisecond = 1000 // of microseconds

// realServer is a redis-server whose clock stands still but when a test sets it: so replies, TTLs and
// expiry are exact to the microsecond, with lock.lua as it is shipped.
type realServer struct {
	*redistest.Server
	client rueidis.Client
	narrow rueidis.Client // of a user who may write only one of the signal lists
	dump   string
	loaded string // the library
	steps  int
	judged bool // by the rules alone, and not by the reference
}

const memoryDisk = "/dev/shm"

// patience is how long a step may take: a mistake in lock.lua can be a loop without end.
const patience = 10 * time.Second

// dumpScript returns all keys. A call costs ten times as much as usual here, as the server
// reads its clock from a file: so the type follows from the name, unless it is a strange one.
const dumpScript = `
local keys = {}
for i, name in ipairs(redis.call('KEYS', '*')) do
  local what, kind, content = string.match(name, '^[^:]*')
  if what == 'lock' then
    kind, content = 'string', { redis.pcall('GET', name) }
    if content[1].err then
      kind, content = 'zset', redis.pcall('ZRANGE', name, 0, -1, 'WITHSCORES')
    end
  elseif what == 'lock-queue' then
    kind, content = 'zset', redis.pcall('ZRANGE', name, 0, -1, 'WITHSCORES')
  elseif what == 'lock-state' then
    kind, content = 'hash', redis.pcall('HGETALL', name)
  else
    kind, content = 'list', redis.pcall('LRANGE', name, 0, -1)
  end
  if content.err then
    kind, content = redis.call('TYPE', name).ok, redis.call('SMEMBERS', name)
  end
  keys[i] = { name, kind, redis.call('PEXPIRETIME', name), content }
end
return keys`

// begin starts a server for a test.
func begin(t *testing.T) *realServer {
	t.Helper()
	if _, err := os.Stat(memoryDisk); err == nil {
		t.Setenv("TMPDIR", memoryDisk) // of the file with the time: on a disk, to replace it takes a millisecond
	}
	srv := &realServer{}
	t.Cleanup(srv.end)
	if err := srv.start(); err != nil {
		t.Fatal(err)
	}
	if err := srv.load(redislock.Source()); err != nil {
		t.Fatal(err)
	}
	return srv
}

func (s *realServer) start() (err error) {
	if s.Server, err = redistest.StartWithClock("--enable-debug-command", "yes"); err != nil {
		return err
	}
	if s.client, err = s.connect("default"); err != nil {
		return err
	}
	// Else Redis 8 removes some keys in their last millisecond, in which a call still finds the others.
	if err = s.redis("DEBUG", "SET-ACTIVE-EXPIRE", "0"); err != nil {
		return err
	}
	if s.dump, err = s.client.Do(context.Background(), s.client.B().ScriptLoad().Script(dumpScript).Build()).ToString(); err != nil {
		return err
	}
	if err = s.redis("ACL", "SETUSER", "narrow", "on", "nopass", "+@all", "~lock:*", "~lock-queue:*", "~lock-state:*", "~"+narrowList); err != nil {
		return err
	}
	s.narrow, err = s.connect("narrow")
	return err
}

func (s *realServer) end() {
	for _, client := range []rueidis.Client{s.client, s.narrow} {
		if client != nil {
			client.Close()
		}
	}
	if s.Server != nil {
		_ = s.Stop()
	}
	*s = realServer{steps: s.steps}
}

// revive replaces a server that hangs.
func (s *realServer) revive() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s.client.Do(ctx, s.client.B().Ping().Build()).Error() == nil {
		return nil
	}
	if err := s.Kill(); err != nil {
		return err
	}
	s.end()
	return s.start()
}

func (s *realServer) connect(user string) (rueidis.Client, error) {
	return rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{s.Addr()}, Username: user, Password: "x",
		ForceSingleClient: true, DisableCache: true, PipelineMultiplex: -1,
	})
}

func (s *realServer) redis(words ...string) error {
	return s.client.Do(context.Background(), s.client.B().Arbitrary(words...).Build()).Error()
}

func (s *realServer) load(source string) error {
	s.loaded = source
	return s.redis("FUNCTION", "LOAD", "REPLACE", source)
}

// world is one run: the real server, and the reference beside it.
type world struct {
	*rapid.T
	srv       *realServer
	reference *memory.Server
	micros    int64           // the server's clock
	keys      []memory.Key    // after the last step
	names     map[string]bool // of all keys that there ever were
	script    []string
	rules     rules
}

func newWorld(t *rapid.T, srv *realServer) *world {
	w := &world{T: t, srv: srv, names: map[string]bool{}, reference: memory.New(redislock.Version), rules: rules{map[string]map[string]asked{}}}
	w.setClock(began)
	w.do("FLUSHALL")
	return w
}

// do is a step: a command, and the look at all keys, in one round trip.
func (w *world) do(words ...string) any {
	return w.as(w.srv.client, words...)
}

func (w *world) as(client rueidis.Client, words ...string) any {
	if w.srv.Server == nil {
		w.script = append(w.script, quoted(words))
		return nil
	}
	dump := w.srv.client.B().Evalsha().Sha1(w.srv.dump).Numkeys(0).Build()
	command := client.B().Arbitrary(words...).Build()
	var replies []rueidis.RedisResult
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	user := ""
	if client == w.srv.client {
		replies = client.DoMulti(ctx, command, dump)
	} else {
		user = "--user narrow --pass x "
		replies = []rueidis.RedisResult{client.Do(ctx, command), w.srv.client.Do(ctx, dump)}
	}
	reply := parse(w.T, replies[0])
	w.look(replies[1])
	w.script = append(w.script, fmt.Sprintf("redis-cli %s%s  # %v", user, quoted(words), reply))
	return reply
}

// parse turns a reply into int64, string, nil, failure or []any of those.
func parse(t *rapid.T, result rueidis.RedisResult) any {
	reply, err := result.ToAny()
	if rueidis.IsRedisNil(err) {
		return nil
	}
	if refused := (*rueidis.RedisError)(nil); errors.As(err, &refused) {
		word, _, _ := strings.Cut(refused.Error(), " ")
		return memory.Failure(word)
	}
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func (w *world) look(result rueidis.RedisResult) {
	reply, ok := parse(w.T, result).([]any)
	if !ok {
		w.Fatal("no dump")
	}
	text := func(v any) string { s, _ := v.(string); return s }
	w.keys = w.keys[:0:0]
	for _, v := range reply {
		fields := v.([]any)
		k := memory.Key{Name: text(fields[0]), Kind: text(fields[1])}
		if end := fields[2].(int64); end != -1 {
			k.End = end
		}
		for _, item := range fields[3].([]any) {
			k.Items = append(k.Items, text(item))
		}
		if strings.HasPrefix(k.Name, "lock:") && k.Kind == "zset" {
			k.Items = slices.Concat(slices.DeleteFunc(slices.Collect(slices.Chunk(k.Items, 2)), w.over)...)
			if len(k.Items) == 0 {
				continue
			}
		}
		k.Sort()
		w.keys = append(w.keys, k)
		w.names[k.Name] = true
	}
	slices.SortFunc(w.keys, func(a, b memory.Key) int { return strings.Compare(a.Name, b.Name) })
}

// over: a share, token and end, that has run out. lock.lua drops it sooner or later.
func (w *world) over(share []string) bool {
	end, err := strconv.ParseInt(share[1], 10, 64)
	return err == nil && end <= w.now()
}

// compare has the reference make the same step, and fails the run unless reply and keys are the same then. It
// returns the reply. Without a real server it is that of the reference.
func (w *world) compare(got any, step func(*memory.Server) any) any {
	w.srv.steps++
	if w.srv.judged {
		return got
	}
	want := step(w.reference)
	if w.srv.Server == nil {
		w.keys = w.reference.Keys()
		return want
	}
	if !reflect.DeepEqual(got, want) {
		w.fail("differs from the reference", "replies %v, the reference: %v", got, want)
	}
	if keys := w.reference.Keys(); !slices.EqualFunc(w.keys, keys, memory.Key.Equal) {
		w.fail("differs from the reference", "leaves behind\n%s\nthe reference:\n%s", listed(w.keys), listed(keys))
	}
	return got
}

func listed(keys []memory.Key) string {
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "  %s %s, until %d\n", k.Kind, k.Name, k.End)
		for _, item := range k.Items {
			fmt.Fprintf(&b, "      %s\n", item)
		}
	}
	return b.String()
}

// fail ends the run. What is the same for all failures of a kind comes first.
func (w *world) fail(what, format string, args ...any) {
	w.Helper()
	w.Logf("%s: %s\n\nAll commands, for a shell at the top of the repository:\n%s\n%s\n",
		what, fmt.Sprintf(format, args...), replay, strings.Join(w.script, "\n"))
	w.Fatal(what)
}

// replay starts a server whose clock stands still.
const replay = `
clock() { echo "$1" >/tmp/clock.new && mv /tmp/clock.new /tmp/clock; }
clock '2026-01-01 00:00:00.0000005'
TZ=UTC LD_PRELOAD="$(echo /usr/lib/*/faketime/libfaketime.so.1):libc.so.6" FAKETIME_TIMESTAMP_FILE=/tmp/clock \
  FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 redis-server --port 6379 --save '' >/dev/null & sleep 1
redis-cli -x FUNCTION LOAD REPLACE <lua/lock.lua
redis-cli ACL SETUSER narrow on nopass +@all '~lock:*' '~lock-queue:*' '~lock-state:*' '~` + narrowList + `'
`

func quoted(words []string) string {
	var b strings.Builder
	for i, word := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		if word == "" || strings.ContainsAny(word, " {}'\"\\*@\n") {
			word = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		b.WriteString(word)
	}
	return b.String()
}

func (w *world) fcall(client rueidis.Client, function string, keys []string, args ...string) any {
	command := "FCALL"
	if function == "lock_inspect" || function == "lock_version" {
		command = "FCALL_RO"
	}
	words := append([]string{command, function, strconv.Itoa(len(keys))}, keys...)
	may := func(key string) bool { return client == w.srv.client || key == narrowList }
	before := w.keys
	reply := w.as(client, append(words, args...)...)
	reply = w.compare(reply, func(s *memory.Server) any { return s.Call(function, keys, args, may) })
	w.rules.watch(&step{
		world: w, function: function, keys: keys, args: args, reply: reply, may: may,
		before: byName(before), after: byName(w.keys),
	})
	return reply
}

// same is for a step that changes nothing.
func same(*memory.Server) any { return nil }

func (w *world) setClock(micros int64) {
	at := time.UnixMicro(micros).UTC()
	if w.srv.Server != nil {
		if err := w.srv.StopClock(at); err != nil {
			w.Fatal(err)
		}
	}
	w.micros = micros
	w.script = append(w.script, "clock '"+at.Format("2006-01-02 15:04:05.000000")+"5'")
	w.reference.SetClock(micros)
}

func (w *world) now() int64 { return w.micros / millisecond }

func (w *world) pop(list string) (signal string, ok bool) {
	reply := w.compare(w.do("LPOP", list), func(s *memory.Server) any { return s.Pop(list) })
	signal, ok = reply.(string)
	return signal, ok
}

func (w *world) del(name string) {
	w.do("DEL", name)
	w.rules.forget()
	w.compare(nil, func(s *memory.Server) any { s.Delete(name); return nil })
}

// stuff puts what is no signal into a list.
func (w *world) stuff(name, element string) {
	w.do("RPUSH", name, element)
	w.compare(nil, func(s *memory.Server) any { s.Stuff(name, element); return nil })
}

func (w *world) key(name string) memory.Key {
	for _, k := range w.keys {
		if k.Name == name {
			return k
		}
	}
	return memory.Key{}
}

// reload is an upgrade of the library, to the same one.
func (w *world) reload() {
	w.do("FUNCTION", "LOAD", "REPLACE", w.srv.loaded)
	w.script[len(w.script)-1] = "redis-cli -x FUNCTION LOAD REPLACE <lua/lock.lua"
	w.compare(nil, same)
}

// snapshot is all that a server knew at some time.
type snapshot struct {
	keys      []memory.Key
	reference *memory.Server
}

func (w *world) snapshot() snapshot {
	s := snapshot{w.keys, w.reference.Clone()}
	s.reference.DropEnded() // the keys are without them
	return s
}

// failOver goes on with an older state, as a replica does that had not got the last writes.
func (w *world) failOver(to snapshot) {
	w.rules.forget()
	w.do("FLUSHALL")
	for _, k := range to.keys {
		words := []string{map[string]string{"string": "SET", "zset": "ZADD", "hash": "HSET", "list": "RPUSH", "set": "SADD"}[k.Kind], k.Name}
		if k.Kind == "zset" {
			for i := 0; i < len(k.Items); i += 2 {
				words = append(words, k.Items[i+1], k.Items[i])
			}
		} else {
			words = append(words, k.Items...)
		}
		w.do(words...)
		if k.End != 0 {
			w.do("PEXPIREAT", k.Name, strconv.FormatInt(k.End, 10))
		}
	}
	w.compare(nil, func(s *memory.Server) any {
		*s = *to.reference.Clone()
		s.SetClock(w.micros + millisecond) // PEXPIREAT removes what has not a millisecond left
		s.Micros = w.micros
		return nil
	})
}

// moments are the milliseconds at which something happens by itself: a key, a lease, a place or a
// signal runs out.
func (w *world) moments() []int64 {
	var all []int64
	add := func(at int64) {
		if at >= w.now() && at < 8_000_000_000_000 { // the fences of this year 2223 still fit in 2^53
			all = append(all, at)
		}
	}
	for _, k := range w.keys {
		if k.End != 0 {
			add(k.End)
		}
		for i, item := range k.Items {
			var a, b int64
			switch {
			case k.Kind == "zset" && i%2 == 1 && strings.HasPrefix(k.Name, "lock:"):
				a, _ = strconv.ParseInt(item, 10, 64)
				add(a)
			case k.Kind == "list":
				if _, err := fmt.Sscanf(item, "%d %d", &a, &b); err == nil {
					add(b)
				}
			case k.Kind == "hash" && strings.HasPrefix(item, "@"):
				if _, err := fmt.Sscanf(k.Items[i+1], "%d %d", &a, &b); err == nil {
					add(a + b)
					add(a + memory.Claim)
					add(a + min(b/3, memory.Silence) + memory.Claim)
				}
			case k.Kind == "hash" && item == "since":
				if _, err := fmt.Sscanf(k.Items[i+1], "%d", &a); err == nil {
					add(a + memory.Claim)
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// one draws one of some values, those written twice twice as often.
func one[V any](t *rapid.T, label string, values ...V) V {
	return rapid.SampledFrom(values).Draw(t, label)
}

// pass is a step in which only the clock moves.
func (w *world) pass(micros int64) {
	if micros < w.micros {
		// Who looks at a key that has run out removes it. Without that, it would be there again.
		w.do(append([]string{"EXISTS", "-"}, slices.Sorted(maps.Keys(w.names))...)...)
		for _, keys := range locks {
			w.do("ZREMRANGEBYSCORE", keys[0], "-inf", strconv.FormatInt(w.now(), 10))
		}
		w.reference.DropEnded()
	}
	w.setClock(micros)
	w.do("PING")
	w.script = w.script[:len(w.script)-1]
	w.compare(nil, same)
}

// later has time pass: a little, or until just before, at or just after something happens.
func (w *world) later() {
	if all := w.moments(); len(all) > 0 && one(w.T, "until something happens", true, true, false) {
		at := all[0]
		if !one(w.T, "the next", true, false) {
			at = one(w.T, "moment", all...)
		}
		at += one(w.T, "and", int64(0), 0, -1, 1)
		w.pass(max(w.micros, at*millisecond+one(w.T, "micros", int64(0), 1, 999)))
		return
	}
	w.pass(w.micros + one(w.T, "passes", int64(1), 999, 1000, 1001, 333_000, 1_000_000, 2_000_000, 3_600_000_000))
}

// The keys of two locks of one slot, and the signal lists that their waiters use.
var (
	locks = [][]string{
		{"lock:{x}", "lock-queue:{x}", "lock-state:{x}"},
		{"lock:y{x}", "lock-queue:y{x}", "lock-state:y{x}"},
	}
	lists   = []string{narrowList, "lock-signal:2", "mailbox {x}", "lock-signal:y{x}:3", "mailbox"} // the last one is not a signal list
	tokens  = []string{"a", "b", "c", "d", "e 0 1", "@f"}
	leases  = []string{"0", "1", "1000", "1999", "2000", "2001", "30000", "30000", "999999999", "1000000000", "9999999999999"}
	sharing = []string{"", "", "", "0", "0", "1", "2", "2", "3", "1000", "9999999999999"} // HOLDERS; "": left out
	waits   = []string{"1", "2", "1000", "3000", "3001", "30000", "30000", "600000", "600001", "86400000"}
)

const narrowList = "lock-signal:{x}:1"

// calls are any calls in any order, and whatever else can happen to a server.
func calls(w *world) map[string]func(*rapid.T) {
	lock := func() []string { return one(w.T, "lock", locks[0], locks[0], locks[0], locks[1]) }
	token := func() string { return one(w.T, "token", tokens...) }
	anyKey := func() string {
		return one(w.T, "key", slices.Concat(lock(), lists)...)
	}
	client := func() rueidis.Client {
		if w.srv.Server != nil && one(w.T, "as", "anybody", "anybody", "anybody", "narrow") == "narrow" {
			return w.srv.narrow
		}
		return w.srv.client
	}
	acquire := func(t *rapid.T, wait string) {
		as, list := client(), one(t, "list", lists...)
		if as != w.srv.client {
			list = narrowList
		}
		args := []string{token(), one(t, "lease", leases...), wait, one(t, "holders", sharing...)}
		if args[3] == "" {
			args = args[:3]
		}
		w.fcall(as, "lock_acquire", append(slices.Clone(lock()), list), args...)
	}
	saved := w.snapshot()

	return map[string]func(*rapid.T){
		"acquire":       func(t *rapid.T) { acquire(t, one(t, "wait", waits...)) },
		"acquire again": func(t *rapid.T) { acquire(t, one(t, "wait", waits...)) },
		"try":           func(t *rapid.T) { acquire(t, "0") },
		"release":       func(*rapid.T) { w.fcall(client(), "lock_release", lock(), token()) },
		"a holder's": func(t *rapid.T) {
			keys := lock()
			k := w.key(keys[0])
			if len(k.Items) == 0 || k.Kind == "set" {
				t.SkipNow()
			}
			holder := k.Items[0]
			if k.Kind == "zset" {
				holder = k.Items[one(t, "of many", 0, 0, len(k.Items)/2-1, len(k.Items)/4)*2]
			}
			if one(t, "call", "release", "release", "extend") == "release" {
				w.fcall(client(), "lock_release", keys, holder)
			} else {
				w.fcall(client(), "lock_extend", keys, holder, one(t, "lease", leases...))
			}
		},
		"extend":  func(t *rapid.T) { w.fcall(client(), "lock_extend", lock(), token(), one(t, "lease", leases...)) },
		"reset":   func(*rapid.T) { w.fcall(client(), "lock_reset", lock()) },
		"inspect": func(*rapid.T) { w.fcall(client(), "lock_inspect", lock()) },
		"pop":     func(t *rapid.T) { w.pop(one(t, "list", lists...)) },
		"later":   func(*rapid.T) { w.later() },
		"crowd": func(t *rapid.T) {
			keys := append(slices.Clone(lock()), one(t, "list", lists...))
			args := []string{"", "30000", "30000", one(t, "holders", sharing...)}
			if args[3] == "" {
				args = args[:3]
			}
			for _, args[0] = range tokens[:one(t, "tokens", 3, 4, len(tokens))] {
				w.fcall(w.srv.client, "lock_acquire", keys, args...)
			}
		},
		"behind a writer": func(t *rapid.T) {
			keys := append(slices.Clone(lock()), one(t, "list", lists...))
			w.fcall(w.srv.client, "lock_acquire", keys, "a", "30000", "0", "0")
			w.fcall(w.srv.client, "lock_acquire", keys, "b", "30000", "30000")
			reader := func() { w.fcall(w.srv.client, "lock_acquire", keys, "c", "30000", "30000", "0") }
			reader()
			for range one(t, "calls", 1, 2, 3) {
				w.pass(w.micros + one(t, "silence", int64(2_001), 2_001, 1_000, 2_000)*millisecond)
				reader()
			}
		},
		"accident": func(t *rapid.T) {
			switch one(t, "accident", "sooner", "sooner", "sooner", "delete", "delete", "delete", "spoil", "stuff", "stuff", "load", "save", "fail over", "version", "misuse", "misuse") {
			case "sooner":
				w.pass(w.micros - one(t, "back by", int64(1), 1000, 2_000_000, 60_000_000))
			case "delete":
				w.del(anyKey())
			case "spoil":
				name := anyKey()
				w.del(name)
				w.do("SADD", name, "strange")
				w.compare(nil, func(s *memory.Server) any { s.Spoil(name); return nil })
			case "stuff":
				if name := one(t, "list", lists...); w.key(name).Kind != "set" {
					w.stuff(name, one(t, "element", "job 1", "1 job", "1 2 ", "x 1 2 3"))
				}
			case "load":
				w.reload()
			case "save":
				saved = w.snapshot()
			case "fail over":
				w.failOver(saved)
			case "version":
				w.fcall(client(), "lock_version", nil)
			case "misuse":
				function := one(t, "function", slices.Sorted(maps.Keys(memory.Arguments))...)
				want := memory.Arguments[function]
				number := func(label string, right int) int {
					return max(0, right+one(t, label, 0, 0, 0, 1, -1))
				}
				// Mostly only one of these is wrong.
				keys := slices.Concat(locks[0], lists)[:number("keys", want.Keys)]
				args := []string{one(t, "token", "a", "a", "", strings.Repeat("a", memory.TokenMax+1)), "1", "30000", "1", "1"}[:number("arguments", want.Args+one(t, "holders", 0, 1))]
				if len(keys) > 1 && one(t, "one key twice", false, true) {
					keys[one(t, "this", 0, len(keys)-1)] = keys[one(t, "and this", 0, 1, len(keys)-2, len(keys)-1)]
				}
				if len(keys) > 0 && one(t, "a long key", false, false, false, true) {
					keys[len(keys)-1] += strings.Repeat("x", memory.KeyMax)
				}
				if len(args) > 1 && one(t, "a bad number", false, true) {
					args[one(t, "number", 1, len(args)-1)] = one(t, "bad", "", "-1", "1e3", "0x1", " 1", "1.5", "10000000000000", "86400001")
				}
				if _, wrong := memory.New(redislock.Version).Call(function, keys, args, nil).(memory.Failure); wrong {
					w.fcall(w.srv.client, function, keys, args...)
				}
			}
		},
	}
}

// TestLockLua drives lock.lua through at least 100,000 steps, of which each is compared with the reference.
func TestLockLua(t *testing.T) {
	const runs = "950"
	settings(t, map[string]string{"rapid.checks": runs, "rapid.steps": "50"})
	servers := []*realServer{begin(t), begin(t)}
	t.Run("all", func(t *testing.T) {
		for i, srv := range servers {
			t.Run(fmt.Sprint("server ", i+1), func(t *testing.T) {
				t.Parallel()
				rapid.Check(t, callsRun(srv))
			})
		}
	})
	steps := servers[0].steps + servers[1].steps
	t.Logf("%d steps on %s", steps, redistest.Version())
	if asked := flag.Lookup("rapid.checks").Value.String() != runs || testing.Short(); !asked && steps < 100_000 && !t.Failed() {
		t.Errorf("only %d steps", steps)
	}
}

// TestReference judges the reference by the rules alone.
func TestReference(t *testing.T) {
	settings(t, map[string]string{"rapid.checks": "4000", "rapid.steps": "50"})
	rapid.Check(t, callsRun(&realServer{}))
}

// settings are those of rapid, until the end of the test. What the command line says wins.
func settings(t *testing.T, values map[string]string) {
	flag.Visit(func(f *flag.Flag) { delete(values, f.Name) })
	for name, value := range values {
		f := flag.Lookup(name)
		before := f.Value.String()
		t.Cleanup(func() { _ = f.Value.Set(before) })
		_ = f.Value.Set(value)
	}
}

// locked is a world of one lock.
type locked struct{ *world }

func (x locked) acquire(token, list, lease, wait string) {
	x.fcall(x.srv.client, "lock_acquire", append(slices.Clone(locks[0]), list), token, lease, wait)
}

func (x locked) call(function string, args ...string) {
	x.fcall(x.srv.client, function, locks[0], args...)
}

// rareSteps are some that chance hardly ever makes.
var rareSteps = []struct {
	name string
	run  func(x locked)
}{
	{"an entry of a lost queue, and a hand-over in the call that finds it",
		func(x locked) {
			x.acquire("holder", lists[0], "1000", "1")
			x.del(locks[0][2])
			x.acquire("lost", lists[0], "1000", "30000")
			x.del(locks[0][1])
			x.acquire("next", lists[0], "1000", "30000")
			x.pass(x.micros + 1_001*millisecond)
			x.acquire("last", lists[0], "1000", "30000")
		}},
	{"a client that seems dead calls",
		func(x locked) {
			x.acquire("holder", lists[0], "0", "1")
			for _, token := range []string{"told", "dead", "alive"} {
				x.acquire(token, lists[1], "30000", "30000")
			}
			x.acquire("last", lists[2], "30000", "30000")
			x.call("lock_release", "holder")
			x.pass(x.micros + 2_001*millisecond)
			x.acquire("alive", lists[1], "30000", "30000")
		}},
	{"a crowd, of which many have lapsed",
		func(x locked) {
			x.acquire("holder", lists[0], "0", "1")
			for i := range 1_100 {
				wait := "1000"
				if i >= 150 {
					wait = "30000"
				}
				x.acquire(strconv.Itoa(i), lists[0], "30000", wait)
			}
			x.call("lock_inspect")
			x.pass(x.micros + 1_001*millisecond)
			x.call("lock_inspect")
			x.call("lock_release", "holder")
			x.call("lock_inspect")
		}},
}

func TestRareSteps(t *testing.T) {
	srv := begin(t)
	settings(t, map[string]string{"rapid.checks": "1"})
	for _, steps := range rareSteps {
		t.Run(steps.name, rapid.MakeCheck(rareRun(srv, steps.run)))
	}
}

func rareRun(srv *realServer, run func(locked)) func(*rapid.T) {
	return func(t *rapid.T) { run(locked{newWorld(t, srv)}) }
}

func callsRun(srv *realServer) func(*rapid.T) {
	return func(t *rapid.T) { t.Repeat(calls(newWorld(t, srv))) }
}
