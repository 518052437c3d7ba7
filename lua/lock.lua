#!lua name=lock
--
-- redislock: a distributed lock with a queue. First come, first served; handed over, never dropped.
--
-- Everything that decides who holds a lock happens in this file, atomically and on the server's
-- clock. A client calls lock_acquire; while the first element of the reply is 0 it blocks in
-- BLPOP on its signal list for check_in_ms and calls again.
--
-- The keys of one lock called NAME share the hash tag {NAME}, so they live in one cluster slot:
--
--   lock:{NAME}         string  the token of the holder; its PX is the lease
--   lock-queue:{NAME}   zset    the waiting tokens; score: microseconds of arrival, only growing
--   lock-state:{NAME}   hash    fence   the last fencing token that was given out
--                               last    the last score in the queue
--                               since   when the queue began, or this hash did because an older one
--                                       was lost, ms: who is missing below has called then
--                               @TOKEN  CALLED_MS WAIT_MS LEASE_MS SIGNAL of a waiting token
--   SIGNAL              list    where a client is told; an element is FENCE DEADLINE_MS TOKEN.
--                               Its name is P-signal:... if the lock's is P:..., or it contains
--                               the lock's {NAME}
--
-- What always holds:
--
--   * Only the token in lock:{NAME} holds the lock. A signal is a hint and may get lost.
--   * Whoever finds the lock free gives it to the first live waiter, or takes it if that is itself
--     or nobody: so no one overtakes. It is free while somebody waits only until the next call
--     after a lease ran out, or where the first waiter could not be told.
--   * A lease that was handed over lasts CLAIM_MS at most until its holder has called again.
--   * A waiter is dropped when it reaches the front, if WAIT_MS passed since its last call, or if
--     its client left a signal unread past the deadline and has not called since; or if it
--     cannot be told and is CLAIM_MS late for a check-in while the lock is free.
--   * A signal goes only into a list that is one by its name and by its oldest element: whoever
--     writes into lock-state cannot have a caller with more rights write elsewhere.
--   * Fencing tokens grow: max(last + 1, server time in microseconds).
--   * Every key has a TTL, but lock and state while somebody holds without expiry; if that lock
--     is deleted by hand, the state until the next call.
--
-- All functions read every key before they write the first, so a key of the wrong type is an
-- error with nothing written. Times are milliseconds, a lease of 0 means never expires.

local VERSION = '1.0.0'

local CLAIM_MS = 2000       -- a handed-over lease, until its holder has called
local HEAD_CHECK_MS = 1000  -- the first in the queue looks that often; the tenth, every 10 s
local SILENCE_MS = 10000    -- by then whoever cannot be told has to have looked
local MEMORY_MS = 600000    -- lock-state outlives the last user by this: the memory of the fence
local MAX_EXACT = 2 ^ 53    -- a larger number is not one of ours

-- The limits of a call, and of what is taken for written by one: so they bound how long a call
-- holds the server.
local TOKEN_MAX = 16384     -- bytes
local KEY_MAX = 8192        -- bytes of the name of each key
local NUMBER_MAX = {        -- of 13 digits at most
  LEASE_MS = 9999999999999, -- 317 years
  WAIT_MS = 86400000,       -- a day
}
local ENTRY_MAX = KEY_MAX + 64
local BATCH = 100           -- waiters looked at together, if the first one is to be dropped
local LOOKS_MAX = 4000      -- waiters looked at in one call; a batch counts as ten more, a token of
                            -- 512 bytes as one more, one of 1,024 as four, and so on
local LIST_MAX = 1000       -- lock_inspect lists so many waiters; it counts all of them
local LIST_BYTES = 2 ^ 20   -- and ends with the batch that exceeds this

-- What a call must look like; the names are those of the error texts.
local ACQUIRE = {
  keys = { 'lock', 'queue', 'state', 'signal' },
  args = { 'TOKEN', 'LEASE_MS', 'WAIT_MS' },
}
local RELEASE = { keys = { 'lock', 'queue', 'state' }, args = { 'TOKEN' } }
local EXTEND = { keys = { 'lock', 'queue', 'state' }, args = { 'TOKEN', 'LEASE_MS' } }
local KEYS_ONLY = { keys = { 'lock', 'queue', 'state' }, args = {} }
local NOTHING = { keys = {}, args = {} }

-- ---------------------------------------------------------------------------------------------
-- Helpers
-- ---------------------------------------------------------------------------------------------

-- A whole number as text. '%.0f' costs as much as a command, and what Redis makes of a number even
-- more. '%d' is narrow on a 32-bit server, so it gets nine digits at a time.
local function decimal(number)
  if number < 1000000000 then
    return string.format('%d', number)
  end
  local low = number % 1000000000
  return string.format('%d%09d', (number - low) / 1000000000, low)
end

-- A number that was read from a key, nil if it is none that this library wrote.
local function stored(text)
  local n = text and string.find(text, '^%d+$') and tonumber(text)
  return n and n < MAX_EXACT and n or nil
end

-- The text of what is wrong with a call, nil if nothing is.
local function misuse(usage, keys, args)
  if #keys ~= #usage.keys then
    return string.format('expected %d keys (%s), got %d',
      #usage.keys, table.concat(usage.keys, ' '), #keys)
  end
  if #args ~= #usage.args then
    return string.format('expected %d arguments (%s), got %d',
      #usage.args, table.concat(usage.args, ' '), #args)
  end
  for i = 1, #keys do
    local key = keys[i]
    if #key > KEY_MAX then
      return string.format('key %s must have %d bytes at most, has %d',
        usage.keys[i], KEY_MAX, #key)
    end
    for j = 1, i - 1 do
      if key == keys[j] then
        return string.format('keys %s and %s must differ', usage.keys[j], usage.keys[i])
      end
    end
  end
  for i = 1, #args do
    local name, value = usage.args[i], args[i]
    if name == 'TOKEN' then
      if value == '' then
        return 'TOKEN must not be empty'
      elseif #value > TOKEN_MAX then
        return string.format('TOKEN must have %d bytes at most, has %d', TOKEN_MAX, #value)
      end
    elseif #value > 13 or not string.find(value, '^%d+$') or value + 0 > NUMBER_MAX[name] then
      return string.format('%s must be a whole number of milliseconds, %s at most, got "%s"',
        name, decimal(NUMBER_MAX[name]), (string.gsub(string.sub(value, 1, 40), '[^ -~]', '?')))
    end
  end
end

-- A public function: checks the call, and turns an error of Redis (WRONGTYPE) into the reply as
-- it is, without the stack that a thrown one gets.
local function public(usage, body)
  return function(keys, args)
    local wrong = misuse(usage, keys, args)
    if wrong then
      return redis.error_reply('LOCKARG ' .. wrong)
    end
    local ok, reply = pcall(body, keys, args)
    if ok then
      return reply
    end
    return redis.error_reply(type(reply) == 'table' and reply.err or tostring(reply))
  end
end

-- Reads the clock, once a call at most.
local function tell_time(c)
  if not c.now then
    local time = redis.call('TIME')
    c.micros_text = time[1] .. string.sub('00000' .. time[2], -6)
    c.micros = tonumber(c.micros_text)
    c.now = math.floor(c.micros / 1000)
  end
end

-- What comes after a number, and not before the clock: max(number + 1, microseconds). Also as text.
local function after(c, number)
  if number < c.micros then
    return c.micros, c.micros_text
  end
  return number + 1, decimal(number + 1)
end

-- What the state says of a waiter. Without an entry (the hash was lost) its signal is nil, and it
-- has CLAIM_MS to call and be known again.
local function waiter_of(c, token, entry)
  local called, wait, lease, signal
  if entry and #entry <= ENTRY_MAX then
    called, wait, lease, signal = string.match(entry, '^(%d+) (%d+) (%d+) (.*)$')
  end
  if not called or #called > 13 or wait + 0 > NUMBER_MAX.WAIT_MS
    or lease + 0 > NUMBER_MAX.LEASE_MS then
    c.since = c.since or stored(redis.call('HGET', c.state, 'since')) or c.now
    called, wait, lease, signal = c.since, CLAIM_MS, CLAIM_MS, nil
  end
  return { token = token, called = called + 0, wait = wait + 0, lease = lease + 0, signal = signal }
end

local function lapsed(c, waiter)
  return c.now > waiter.called + waiter.wait
end

-- Whether a waiter is as late for a check-in as one that was handed the lock may be.
local function silent(c, waiter)
  return c.now > waiter.called + math.min(waiter.wait / 3, SILENCE_MS) + CLAIM_MS
end

-- Removes the first n tokens of the queue, which are these.
local function drop_first(c, tokens, n)
  if n > 0 then
    local fields = {}
    for i = 1, n do
      fields[i] = '@' .. tokens[i]
    end
    redis.call('ZREMRANGEBYRANK', c.queue, 0, n - 1)
    redis.call('HDEL', c.state, unpack(fields))
  end
end

-- Removes one token from the queue. Returns whether it was there.
local function leave(c, token)
  if redis.call('ZREM', c.queue, token) == 0 then
    return false
  end
  redis.call('HDEL', c.state, '@' .. token)
  return true
end

-- Some waiter that was not looked at: it may live, so nobody takes the lock, until another call.
local UNSEEN = {}

-- Fills in c.fence and c.first, the first waiter that is alive as far as known; those before it are
-- dropped. For who asks to queue (c.asks) also c.last and c.mine, its entry. c.dead has the signal
-- lists that were found unread, each with the deadline: who uses one and has not called since is
-- dropped. The caller is alive. Each waiter is dropped once, so the cost is amortised. If more are
-- dead than one call may drop, c.first is UNSEEN.
local function find_first(c)
  local last = '0'
  while true do
    if c.looks <= 0 then
      c.first = UNSEEN
      return
    end
    local tokens = redis.call('ZRANGE', c.queue, '0', last)
    c.looks = c.looks - #tokens - 10
    if #tokens == 0 then
      c.fence = stored(redis.call('HGET', c.state, 'fence')) or 0
      c.first = nil
      return
    end
    tell_time(c)
    local fields = c.asks and { 'fence', 'last', '@' .. c.token } or { 'fence' }
    local more = #fields
    for i = 1, #tokens do
      c.looks = c.looks - (#tokens[i] / 512) ^ 2
      tokens[i] = string.sub(tokens[i], 1, TOKEN_MAX + 1) -- a longer one is none of ours
      fields[more + i] = '@' .. tokens[i]
    end
    local values = redis.call('HMGET', c.state, unpack(fields))
    c.fence = stored(values[1]) or 0
    if c.asks then
      c.last, c.mine = stored(values[2]), values[3]
    end
    c.first = nil
    for i = 1, #tokens do
      local token = tokens[i]
      local waiter = waiter_of(c, token, values[more + i])
      local unread_since = c.dead[waiter.signal or '']
      local dead = unread_since and waiter.called <= unread_since and token ~= c.token
      if not dead and not lapsed(c, waiter) and #token <= TOKEN_MAX then
        drop_first(c, tokens, i - 1)
        c.first = waiter
        return
      end
    end
    drop_first(c, tokens, #tokens)
    last = BATCH - 1
  end
end

-- Who holds the lock, '' if nobody does. No more of a value is read than makes it none of ours.
local function holder_of(lock)
  return redis.call('GETRANGE', lock, 0, TOKEN_MAX)
end

-- The lock as it is: c.holder (false: free), and what find_first finds.
local function look(keys, token, asks)
  local holder = holder_of(keys[1])
  local c = {
    lock = keys[1], queue = keys[2], state = keys[3], token = token, asks = asks,
    holder = holder ~= '' and holder, looks = LOOKS_MAX,
    dead = {}, fence = nil, first = nil, last = nil, mine = nil, -- by find_first
    unblocks = false, -- by reset
    now = nil, micros = nil, micros_text = nil, -- by tell_time
  }
  find_first(c)
  return c
end

local function next_fence(c)
  tell_time(c)
  local text
  c.fence, text = after(c, c.fence)
  redis.call('HSET', c.state, 'fence', text)
end

-- The caller holds the lock, from now on for this lease. The state outlives it.
local function hold(c, lease)
  if lease == 0 then
    redis.call('SET', c.lock, c.token)
    redis.call('PERSIST', c.state)
  else
    redis.call('SET', c.lock, c.token, 'PX', decimal(lease))
    redis.call('PEXPIRE', c.state, decimal(lease + MEMORY_MS))
  end
end

-- Whether a list is a signal list of this lock or prefix, by its name.
local function is_signal_list(lock, list)
  local prefix = string.match(list, '^(.-)%-signal:')
  if prefix and string.sub(lock, 1, #prefix + 1) == prefix .. ':' then
    return true
  end
  local tag = string.match(lock, '{.-}')
  return tag and tag ~= '{}' and string.find(list, tag, 1, true)
end

-- Pushes a signal to a waiter. Returns whether that was possible; if not because its client is
-- dead, also the deadline of the signal that this client has left unread.
--
-- A client is dead if its oldest signal lies unread past its deadline and this waiter of it has
-- not called since. If it has, the old signal is only litter: removed, so that no list grows.
local function tell(c, waiter, signal)
  local list = waiter.signal
  if not list or not is_signal_list(c.lock, list) then
    return false
  end
  -- The only step that can be refused comes first: nothing would be rolled back.
  local unread = redis.pcall('RPUSH', list, signal)
  if type(unread) == 'table' then
    return false
  end
  local deadline
  if unread > 1 then
    deadline = tonumber(string.match(redis.call('LINDEX', list, 0), '^%d+ (%d+) .'))
    if not deadline then -- somebody else's list
      redis.call('RPOP', list)
      return false
    end
  end
  -- An unread signal proves death for as long as its client's other waiters keep a place.
  redis.call('PEXPIRE', list, decimal(CLAIM_MS + waiter.wait))
  if deadline and deadline < c.now then
    if waiter.called <= deadline then
      redis.call('RPOP', list)
      return false, deadline
    end
    redis.call('LPOP', list)
  end
  return true
end

-- Gives the lock, which is free or being given up, to the first live waiter, by signal and with a
-- short lease. Stops at the caller: that one needs no signal. Returns the waiter that is next, nil
-- if nobody waits, and the lease that it was given, nil if it was not: it is the caller, or UNSEEN,
-- or it cannot be told (its entry was lost, its list is none of this lock's, or the server refuses
-- a key that the call did not declare) and takes the free lock when it checks in.
local function hand_over(c)
  while c.first and c.first.token ~= c.token do
    local waiter = c.first
    if waiter == UNSEEN then
      return waiter
    end
    local lease = CLAIM_MS
    if waiter.lease > 0 then
      lease = math.min(waiter.lease, CLAIM_MS)
    end
    local fence, fence_text = after(c, c.fence)
    local told, unread_since = tell(c, waiter,
      fence_text .. ' ' .. decimal(c.now + lease) .. ' ' .. waiter.token)
    if told then
      redis.call('SET', c.lock, waiter.token, 'PX', decimal(lease))
      leave(c, waiter.token)
      redis.call('HSET', c.state, 'fence', fence_text)
      c.fence = fence
      redis.call('PEXPIRE', c.state, decimal(math.max(waiter.lease, waiter.wait) + MEMORY_MS))
      return waiter, lease
    end
    if unread_since then
      c.dead[waiter.signal] = unread_since
    elseif c.unblocks or silent(c, waiter) then
      c.unblocks = false
    else
      return waiter
    end
    drop_first(c, { waiter.token }, 1)
    find_first(c)
  end
  return c.first
end

-- Hands on the lock, which its holder has lost or gives up. If nobody takes it, it is free.
local function give_up(c)
  local _, lease = hand_over(c)
  if not lease then
    redis.call('UNLINK', c.lock)
    redis.call('PEXPIRE', c.state, MEMORY_MS)
  end
end

-- Puts the caller into the queue, or notes that it has called again. Returns its position, and
-- whether the state is a new hash, which has no TTL yet.
local function enqueue(c, signal, lease, wait)
  if c.mine and lapsed(c, waiter_of(c, c.token, c.mine)) then
    leave(c, c.token)
  end
  local last = c.last
  if c.first and not last then
    last = stored(redis.call('ZRANGE', c.queue, -1, -1, 'WITHSCORES')[2]) -- the hash was lost
  end
  local _, place = after(c, last or 0)
  local added = redis.call('ZADD', c.queue, 'NX', place, c.token) == 1
  local position = 1
  if not added then
    position = redis.call('ZRANK', c.queue, c.token) + 1
  elseif c.first then -- unless the lock was handed to it just now
    position = redis.call('ZCARD', c.queue)
  end
  local alone = added and position == 1
  local new = not alone and not c.last

  local now, wait_ms = string.sub(c.micros_text, 1, -4), decimal(wait)
  local fields = {
    '@' .. c.token, now .. ' ' .. wait_ms .. ' ' .. decimal(lease) .. ' ' .. signal,
    'last', added and place or decimal(last or 0),
  }
  if alone then
    redis.call('PEXPIRE', c.queue, wait_ms)
    local count = redis.call('HLEN', c.state)
    new = count == 0
    if count > #{ 'fence', 'last', 'since' } then
      -- A queue that expired or was deleted left its entries behind: start the hash anew.
      redis.call('UNLINK', c.state)
      new = true
      fields[5], fields[6] = 'fence', decimal(c.fence)
    end
  else
    redis.call('PEXPIRE', c.queue, wait_ms, 'GT')
  end
  if alone or new then
    fields[#fields + 1] = 'since'
    fields[#fields + 1] = now
  end
  redis.call('HSET', c.state, unpack(fields))
  if wait > MEMORY_MS then -- else the state outlives the wait anyway
    redis.call('PEXPIRE', c.state, decimal(wait + MEMORY_MS), 'GT')
  end
  return position, new
end

-- ---------------------------------------------------------------------------------------------
-- Public functions
-- ---------------------------------------------------------------------------------------------

-- Takes the lock, or queues for it. To call it again changes nothing but this: a waiter keeps its
-- place for another WAIT_MS, a holder's lease now ends LEASE_MS from now.
--
-- KEYS  lock queue state signal
-- ARGV  TOKEN     who asks, any bytes; unique for each wait
--       LEASE_MS  the lock is lost after this; 0: never
--       WAIT_MS   the place is lost this long after the last call; 0: only try, do not queue
--
-- [1, fence, lease_left_ms, now_ms]      TOKEN holds the lock; lease_left_ms -1: never expires
-- [0, position, check_in_ms, now_ms]     queued, position 1 is next; call again within check_in_ms
-- [0, 0, holder_left_ms, now_ms]         busy and WAIT_MS is 0: not queued
local function acquire(keys, args)
  local signal, token = keys[4], args[1]
  local lease, wait = tonumber(args[2]), tonumber(args[3])
  redis.call('LLEN', signal)
  local c = look(keys, token, true)
  tell_time(c)

  if c.holder == token then
    if c.fence == 0 then
      next_fence(c)
    end
    hold(c, lease)
    return { 1, c.fence, lease == 0 and -1 or lease, c.now }
  end

  local left
  if not c.holder then
    local waiter, handed = hand_over(c)
    if not waiter or waiter.token == token then
      if waiter then
        leave(c, token)
      end
      next_fence(c)
      hold(c, lease)
      return { 1, c.fence, lease == 0 and -1 or lease, c.now }
    end
    left = handed or 0
  end

  if wait == 0 then
    leave(c, token)
    return { 0, 0, left or redis.call('PTTL', c.lock), c.now }
  end

  local position, new = enqueue(c, signal, lease, wait)
  local check_in = math.min(position * HEAD_CHECK_MS, wait / 3)
  if position == 1 or new then
    left = left or redis.call('PTTL', c.lock)
    if left >= 0 and position == 1 then
      check_in = math.min(check_in, left + 1)
    end
    if left >= 0 and new then
      redis.call('PEXPIRE', c.state, math.max(left, wait) + MEMORY_MS)
    end
  end
  if left == 0 and c.first == UNSEEN then
    check_in = 1 -- to go on
  end
  return { 0, position, math.max(1, check_in), c.now }
end

-- Releases the lock and hands it to the next waiter, or leaves the queue.
--
-- KEYS  lock queue state
-- ARGV  TOKEN
--
-- 1  it held the lock: released, and handed over if somebody waits
-- 2  it was queued: it has left
-- 0  neither: the lease had run out, the lock was reset, or it was released before
local function release(keys, args)
  local c = look(keys, args[1])
  if c.holder == c.token then
    give_up(c)
    return 1
  end
  local left = leave(c, c.token)
  if not c.holder then
    find_first(c)
    give_up(c)
  end
  return left and 2 or 0
end

-- Renews the lease, and confirms one that was handed over.
--
-- KEYS  lock queue state
-- ARGV  TOKEN LEASE_MS
--
-- 1  the lease now ends LEASE_MS from now (0: never)
-- 0  TOKEN is not the holder
local function extend(keys, args)
  local c = look(keys, args[1])
  if c.holder ~= c.token then
    return 0
  end
  hold(c, tonumber(args[2]))
  return 1
end

-- Takes the lock away from whoever holds it, for the operator of a stuck one. The former holder
-- learns it at its next renewal; what it still writes, only the fencing token keeps out. If the
-- lock is free and its first waiter cannot be told, that one blocks it: it loses its place.
--
-- KEYS  lock queue state
--
-- 1  taken away and handed to the next waiter
-- 0  nobody held it
local function reset(keys)
  local c = look(keys, '')
  c.unblocks = not c.holder
  give_up(c)
  return c.holder and 1 or 0
end

-- Shows the lock and its queue. Reads only; look fields up by name, more may follow.
--
-- KEYS  lock queue state
--
-- holder   the token, '' if nobody holds the lock
-- fence    the last fencing token given out (the holder's, if there is one), 0 if not known
-- ttl_ms   what is left of the lease; -1: never expires, -2: nobody holds the lock
-- waiting  how many wait
-- waiters  the first 1,000, fewer if their tokens are long, each: token, waited_ms, lapses_in_ms,
--          lease_ms, signal ('' if lost)
-- now_ms   the server's time
local function inspect(keys)
  local c = { state = keys[3] }
  tell_time(c)
  local waiting = redis.call('ZCARD', keys[2])
  local waiters, bytes = {}, 0
  for from = 0, LIST_MAX - BATCH, BATCH do
    local places = redis.call('ZRANGE', keys[2], from, from + BATCH - 1, 'WITHSCORES')
    local fields = {}
    for i = 1, #places, 2 do
      fields[#fields + 1] = '@' .. string.sub(places[i], 1, TOKEN_MAX + 1)
    end
    local values = #fields > 0 and redis.call('HMGET', keys[3], unpack(fields)) or {}
    for i = 1, #values do
      local token, score = places[2 * i - 1], places[2 * i]
      local waiter = waiter_of(c, token, values[i])
      if lapsed(c, waiter) or #token > TOKEN_MAX then
        waiting = waiting - 1
      else
        waiters[#waiters + 1] = {
          token,
          math.max(0, c.now - math.floor((stored(score) or c.micros) / 1000)),
          math.min(waiter.called + waiter.wait - c.now, NUMBER_MAX.WAIT_MS),
          waiter.lease,
          waiter.signal or '',
        }
      end
      bytes = bytes + #token + #(values[i] or '')
    end
    if #fields < BATCH or bytes > LIST_BYTES then
      break
    end
  end
  return {
    'holder', holder_of(keys[1]),
    'fence', stored(redis.call('HGET', keys[3], 'fence')) or 0,
    'ttl_ms', redis.call('PTTL', keys[1]),
    'waiting', waiting,
    'waiters', waiters,
    'now_ms', c.now,
  }
end

-- The version of this library, MAJOR.MINOR.PATCH. Within one MAJOR, callers of an older version
-- go on to work.
local function version()
  return VERSION
end

-- ---------------------------------------------------------------------------------------------
-- Registration. allow-oom: over maxmemory a lock can still be given back, renewed and reset.
-- ---------------------------------------------------------------------------------------------

redis.register_function{
  function_name = 'lock_acquire',
  callback = public(ACQUIRE, acquire),
  description = 'lock queue state signal | TOKEN LEASE_MS WAIT_MS: take the lock or queue for it',
}
redis.register_function{
  function_name = 'lock_release',
  callback = public(RELEASE, release),
  flags = { 'allow-oom' },
  description = 'lock queue state | TOKEN: release and hand over, or leave the queue',
}
redis.register_function{
  function_name = 'lock_extend',
  callback = public(EXTEND, extend),
  flags = { 'allow-oom' },
  description = 'lock queue state | TOKEN LEASE_MS: renew or confirm the lease',
}
redis.register_function{
  function_name = 'lock_reset',
  callback = public(KEYS_ONLY, reset),
  flags = { 'allow-oom' },
  description = 'lock queue state: take the lock away from its holder and hand it on',
}
redis.register_function{
  function_name = 'lock_inspect',
  callback = public(KEYS_ONLY, inspect),
  flags = { 'no-writes' },
  description = 'lock queue state: show holder, fence, lease and queue',
}
redis.register_function{
  function_name = 'lock_version',
  callback = public(NOTHING, version),
  flags = { 'no-writes' },
  description = 'the version of this library',
}
