package memory_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/seed-ee05a192/redislock/internal/memory"
)

// lines are calls on one lock, and their replies, each for a reader.
type lines struct {
	*memory.Server
	said []string
}

func newLines() *lines {
	l := &lines{Server: memory.New("1.0.0")}
	l.SetClock(1_000_000_000)
	return l
}

func (l *lines) call(function string, args ...string) any {
	keys := []string{"lock:{x}", "lock-queue:{x}", "lock-state:{x}"}
	if function == "lock_acquire" {
		keys = append(keys, "lock-signal:"+args[0][:1]) // one list for all whose token begins alike
	}
	return l.Call(function, keys, args, func(string) bool { return true })
}

// acquire says "a holds 1000", a fence, or "a waits 2", a position.
func (l *lines) acquire(token, lease, wait string, holders ...string) {
	reply := l.call("lock_acquire", append([]string{token, lease, wait}, holders...)...).([]any)
	how := "waits"
	if reply[0] == int64(1) {
		how = "holds"
	}
	l.said = append(l.said, fmt.Sprint(token, " ", how, " ", reply[1]))
}

func (l *lines) told(list string) {
	for {
		signal, ok := l.Pop("lock-signal:" + list).(string)
		if !ok {
			return
		}
		l.said = append(l.said, list+" is told "+signal)
	}
}

func (l *lines) pass(ms int64) { l.SetClock(l.Micros + ms*1000) }

func (l *lines) want(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(l.said, want) {
		t.Errorf("\n got %q\nwant %q", l.said, want)
	}
	l.said = nil
}

func TestTogether(t *testing.T) {
	t.Run("a writer is not overtaken, and drains the lock", func(t *testing.T) {
		l := newLines()
		l.acquire("a", "10000", "30000", "0")
		l.acquire("b", "0", "30000", "0")
		l.acquire("w", "10000", "30000")
		l.acquire("c", "10000", "30000", "0")
		l.acquire("d", "10000", "0", "0")
		l.call("lock_release", "b")
		l.told("w")
		l.call("lock_release", "a")
		l.told("w")
		l.call("lock_release", "w")
		l.told("c")
		l.want(t, "a holds 1000000000", "b holds 1000000000", "w waits 1", "c waits 2", "d waits 0",
			"w is told 1000000001 1002000 w", "c is told 1000000002 1002000 c")
	})
	t.Run("as many as each allows", func(t *testing.T) {
		l := newLines()
		l.acquire("a", "1000", "30000", "2")
		l.acquire("b", "60000", "30000", "2")
		l.acquire("c", "10000", "30000", "2")
		l.acquire("d", "10000", "30000", "9")
		l.pass(1001)
		l.call("lock_extend", "z", "1") // any call hands on what ran out
		l.told("c")
		l.told("d")
		l.want(t, "a holds 1000000000", "b holds 1000000000", "c waits 1", "d waits 2",
			"c is told 1000000000 1003001 c", "d is told 1000000000 1003001 d")
	})
	t.Run("a dead writer", func(t *testing.T) {
		l := newLines()
		l.acquire("a", "0", "30000", "0")
		l.acquire("w", "10000", "30000")
		l.acquire("b", "10000", "30000", "0")
		l.pass(2001)
		l.acquire("b", "10000", "30000", "0")
		l.pass(2000)
		l.acquire("b", "10000", "30000", "0")
		l.pass(1)
		l.acquire("b", "10000", "30000", "0")
		l.told("w")
		l.want(t, "a holds 1000000000", "w waits 1", "b waits 2", "b waits 2", "b waits 2", "b holds 1000000000",
			"w is told 0 1004001 w")
	})
	t.Run("a writer that reads what it is told is not dead", func(t *testing.T) {
		l := newLines()
		l.acquire("a", "0", "30000", "0")
		l.acquire("w", "10000", "30000")
		l.acquire("b", "10000", "30000", "0")
		l.pass(2001)
		l.acquire("b", "10000", "30000", "0")
		l.told("w")
		l.pass(2001)
		l.acquire("b", "10000", "30000", "0")
		l.want(t, "a holds 1000000000", "w waits 1", "b waits 2", "b waits 2", "w is told 0 1004001 w", "b waits 2")
	})
	t.Run("100 a call", func(t *testing.T) {
		l := newLines()
		l.acquire("w", "0", "30000")
		for i := range 250 {
			l.acquire(fmt.Sprint("r", i), "0", "30000", "0")
		}
		l.call("lock_release", "w")
		for _, want := range []int64{100, 200, 250} {
			reply := l.call("lock_inspect").([]any)
			if held := reply[slices.Index(reply, any("held"))+1]; held != want {
				t.Errorf("%v of %d", held, want)
			}
			l.call("lock_release", "nobody") // any call goes on
		}
	})
	t.Run("asking again does not change how", func(t *testing.T) {
		l := newLines()
		l.acquire("a", "10000", "0", "0")
		l.acquire("a", "0", "0")
		l.acquire("b", "10000", "0", "2")
		l.acquire("a", "10000", "0", "1")
		l.call("lock_reset")
		l.acquire("c", "10000", "0")
		l.acquire("c", "10000", "0", "0")
		l.acquire("d", "10000", "0", "0")
		l.want(t, "a holds 1000000000", "a holds 1000000000", "b holds 1000000000", "a holds 1000000000",
			"c holds 1000000001", "c holds 1000000001", "d waits 0")
	})
}
