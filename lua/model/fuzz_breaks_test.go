package model_test

import (
	"strings"
	"testing"
	"time"
)

// breaks are changes of lock.lua that fuzzing must find: what is there now, and what instead.
var breaks = []struct{ name, text, instead string }{
	{"fence of the state as it is", `stored(values[1]) or 0`, `tonumber(values[1]) or 0`},
	{"fence as it is, nobody waits", `stored(redis.call('HGET', c.state, 'fence'))`, `tostored(redis.call('HGET', c.state, 'fence'))`},
	{"fence shown as it is", `'fence', stored(redis.call('HGET', keys[3], 'fence')) or 0`, `'fence', tonumber(redis.call('HGET', keys[3], 'fence')) or 0`},
	{"last as it is", `stored(values[2])`, `values[2]`},
	{"since as it is", `stored(redis.call('HGET', c.state, 'since'))`, `redis.call('HGET', c.state, 'since')`},
	{"entries of any digits", ` or #called > 13 or wait + 0 > NUMBER_MAX.WAIT_MS
    or lease + 0 > NUMBER_MAX.LEASE_MS`, ``},
	{"scores as they are, shown", `(stored(score) or c.micros)`, `score`},
	{"scores as they are", `stored(redis.call('ZRANGE', c.queue, -1, -1, 'WITHSCORES')[2])`, `redis.call('ZRANGE', c.queue, -1, -1, 'WITHSCORES')[2]`},
	{"signals as they are", `tonumber(string.match(redis.call('LINDEX', list, 0), '^%d+ (%d+) .'))`, `string.match(redis.call('LINDEX', list, 0), '^%d+ (%d+) .') + 0`},
	{"any list is told", `  if not list or not is_signal_list(c.lock, list) then`, `  if not list then`},
	{"a list of anything is told", `    if not deadline then -- somebody else's list
      redis.call('RPOP', list)
      return false
    end
`, `    deadline = deadline or 0
`},
	{"a signal stays in somebody else's list", `    if not deadline then -- somebody else's list
      redis.call('RPOP', list)
`, `    if not deadline then
`},
	{"no pcall", `pcall(body, keys, args)`, `true, body(keys, args)`},
	{"errors in other words", `type(reply) == 'table' and reply.err or tostring(reply)`, `'ERR ' .. tostring(reply)`},
	{"refused signals are thrown", `redis.pcall('RPUSH'`, `redis.call('RPUSH'`},
	{"lock before signal", `  local unread = redis.pcall(`, `  redis.call('SET', c.lock, waiter.token, 'PX', CLAIM_MS)
  local unread = redis.pcall(`},
	{"signal list not looked at", `  redis.call('LLEN', signal)
`, ``},
	{"signal list looked at late", `  redis.call('LLEN', signal)
  local c = look(keys, token, true)
`, `  local c = look(keys, token, true)
  leave(c, token)
  redis.call('LLEN', signal)
`},
	{"release leaves before it reads", `  local c = look(keys, args[1])
  if c.holder == c.token then
    give_up`, `  redis.call('ZREM', keys[2], args[1])
  local c = look(keys, args[1])
  if c.holder == c.token then
    give_up`},
	{"extend writes before it reads", `  local c = look(keys, args[1])
  if c.holder ~= c.token then
    return 0`, `  redis.call('PEXPIRE', keys[1], args[2])
  local c = look(keys, args[1])
  if c.holder ~= c.token then
    return 0`},
	{"any number of keys", `#keys ~= #usage.keys`, `#keys < #usage.keys`},
	{"any number of arguments", `#args ~= #usage.args`, `#args < #usage.args`},
	{"missing keys", `#keys ~= #usage.keys`, `false`},
	{"missing arguments", `#args ~= #usage.args`, `false`},
	{"one key twice", `== keys[j]`, `== nil`},
	{"empty tokens", `value == ''`, `false`},
	{"numbers in any form", `not string.find(value, '^%d+$')`, `not tonumber(value)`},
	{"numbers that begin with digits", `(value, '^%d+$')`, `(value, '^%d+')`},
	{"bytes of the caller in errors", `(string.gsub(string.sub(value, 1, 40), '[^ -~]', '?'))`, `value`},
	{"holder as it is", `redis.call('GETRANGE', lock, 0, TOKEN_MAX)`, `redis.call('GET', lock)`},
	{"tokens of any length", `#value > TOKEN_MAX`, `false`},
	{"keys of any length", `#key > KEY_MAX`, `false`},
	{"numbers of any size", ` or value + 0 > NUMBER_MAX[name]`, ``},
	{"places for ever, shown", `math.min(waiter.called + waiter.wait - c.now, NUMBER_MAX.WAIT_MS)`, `waiter.called + waiter.wait - c.now`},
	{"signal missing", `waiter.signal or '',
        }`, `waiter.signal,
        }`},
	{"times as Lua writes them", `    c.micros = tonumber(c.micros_text)
`, `    c.micros = tonumber(c.micros_text)
    c.micros_text = tostring(c.micros)
`},
	{"fences as Lua writes them", `return number + 1, decimal(number + 1)`, `return number + 1, tostring(number + 1)`},
	{"queue without a TTL", `    redis.call('PEXPIRE', c.queue, wait_ms)
`, ``},
	{"signals without a TTL", `  redis.call('PEXPIRE', list, decimal(CLAIM_MS + waiter.wait))
`, ``},
	{"entries stay behind, dropped", `    redis.call('HDEL', c.state, unpack(fields))
`, ``},
	{"entries stay behind, left", `  redis.call('HDEL', c.state, '@' .. token)
  return true`, `  return true`},
	{"fence not noted", `      redis.call('HSET', c.state, 'fence', fence_text)
`, ``},
	{"lock stays behind", `    redis.call('UNLINK', c.lock)
`, ``},
	{"state of the holder not kept", `    redis.call('PERSIST', c.state)
`, ``},
}

// TestBreaks shows that the inputs above find each break.
func TestBreaks(t *testing.T) {
	text := library(t)
	programs := append(seeds(), everyNumber()...)
	for _, b := range breaks {
		t.Run(b.name, func(t *testing.T) {
			if strings.Count(text, b.text) != 1 {
				t.Fatalf("not once in lock.lua: %s", b.text)
			}
			p := newPrey(t, strings.Replace(text, b.text, b.instead, 1))
			p.patience = time.Second
			for _, words := range callSeeds() {
				if err := p.runCall(append([]string{"FCALL"}, words...)); err != nil {
					t.Log("found by a call:", firstLine(err))
					return
				}
			}
			for i, program := range programs {
				if err := p.run(program); err != nil {
					t.Logf("found by program %d: %s", i, firstLine(err))
					return
				}
			}
			t.Error("not found")
		})
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
