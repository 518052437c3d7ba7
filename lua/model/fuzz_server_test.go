package model_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// replyError is an error reply.
type replyError string

// prey is the server under fuzz, on one connection, whose replies are read in step with the calls:
// another goroutine's work would look like coverage of the input.
type prey struct {
	library  string
	patience time.Duration // a call that takes longer hangs
	server   *redistest.Server
	conn     net.Conn
	replies  *bufio.Reader
}

func newPrey(t testing.TB, library string) *prey {
	p := &prey{library: library, patience: 5 * time.Second}
	t.Cleanup(p.stop)
	return p
}

func (p *prey) stop() {
	if p.conn != nil {
		_ = p.conn.Close()
		p.conn = nil
	}
	if p.server != nil {
		_ = p.server.Stop()
		p.server = nil
	}
}

// clean makes the server ready for an input: started if need be, and empty.
func (p *prey) clean() error {
	if p.server == nil {
		var err error
		if p.server, err = redistest.Start(); err != nil {
			return err
		}
		if p.conn, err = net.Dial("tcp", p.server.Addr()); err != nil {
			return err
		}
		p.replies = bufio.NewReaderSize(p.conn, 1<<16)
		loaded, err := p.ask([]string{"FUNCTION", "LOAD", p.library})
		if err != nil || loaded[0] != "lock" {
			return fmt.Errorf("FUNCTION LOAD: %v, %w", loaded, err)
		}
	}
	_, err := p.ask([]string{"FLUSHALL"})
	return err
}

// ask sends commands at once. A server that does not answer all of them in time is given up.
func (p *prey) ask(commands ...[]string) ([]any, error) {
	var b []byte
	for _, words := range commands {
		b = fmt.Appendf(b, "*%d\r\n", len(words))
		for _, word := range words {
			b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(word), word)
		}
	}
	_ = p.conn.SetDeadline(time.Now().Add(p.patience))
	_, err := p.conn.Write(b)
	replies := make([]any, len(commands))
	for i := range replies {
		if err == nil {
			replies[i], err = p.read()
		}
	}
	if err != nil {
		_ = p.server.Kill() // it would not end in good order
		p.stop()
		return nil, fmt.Errorf("a hang or a crash: %w", err)
	}
	return replies, nil
}

// read returns a string, an int64, nil, a replyError or a []any of these.
func (p *prey) read() (any, error) {
	line, err := p.replies.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return nil, fmt.Errorf("no RESP: %q", line)
	}
	kind, text := line[0], line[1:len(line)-2]
	switch kind {
	case '+':
		return text, nil
	case '-':
		return replyError(text), nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return nil, fmt.Errorf("no RESP: %q", line)
	case kind == ':':
		return n, nil
	case n < 0:
		return nil, nil
	case kind == '$':
		bulk := make([]byte, n+2)
		_, err := io.ReadFull(p.replies, bulk)
		return string(bulk[:n]), err
	case kind == '*':
		all := make([]any, n)
		for i := range all {
			if all[i], err = p.read(); err != nil {
				return nil, err
			}
		}
		return all, nil
	}
	return nil, errors.New("no RESP: " + line)
}

// snapshot is a script that returns the time and every key: name, type, time of expiry, contents.
const snapshot = `
local read = {
  string = {'GET'}, list = {'LRANGE', 0, -1}, set = {'SMEMBERS'}, hash = {'HGETALL'},
  zset = {'ZRANGE', 0, -1, 'WITHSCORES'}, stream = {'XRANGE', '-', '+'},
}
local time = redis.call('TIME')
local all = {time[1], time[2]}
for i, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local how = read[kind]
  all[i + 2] = {key, kind, redis.call('PEXPIRETIME', key), redis.call(how[1], key, unpack(how, 2))}
end
return all`

var snap = []string{"EVAL", snapshot, "0"}

// state is all that the server stores.
type state struct {
	micros int64
	keys   map[string]value
}

type value struct {
	kind    string
	expires int64 // ms; -1: never
	items   []string
}

func parseState(reply any) state {
	all := reply.([]any)
	s := state{keys: map[string]value{}}
	s.micros = digits(all[0].(string))*1_000_000 + digits(all[1].(string))
	for _, one := range all[2:] {
		fields := one.([]any)
		v := value{kind: fields[1].(string), expires: fields[2].(int64)}
		switch contents := fields[3].(type) {
		case string:
			v.items = []string{contents}
		case []any:
			for _, item := range contents {
				v.items = append(v.items, fmt.Sprint(item))
			}
		}
		s.keys[fields[0].(string)] = v
	}
	return s
}

// text is a string key's value, as far as the library reads it. An empty value counts as missing.
func (s state) text(key string) (string, bool) {
	v, ok := s.keys[key]
	if !ok || v.kind != "string" || v.items[0] == "" {
		return "", false
	}
	return v.items[0][:min(len(v.items[0]), tokenMost+1)], true
}

// hash is what a hash holds; set and zset have no order of pairs to lose.
func (s state) hash(key string) map[string]string {
	pairs, items := map[string]string{}, s.keys[key].items
	for i := 0; i+1 < len(items); i += 2 {
		pairs[items[i]] = items[i+1]
	}
	return pairs
}

// members are those of a sorted set, in order.
func (s state) members(key string) []string {
	var all []string
	for i, item := range s.keys[key].items {
		if i%2 == 0 {
			all = append(all, item)
		}
	}
	return all
}

// changes says how b differs from s, but for keys whose time was up.
func (s state) changes(b state) error {
	for _, key := range slices.Sorted(maps.Keys(b.keys)) {
		if _, ok := s.keys[key]; !ok {
			return fmt.Errorf("%q is new", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		x := s.keys[key]
		y, ok := b.keys[key]
		switch {
		case !ok && x.expires >= 0 && x.expires <= b.micros/1000:
		case !ok:
			return fmt.Errorf("%q is gone", key)
		case x.kind != y.kind || x.expires != y.expires:
			return fmt.Errorf("%q: was %s until %d, is %s until %d", key, x.kind, x.expires, y.kind, y.expires)
		case x.kind == "hash" && !maps.Equal(s.hash(key), b.hash(key)),
			x.kind == "set" && !slices.Equal(slices.Sorted(slices.Values(x.items)), slices.Sorted(slices.Values(y.items))),
			x.kind != "hash" && x.kind != "set" && !slices.Equal(x.items, y.items):
			return fmt.Errorf("%q: was %q, is %q", key, x.items, y.items)
		}
	}
	return nil
}

// digits is a whole number without sign, or -1.
func digits(s string) int64 {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return -1
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}
