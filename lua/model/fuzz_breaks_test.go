package model_test

import (
	"strings"
	"testing"
	"time"
)

// breaks are changes of lock.lua that fuzzing must find: what is there now, and what instead.
var breaks = []struct{ name, text, instead string }{
	{"fence as it is", `local number = c.holder ~= '' and stored(c.fence)`, `local number = c.holder ~= '' and tonumber(c.fence)`},
	{"fence compared as it is", `    number = stored(text) or 0
`, `    number = tonumber(text) or 0
`},
	{"fence shown as it is", `'fence', stored(c.fence) or 0`, `'fence', tonumber(c.fence) or 0`},
	{"since as it is", `stored(call('HGET', c.state, 'since'))`, `call('HGET', c.state, 'since')`},
	{"entries of any digits", `  if called and #called <= 13 then`, `  if called then`},
	{"entries of any lease", `wait <= NUMBER_MAX.WAIT_MS and lease <= NUMBER_MAX.LEASE_MS`, `wait <= NUMBER_MAX.WAIT_MS`},
	{"entries of any wait", `wait <= NUMBER_MAX.WAIT_MS and lease <= NUMBER_MAX.LEASE_MS`, `lease <= NUMBER_MAX.LEASE_MS`},
	{"scores as they are, shown", `(stored(score) or c.micros)`, `score`},
	{"signals as they are", `tonumber(call('LINDEX', list, '0'):match('^%d+ (%d+) .'))`, `call('LINDEX', list, '0'):match('^%d+ (%d+) .') + 0`},
	{"any list is told", `  if not list or not is_signal_list(c.lock, list) then`, `  if not list then`},
	{"a list of anything is told", `    if not deadline then -- somebody else's list
      call('RPOP', list)
      return false
    end
`, `    deadline = deadline or 0
`},
	{"a signal stays in somebody else's list", `    if not deadline then -- somebody else's list
      call('RPOP', list)
`, `    if not deadline then
`},
	{"no pcall", `pcall(body, keys, args)`, `true, body(keys, args)`},
	{"errors in other words", `type(reply) == 'table' and reply.err or tostring(reply)`, `'ERR ' .. tostring(reply)`},
	{"refused signals are thrown", `try('RPUSH'`, `call('RPUSH'`},
	{"lock before signal", `  local unread = try(`, `  call('SET', c.lock, waiter.token, 'PX', CLAIM_MS)
  local unread = try(`},
	{"signal list not looked at", `  elseif wait ~= '0' then
    call('LLEN', signal)
`, `  elseif wait ~= '0' then
`},
	{"signal list looked at late", `  elseif wait ~= '0' then
    call('LLEN', signal)
`, `  elseif wait ~= '0' then
    leave(c, token)
    call('LLEN', signal)
`},
	{"release leaves before it reads", `  local c = begin(keys, args[1])
  read_front(c, '0')
  read_lock(c)
  if`, `  call('ZREM', keys[2], args[1])
  local c = begin(keys, args[1])
  read_front(c, '0')
  read_lock(c)
  if`},
	{"extend writes before it reads", `  local lease = args[2]
`, `  local lease = args[2]
  call('PEXPIRE', keys[1], lease)
`},
	{"any number of keys", `  return #keys == #usage.keys and (`, `  return #keys >= #usage.keys and (`},
	{"any number of arguments", `(#args == #usage.args or #args == usage.least)`, `(#args >= #usage.args or #args == usage.least)`},
	{"one key twice", `== keys[j]`, `== nil`},
	{"empty tokens", `value == ''`, `false`},
	{"numbers in any form", `not value:find('^%d+$')`, `not tonumber(value)`},
	{"numbers that begin with digits", `value:find('^%d+$')`, `value:find('^%d+')`},
	{"numbers that begin with digits, usual ones", `(a == '0' or a:find('^[1-9]%d*$'))`, `(a == '0' or a:find('^[1-9]%d*'))`},
	{"bytes of the caller in errors", `(value:sub(1, 40):gsub('[^ -~]', '?'))`, `value`},
	{"tokens of any length", `#value > TOKEN_MAX`, `false`},
	{"keys of any length", `#key > KEY_MAX`, `false`},
	{"numbers of any size", ` or value + 0 > NUMBER_MAX[name]`, ``},
	{"places for ever, shown", `math.min(waiter.called + waiter.wait - c.now, NUMBER_MAX.WAIT_MS)`, `waiter.called + waiter.wait - c.now`},
	{"signal missing", `waiter.signal or '',
          waiter`, `waiter.signal,
          waiter`},
	{"times as Lua writes them", `    c.micros, c.now = micros,`, `    c.micros_text = tostring(micros)
    c.micros, c.now = micros,`},
	{"fences as Lua writes them", `  return decimal(number + 1), number + 1`, `  return tostring(number + 1), number + 1`},
	{"queue without a TTL", `    call('PEXPIRE', c.queue, wait)
`, ``},
	{"signals without a TTL", `  call('PEXPIRE', list, decimal(CLAIM_MS + waiter.wait))
`, ``},
	{"entries stay behind, dropped", `    call('HDEL', c.state, unpack(fields))
`, ``},
	{"entries stay behind, left", `  call('HDEL', c.state, '@' .. token)
  return true`, `  return true`},
	{"fence not noted", `    call('HSET', c.state, 'fence', holders == 1 and fence or fence .. ' shared')
`, ``},
	{"lock stays behind", `  elseif c.holder == '' then
    call('UNLINK', c.lock)
`, `  elseif c.holder == '' then
`},
	{"state of the holder not kept", `    call('PERSIST', c.state)
  elseif`, `  elseif`},
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
