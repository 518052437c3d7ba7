#!lua name=lock
--
-- redislock: a distributed lock with a queue. First come, first served; handed over, never dropped.
-- One holds it alone, or several hold it together (HOLDERS).
--
-- Everything that decides who holds a lock happens in this file, atomically and on the server's
-- clock. A client calls lock_acquire; while the first element of the reply is 0 it blocks in
-- BLPOP on its signal list for check_in_ms and calls again.
--
-- The keys of one lock called NAME share the hash tag {NAME}, so they live in one cluster slot:
--
--   lock:{NAME}         string  held alone: the token of the holder; its PX is the lease
--                       zset    held together: the tokens; score: when the lease of each ends, ms
--                               (2^53: never). Its PX is the longest lease
--   lock-queue:{NAME}   zset    the waiting tokens; score: microseconds of arrival, only growing
--   lock-state:{NAME}   hash    fence   the last fencing token that was given out; ' shared' behind
--                                       it, if to one who shares: so a call knows the type of the
--                                       lock before it reads it
--                               last    the last score in the queue
--                               since   when the queue began, or this hash did because an older one
--                                       was lost, ms: who is missing below has called then
--                               @TOKEN  CALLED_MS WAIT_MS LEASE_MS SIGNAL of a waiting token; of
--                                       one who would share it, LEASE_MS/HOLDERS
--   SIGNAL              list    where a client is told; an element is FENCE DEADLINE_MS TOKEN, a
--                               FENCE of 0 only asks it to call. Its name is P-signal:... if the
--                               lock's is P:..., or it contains the lock's {NAME}
--
-- What always holds:
--
--   * Only the tokens in lock:{NAME} hold the lock. A signal is a hint and may get lost.
--   * The lock fits one who wants it alone if nobody holds it; one with HOLDERS n > 1 also if fewer
--     than n share it; one with HOLDERS 0 also if any number share it. No limit is stored.
--   * Whoever finds that the lock fits the first live waiter gives it to that one, or takes it if
--     that is itself or nobody: so no one overtakes. A lock stays free while somebody waits only
--     until the next call after a lease ran out, or where the first waiter could not be told.
--   * A lease that was handed over lasts CLAIM_MS at most until its holder has called again.
--   * A waiter is dropped when it reaches the front, if WAIT_MS passed since its last call, or if
--     its client left a signal unread past the deadline and has not called since; or if it
--     cannot be told and is CLAIM_MS late for a check-in while the lock could be its own.
--   * Those who hold the lock together have one fence. Each share ends by itself; one that has
--     ended is not counted, and dropped some time.
--   * A signal goes only into a list that is one by its name and by its oldest element: whoever
--     writes into lock-state cannot have a caller with more rights write elsewhere.
--   * Fencing tokens grow: max(last + 1, server time in microseconds).
--   * Every key has a TTL, but lock and state while somebody holds without expiry; if that lock
--     is deleted by hand, the state until the next call.
--
-- All functions read every key before they write the first, so a key of the wrong type is an
-- error with nothing written. Times are milliseconds, a lease of 0 means never expires.

local VERSION = '1.0.0'

local call, try -- redis.call and pcall: there are none yet while this file is loaded

local CLAIM_MS = 2000       -- a handed-over lease, until its holder has called
local HEAD_CHECK_MS = 1000  -- the first in the queue looks that often; the tenth, every 10 s
local SILENCE_MS = 10000    -- by then whoever cannot be told has to have looked
local MEMORY_MS = 600000    -- lock-state outlives the last user by this: the memory of the fence
local MEMORY_TEXT = '600000' -- what Redis gets is text: to make text of a number takes it long
local MAX_EXACT = 2 ^ 53    -- a larger number is not one of ours
local NEVER = '9007199254740992' -- the score of a share that never expires, that number

-- The limits of a call, and of what is taken for written by one: so they bound how long a call
-- holds the server.
local TOKEN_MAX = 16384     -- bytes
local TOKEN_MAX_TEXT = '16384'
local KEY_MAX = 8192        -- bytes of the name of each key
local NUMBER_MAX = {        -- of 13 digits at most
  LEASE_MS = 9999999999999, -- 317 years
  WAIT_MS = 86400000,       -- a day
  HOLDERS = 9999999999999,
}
local ENTRY_MAX = KEY_MAX + 64
local LET_IN_MAX = 100      -- waiters that are given a share in one call
local BATCH = 100           -- waiters looked at together, if the first one is to be dropped
local BATCH_LAST = '99'
local LOOKS_MAX = 4000      -- waiters looked at in one call; a batch counts as ten more, a token of
                            -- 512 bytes as one more, one of 1,024 as four, and so on
local LIST_MAX = 1000       -- lock_inspect lists so many waiters; it counts all of them
local LIST_BYTES = 2 ^ 20   -- and ends with the batch that exceeds this

-- What a call must look like; the names are those of the error texts.
local ACQUIRE = {
  keys = { 'lock', 'queue', 'state', 'signal' },
  args = { 'TOKEN', 'LEASE_MS', 'WAIT_MS', 'HOLDERS' },
  least = 3,
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
    return ('%d'):format(number)
  end
  local low = number % 1000000000
  return ('%d%09d'):format((number - low) / 1000000000, low)
end

-- A number that was read from a key, nil if it is none that this library wrote.
local function stored(text)
  local n = text and text:find('^%d+$') and tonumber(text)
  return n and n < MAX_EXACT and n or nil
end

-- Whether a call is sure to be as it must be. misuse looks closer, and takes ten times as long.
local function usual(usage, keys, args)
  local lock, queue, state, signal = keys[1], keys[2], keys[3], keys[4]
  local token, a, b, c = args[1], args[2], args[3], args[4]
  return #keys == #usage.keys and (#args == #usage.args or #args == usage.least)
    and lock ~= queue and lock ~= state and queue ~= state
    and signal ~= lock and signal ~= queue and signal ~= state
    and #lock + #queue + #state + #(signal or '') <= KEY_MAX
    and token ~= '' and #(token or '') <= TOKEN_MAX
    and (not a or #a <= 7 and (a == '0' or a:find('^[1-9]%d*$')))
    and (not b or #b <= 7 and (b == '0' or b:find('^[1-9]%d*$')))
    and (not c or #c <= 7 and (c == '0' or c:find('^[1-9]%d*$')))
end

-- The text of what is wrong with a call, nil if nothing is.
local function misuse(usage, keys, args)
  if #keys ~= #usage.keys then
    return ('expected %d keys (%s), got %d'):format(
      #usage.keys, table.concat(usage.keys, ' '), #keys)
  end
  if #args ~= #usage.args and #args ~= usage.least then
    return ('expected %d arguments (%s)%s, got %d'):format(#usage.args,
      table.concat(usage.args, ' '), usage.least and ', the last one is optional' or '', #args)
  end
  for i = 1, #keys do
    local key = keys[i]
    if #key > KEY_MAX then
      return ('key %s must have %d bytes at most, has %d'):format(usage.keys[i], KEY_MAX, #key)
    end
    for j = 1, i - 1 do
      if key == keys[j] then
        return ('keys %s and %s must differ'):format(usage.keys[j], usage.keys[i])
      end
    end
  end
  for i = 1, #args do
    local name, value = usage.args[i], args[i]
    if name == 'TOKEN' then
      if value == '' then
        return 'TOKEN must not be empty'
      elseif #value > TOKEN_MAX then
        return ('TOKEN must have %d bytes at most, has %d'):format(TOKEN_MAX, #value)
      end
    elseif #value > 13 or not value:find('^%d+$') or value + 0 > NUMBER_MAX[name] then
      return ('%s must be a whole number%s, %s at most, got "%s"'):format(
        name, name == 'HOLDERS' and '' or ' of milliseconds', decimal(NUMBER_MAX[name]),
        (value:sub(1, 40):gsub('[^ -~]', '?')))
    end
    if name ~= 'TOKEN' then
      args[i] = value:gsub('^0+(%d)', '%1') -- Redis takes no number with a zero before it
    end
  end
end

-- A public function: checks the call, and turns an error of Redis (WRONGTYPE) into the reply as
-- it is, without the stack that a thrown one gets.
local function public(usage, body)
  return function(keys, args)
    call, try = redis.call, redis.pcall
    local wrong = not usual(usage, keys, args) and misuse(usage, keys, args)
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
    local time = call('TIME')
    local micros = time[2]
    c.micros_text = time[1] .. (#micros == 6 and micros or ('00000' .. micros):sub(-6))
    micros = time[1] * 1000000 + micros
    c.micros, c.now = micros, (micros - micros % 1000) / 1000
  end
end

-- What comes after a number of a key, and not before the clock: max(number + 1, microseconds). As
-- text, and as number. To make a number of sixteen digits takes long, so texts are compared.
local function after(c, text)
  local number = 0
  if text and (#text ~= #c.micros_text or text >= c.micros_text) then
    number = stored(text) or 0
  end
  if number < c.micros then
    return c.micros_text, c.micros
  end
  return decimal(number + 1), number + 1
end

-- What the state says of a waiter. Without an entry (the hash was lost) its signal is nil, and it
-- has CLAIM_MS to call and be known again.
local function waiter_of(c, token, entry)
  local called, wait, lease, holders, signal
  if entry and #entry <= ENTRY_MAX then
    called, wait, lease, holders, signal = entry:match('^(%d+) (%d+) (%d+)/?(%d*) (.*)$')
  end
  if called and #called <= 13 then
    called, wait, lease = called + 0, wait + 0, lease + 0
    holders = holders == '' and 1 or holders + 0
    if wait <= NUMBER_MAX.WAIT_MS and lease <= NUMBER_MAX.LEASE_MS
      and holders <= NUMBER_MAX.HOLDERS then
      return {
        token = token, called = called, wait = wait, lease = lease, holders = holders,
        signal = signal,
      }
    end
  end
  c.since = c.since or stored(call('HGET', c.state, 'since')) or c.now
  return { token = token, called = c.since, wait = CLAIM_MS, lease = CLAIM_MS, holders = 1 }
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
    call('ZREMRANGEBYRANK', c.queue, 0, n - 1)
    call('HDEL', c.state, unpack(fields))
  end
end

-- Removes one token from the queue. Returns whether it was there.
local function leave(c, token)
  if call('ZREM', c.queue, token) == 0 then
    return false
  end
  call('HDEL', c.state, '@' .. token)
  return true
end

-- What a call knows.
local function begin(keys, token)
  return {
    lock = keys[1], queue = keys[2], state = keys[3], token = token,
    holder = nil, -- '': nobody, SHARED: those in the sorted set
    fence = nil, last = nil, -- as text, false if missing; last for lock_acquire alone
    tokens = nil, values = nil, looks = LOOKS_MAX, -- by read_front
    first = false, -- nil: nobody waits, false: not known
    now = nil, micros = nil, micros_text = nil, -- by tell_time
  }
end

-- Notes what the state says of the lock: the fence, and whether the lock was last held together.
local function note_fence(c, text)
  if text and #text > 16 then
    text = text:match('^(%d+) shared$') or false
    c.shared = text
  end
  c.fence, c.new = text, not text
end

-- Reads the tokens in front, to the rank last, and what the state says of them; for lock_acquire
-- also c.mine, what it says of the caller.
local function read_front(c, last)
  local tokens = call('ZRANGE', c.queue, '0', last)
  c.tokens, c.looks = tokens, c.looks - #tokens - 10
  if #tokens == 0 then
    if c.fence == nil then
      note_fence(c, call('HGET', c.state, 'fence'))
    end
    return
  end
  local fields = { 'fence', c.last == nil and 'fence' or '@' .. c.token }
  for i = 1, #tokens do
    c.looks = c.looks - (#tokens[i] / 512) ^ 2
    tokens[i] = tokens[i]:sub(1, TOKEN_MAX + 1) -- a longer one is none of ours
    fields[2 + i] = '@' .. tokens[i]
  end
  local values = call('HMGET', c.state, unpack(fields))
  c.values, c.mine = values, values[2]
  if c.fence == nil then
    note_fence(c, values[1])
  end
end

-- Some waiter that was not looked at: it may live, so nobody takes the lock, until another call.
local UNSEEN = {}

-- Fills in c.first, the first waiter that is alive as far as known; those before it are dropped.
-- Begins with what read_front has just read, if it has. c.dead has the signal lists that were found
-- unread, each with the deadline: who uses one and has not called since is dropped. The caller is
-- alive. Each waiter is dropped once, so the cost is amortised. If more are dead than one call may
-- drop, c.first is UNSEEN.
local function find_first(c)
  local last = '0'
  c.first = nil
  while true do
    if not c.tokens then
      if c.looks <= 0 then
        c.first = UNSEEN
        return
      end
      read_front(c, last)
    end
    local tokens, values = c.tokens, c.values
    c.tokens = nil
    if #tokens == 0 then
      return
    end
    tell_time(c)
    for i = 1, #tokens do
      local token = tokens[i]
      local waiter = waiter_of(c, token, values[2 + i])
      local unread_since = c.dead and c.dead[waiter.signal or '']
      local dead = unread_since and waiter.called <= unread_since and token ~= c.token
      if not dead and not lapsed(c, waiter) and #token <= TOKEN_MAX and token ~= '' then
        drop_first(c, tokens, i - 1)
        c.first = waiter
        return
      end
    end
    drop_first(c, tokens, #tokens)
    last = BATCH_LAST
  end
end

-- c.holder of a lock that is held together.
local SHARED = {}

-- How many hold the lock together. A share has ended in the millisecond of its end.
local function shares(c)
  c.count = c.count or call('ZCOUNT', c.lock, '(' .. decimal(c.now), '+inf')
  return c.count
end

-- Who holds the lock: c.holder; and c.share, whether the caller is one of those who share it. A
-- string is read only as far as it can be a token. That the state does not know of the sorted set
-- happens only if it was lost.
local function read_lock(c)
  if not c.shared then
    local holder = try('GETRANGE', c.lock, '0', TOKEN_MAX_TEXT)
    if holder == '' or type(holder) == 'string' then
      c.holder = holder
      return
    elseif not holder.err:find('^WRONGTYPE') then -- refused
      error(holder)
    end
  end
  tell_time(c)
  local ends = call('ZSCORE', c.lock, c.token)
  c.share = ends and ends + 0 > c.now and ends
  c.holder = (c.share or shares(c) > 0) and SHARED or ''
end

-- Whether the lock can be given to one who wants it with so many holders.
local function fits(c, holders)
  if c.holder ~= SHARED then
    return c.holder == ''
  end
  return holders == 0 or holders > 1 and shares(c) < holders
end

-- The TTL of the state: MEMORY_MS more than what is left of any lease and any place in the queue.
-- Span is one of these; 0: it never ends. While the lock is in use the TTL only grows. A state
-- that is new, or that had none because of a lease without end, gets one.
local function keep_state(c, span)
  if span == 0 then
    call('PERSIST', c.state)
  elseif c.new or call('PEXPIRE', c.state, decimal(span + MEMORY_MS), 'GT') == 0
    and call('PTTL', c.state) == -1 then
    span = math.max(span, call('PTTL', c.queue))
    call('PEXPIRE', c.state, decimal(span + MEMORY_MS))
    c.new = false
  end
end

-- The TTLs of a lock that is held together: its sorted set lives as long as the longest lease. If
-- no lease is new (c.span), the state lives long enough.
local function keep_shares(c)
  local ends = call('ZRANGE', c.lock, '-1', '-1', 'WITHSCORES')[2]
  if ends + 0 >= MAX_EXACT then
    call('PERSIST', c.lock)
    keep_state(c, 0)
  else
    call('PEXPIRE', c.lock, decimal(ends - c.now))
    if c.span or c.new then
      keep_state(c, math.max(ends - c.now, c.span or 1))
    end
  end
end

-- Drops shares that have ended. They count no more, so a batch in each call that adds or removes
-- one is enough.
local function drop_ended(c)
  local ended = call('ZRANGE', c.lock, '-inf', decimal(c.now), 'BYSCORE',
    'LIMIT', '0', BATCH)
  if #ended > 0 then
    call('ZREM', c.lock, unpack(ended))
  end
end

-- The fence of one that the lock is given to: a new one, unless it is held already. As text, and as
-- number.
local function next_fence(c)
  local number = c.holder ~= '' and stored(c.fence)
  if number and number > 0 then
    return c.fence, number
  end
  return after(c, c.fence)
end

-- Gives the lock to a token that it fits, or has it keep it, for this lease (0: it never ends).
local function grant(c, token, lease, lease_text, holders, fence)
  if fence ~= c.fence then
    call('HSET', c.state, 'fence', holders == 1 and fence or fence .. ' shared')
    c.fence = fence
  end
  if holders == 1 then
    if lease == 0 then
      call('SET', c.lock, token)
    else
      call('SET', c.lock, token, 'PX', lease_text)
    end
    c.holder = token
    return
  end
  if c.holder ~= SHARED then
    if c.replaces then
      call('UNLINK', c.lock)
    end
    c.holder, c.count = SHARED, 0
  end
  -- The score is the first millisecond without it: a lease is never shorter than it says.
  call('ZADD', c.lock, lease == 0 and NEVER or decimal(c.now + lease + 1), token)
  if c.count and not (c.share and token == c.token) then
    c.count = c.count + 1
  end
end

-- Whether a list is a signal list of this lock or prefix, by its name.
local function is_signal_list(lock, list)
  local prefix = list:match('^(.-)%-signal:')
  if prefix and lock:sub(1, #prefix + 1) == prefix .. ':' then
    return true
  end
  local tag = lock:match('{.-}')
  return tag and tag ~= '{}' and list:find(tag, 1, true)
end

-- Tells a waiter that it was given the lock, until the end of this lease; with a fence of '0' that
-- it shall call. Returns whether that was possible; if not because its client is dead, also the
-- deadline of the signal that this client has left unread; and whether the slot is being moved.
--
-- A client is dead if its oldest signal lies unread past its deadline and this waiter of it has
-- not called since. If it has, the old signal is only litter: removed, so that no list grows.
local function tell(c, waiter, fence, lease)
  local list = waiter.signal
  if not list or not is_signal_list(c.lock, list) then
    return false
  end
  -- The only step that can be refused comes first: nothing would be rolled back.
  local unread = try('RPUSH', list,
    fence .. ' ' .. decimal(c.now + lease) .. ' ' .. waiter.token)
  if type(unread) == 'table' then
    return false, nil, unread.err:find('non local key', 1, true)
  end
  local deadline
  if unread > 1 then
    deadline = tonumber(call('LINDEX', list, '0'):match('^%d+ (%d+) .'))
    if not deadline then -- somebody else's list
      call('RPOP', list)
      return false
    end
  end
  if deadline and deadline >= c.now and fence == '0' then -- what lies there will do
    call('RPOP', list)
    c.look_at = deadline + 1
    return true
  end
  -- An unread signal proves death for as long as its client's other waiters keep a place.
  call('PEXPIRE', list, decimal(CLAIM_MS + waiter.wait))
  if deadline and deadline < c.now then
    if waiter.called <= deadline then
      call('RPOP', list)
      return false, deadline
    end
    call('LPOP', list)
  end
  return true
end

-- Gives the lock to the waiters in front that it fits, by signal and with a short lease. The first
-- one gets a new fence; those who share have the same. Stops at the caller: that one needs no
-- signal. Stops at one that cannot be told (its entry was lost, its list is none of this lock's, or
-- the server refuses a key that the call did not declare): it takes the lock when it checks in.
-- While the slot is moved key by key nobody can check in, so a silent waiter keeps its place.
--
-- One that waits to hold the lock alone keeps out a caller that would share it (c.sharing). Having
-- been silent for CLAIM_MS it is told to call: if it is dead, this signal will stay unread.
local function let_in(c)
  while c.first and c.first ~= UNSEEN and c.first.token ~= c.token do
    local waiter, fence = c.first, '0'
    local lease = waiter.lease
    if lease == 0 or lease > CLAIM_MS then
      lease = CLAIM_MS
    end
    if fits(c, waiter.holders) then
      if c.given == LET_IN_MAX then
        return
      end
      fence = next_fence(c)
    elseif c.sharing and c.holder == SHARED and waiter.holders == 1 then
      c.look_at = waiter.called + CLAIM_MS + 1
      if c.now < c.look_at then
        return
      end
      lease, c.look_at = CLAIM_MS, c.now + CLAIM_MS + 1
    else
      return
    end
    local told, unread_since, moving = tell(c, waiter, fence, lease)
    if told and fence == '0' then
      return
    elseif told then
      grant(c, waiter.token, lease, decimal(lease), waiter.holders, fence)
      leave(c, waiter.token)
      if waiter.holders == 1 then
        keep_state(c, math.max(lease, waiter.lease, waiter.wait))
        c.first = false
        return
      end
      c.span = math.max(c.span or 1, waiter.lease, waiter.wait)
      c.given = (c.given or 0) + 1
    elseif unread_since or c.unblocks or silent(c, waiter) and not moving then
      if unread_since then
        c.dead = c.dead or {}
        c.dead[waiter.signal] = unread_since
      else
        c.unblocks = false
      end
      drop_first(c, { waiter.token }, 1)
    else
      return
    end
    find_first(c)
  end
end

-- The caller has the lock for this lease, from now on: it fits, or the caller has had it before. If
-- others share it, the next ones may fit as well. Returns the reply of lock_acquire.
local function hold(c, lease_text, holders)
  local fence, number = next_fence(c)
  local lease = lease_text + 0
  grant(c, c.token, lease, lease_text, holders, fence)
  if c.holder == SHARED then
    c.sharing, c.span = false, c.span or 1 -- nobody keeps the caller out any more
    if c.first then
      find_first(c)
      let_in(c)
    end
    if c.count ~= 1 then
      drop_ended(c)
    end
    keep_shares(c)
  else
    keep_state(c, lease)
  end
  return { 1, number, lease == 0 and -1 or lease, c.now }
end

-- Hands on a lock that is free or held together. If nobody takes the free one, its keys go.
local function pass_on(c, released)
  find_first(c)
  let_in(c)
  if c.holder == SHARED and (c.span or released) then
    keep_shares(c)
  elseif c.holder == '' then
    call('UNLINK', c.lock)
    if c.first then
      keep_state(c, 1)
    else -- nobody uses it
      call('PEXPIRE', c.state, MEMORY_TEXT)
    end
  end
end

-- Puts the caller into the queue, or notes that it has called again. Returns its position.
--
-- While one holds the lock alone nobody needs to know who is first, but a waiter that calls again:
-- if those before it have died, it may be the next one.
local function enqueue(c, signal, lease, wait, holders)
  local last, position = c.last, c.first == nil and 1
  if not last and not position then
    last = call('ZRANGE', c.queue, '-1', '-1', 'WITHSCORES')[2] -- none, or the hash was lost
    position = not last and 1
  end
  local place = after(c, last)
  local added = call('ZADD', c.queue, 'NX', place, c.token) == 1
  if not added then
    position = nil
    if c.first == false then
      find_first(c)
    end
    if c.first and c.first.token == c.token then
      position = 0
    elseif not (c.mine and lapsed(c, waiter_of(c, c.token, c.mine))) then
      position = call('ZRANK', c.queue, c.token)
    end
    added = not position
    if added then
      call('ZADD', c.queue, place, c.token)
    else
      position, place = position + 1, last
    end
  end
  position = position or call('ZCARD', c.queue)

  local now = c.micros_text:sub(1, -4)
  if holders ~= 1 then
    lease = lease .. '/' .. holders
  end
  local entry = now .. ' ' .. wait .. ' ' .. lease .. ' ' .. signal
  if added and position == 1 then
    call('PEXPIRE', c.queue, wait)
    if call('HLEN', c.state) > #{ 'fence', 'last', 'since' } then
      -- A queue that expired or was deleted left its entries behind: start the hash anew.
      call('UNLINK', c.state)
      call('HSET', c.state, 'fence', (c.fence or '0') .. (c.holder == SHARED and ' shared' or ''))
      c.new = true
    end
    call('HSET', c.state, '@' .. c.token, entry, 'last', place, 'since', now)
  else
    call('PEXPIRE', c.queue, wait, 'GT')
    call('HSET', c.state, '@' .. c.token, entry, 'last', place)
    if c.new and not call('HGET', c.state, 'since') then
      call('HSET', c.state, 'since', now)
    end
  end
  return position
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
--       HOLDERS   so many may hold the lock together, TOKEN included; 0: any number; 1: alone, as
--                 without it
--
-- [1, fence, lease_left_ms, now_ms]      TOKEN holds the lock; lease_left_ms -1: never expires
-- [0, position, check_in_ms, now_ms]     queued, position 1 is next; call again within check_in_ms
-- [0, 0, holder_left_ms, now_ms]         busy and WAIT_MS is 0: not queued
local function acquire(keys, args)
  local signal, token, lease, wait = keys[4], args[1], args[2], args[3]
  local holders = args[4] and args[4] + 0 or 1
  local c = begin(keys, token)
  local values = call('HMGET', c.state, 'fence', 'last')
  note_fence(c, values[1])
  c.last = values[2]
  read_lock(c)
  tell_time(c)

  if c.holder == token then
    call('ZCARD', c.queue)
    return hold(c, lease, 1)
  elseif c.holder == '' or c.holder == SHARED then
    read_front(c, '0')
    if wait ~= '0' and not c.share and (#c.tokens > 0 or not fits(c, holders)) then
      call('LLEN', signal)
    end
    find_first(c)
    if c.share then
      return hold(c, lease, 0)
    end
    if c.first then
      c.sharing = holders ~= 1
      let_in(c)
    end
    if fits(c, holders) and (not c.first or c.first.token == token) then
      if c.first then
        leave(c, token)
      end
      return hold(c, lease, holders)
    end
  elseif wait ~= '0' then
    call('LLEN', signal)
  end

  if wait == '0' and leave(c, token) and c.holder == SHARED then
    c.sharing = false -- nobody keeps the caller out: it has given up
    find_first(c)
    let_in(c)
  end
  if c.span then
    keep_shares(c)
  end
  if wait == '0' then
    return { 0, 0, c.holder == '' and 0 or call('PTTL', c.lock), c.now }
  end

  local position = enqueue(c, signal, lease, wait, holders)
  local check_in = math.min(position * HEAD_CHECK_MS, wait / 3)
  local long = wait + 0 > MEMORY_MS -- else the state outlives the wait anyway
  if position == 1 or long or c.new then
    local left = c.holder == '' and 0 or call('PTTL', c.lock)
    if long or c.new then
      keep_state(c, left < 0 and 0 or math.max(left, wait))
    end
    if position == 1 and left >= 0 then
      check_in = math.min(check_in, left + 1)
    end
  end
  if c.holder == SHARED and holders ~= 1 then
    if position == 1 and not fits(c, holders) then -- when enough shares have ended
      local rank = decimal(-holders) -- from the longest share
      local ends = call('ZRANGE', c.lock, rank, rank, 'WITHSCORES')[2]
      check_in = math.min(check_in, ends - c.now)
    elseif position == 2 and c.look_at then
      check_in = math.min(check_in, c.look_at - c.now)
    end
  end
  if c.first == UNSEEN and (c.holder == '' or c.holder == SHARED) then
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
  local c = begin(keys, args[1])
  read_front(c, '0')
  read_lock(c)
  if c.holder == c.token then
    c.holder, c.replaces = '', true
    pass_on(c)
    return 1
  elseif c.share then
    call('ZREM', c.lock, c.token)
    c.span = c.share == NEVER and 1 or nil -- the state gets its TTL back
    c.share, c.count = false, nil
    drop_ended(c)
    if shares(c) == 0 then
      c.holder = ''
    end
    pass_on(c, true)
    return 1
  end
  local left = leave(c, c.token)
  if c.holder == '' or c.holder == SHARED then
    if left then
      c.tokens = nil -- the caller may be in it
    end
    pass_on(c)
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
  local c = begin(keys, args[1])
  local lease = args[2]
  note_fence(c, call('HGET', c.state, 'fence'))
  read_lock(c)
  if c.holder == SHARED then
    find_first(c)
    if c.share then
      grant(c, c.token, lease + 0, lease, 0, c.fence)
      c.span = 1
    end
    c.token = '' -- a waiter like any other
    let_in(c)
    if c.span then
      keep_shares(c)
    end
    return c.share and 1 or 0
  end
  call('ZCARD', c.queue)
  if c.holder ~= c.token then
    return 0
  elseif lease == '0' then
    call('PERSIST', c.lock)
  else
    call('PEXPIRE', c.lock, lease)
  end
  keep_state(c, lease + 0)
  return 1
end

-- Takes the lock away from all who hold it, for the operator of a stuck one. A former holder learns
-- it at its next renewal; what it still writes, only the fencing token keeps out. If the lock is
-- free and its first waiter cannot be told, that one blocks it: it loses its place.
--
-- KEYS  lock queue state
--
-- 1  taken away and handed to the next waiter
-- 0  nobody held it
local function reset(keys)
  local c = begin(keys, '')
  read_front(c, '0')
  read_lock(c)
  local free = c.holder == ''
  c.holder, c.replaces, c.unblocks = '', true, free
  pass_on(c)
  return free and 0 or 1
end

-- Shows the lock and its queue. Reads only; look fields up by name, more may follow.
--
-- KEYS  lock queue state
--
-- holder   the token, '' if nobody holds the lock; of several the one with the longest lease
-- fence    the last fencing token given out (the holder's, if there is one), 0 if not known
-- ttl_ms   what is left of that lease; -1: never expires, -2: nobody holds the lock
-- waiting  how many wait
-- waiters  the first 1,000, fewer if their tokens are long, each: token, waited_ms, lapses_in_ms,
--          lease_ms, signal ('' if lost), HOLDERS
-- now_ms   the server's time
-- held     how many hold it
-- holders  the first 1,000 who hold it together, in the order in which their leases end, fewer if
--          their tokens are long, each: token, ttl_ms (-1: never expires)
local function inspect(keys)
  local c = begin(keys, '')
  tell_time(c)
  local waiting = call('ZCARD', keys[2])
  local waiters, bytes = {}, 0
  for from = 0, LIST_MAX - BATCH, BATCH do
    local places = call('ZRANGE', keys[2], from, from + BATCH - 1, 'WITHSCORES')
    local fields = {}
    for i = 1, #places, 2 do
      fields[#fields + 1] = '@' .. places[i]:sub(1, TOKEN_MAX + 1)
    end
    local values = #fields > 0 and call('HMGET', keys[3], unpack(fields)) or {}
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
          waiter.holders,
        }
      end
      bytes = bytes + #token + #(values[i] or '')
    end
    if #fields < BATCH or bytes > LIST_BYTES then
      break
    end
  end
  note_fence(c, call('HGET', c.state, 'fence'))
  read_lock(c)
  local held, holders, ttl = 0, {}, -2
  if type(c.holder) == 'string' and c.holder ~= '' then
    held, ttl = 1, call('PTTL', c.lock)
  elseif c.holder == SHARED then
    held, bytes = shares(c), 0
    for from = 0, math.min(held, LIST_MAX) - 1, BATCH do
      local list = bytes <= LIST_BYTES and call('ZRANGE', c.lock, '(' .. decimal(c.now), '+inf',
        'BYSCORE', 'LIMIT', from, BATCH, 'WITHSCORES') or {}
      for i = 1, #list, 2 do
        local ends = list[i + 1] + 0
        holders[#holders + 1] = { list[i], ends >= MAX_EXACT and -1 or ends - c.now - 1 }
        bytes = bytes + #list[i]
      end
    end
    local longest = call('ZRANGE', c.lock, '-1', '-1', 'WITHSCORES')
    c.holder, ttl = longest[1], longest[2] + 0 >= MAX_EXACT and -1 or longest[2] - c.now - 1
  end
  return {
    'holder', c.holder,
    'fence', stored(c.fence) or 0,
    'ttl_ms', ttl,
    'waiting', waiting,
    'waiters', waiters,
    'now_ms', c.now,
    'held', held,
    'holders', holders,
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
  description = 'lock queue state signal | TOKEN LEASE_MS WAIT_MS [HOLDERS]: take the lock or queue'
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
