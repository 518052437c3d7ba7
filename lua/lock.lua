#!lua name=lock
--
-- redislock: a distributed lock with a queue. First come, first served; handed over, never dropped.
-- One token holds the lock alone, or several hold it together (HOLDERS).
--
-- This file alone decides who holds a lock, atomically and on the server's clock. A client calls
-- lock_acquire. While the first element of the reply is 0, the client blocks in BLPOP on its
-- signal list for check_in_ms and calls again.
--
-- The keys of a lock called NAME share the hash tag {NAME}, so they live in one cluster slot:
--
--   lock:{NAME}         string  held alone: the holder's token; its PX is the lease
--                       zset    held together: the tokens; score: the end of each share in ms
--                               (2^53: never); its PX is the longest lease
--   lock-queue:{NAME}   zset    the waiting tokens; score: microseconds of arrival, only growing
--   lock-state:{NAME}   hash    fence   the last fencing token; ' shared' follows if a sharer got
--                                       it, so a call knows the lock's type before it reads it
--                               last    the last score in the queue
--                               since   ms: the start of the queue, or of this hash if an older
--                                       one was lost; stands for the CALLED_MS of a lost @TOKEN
--                               @TOKEN  CALLED_MS WAIT_MS LEASE_MS SIGNAL of a waiting token; if
--                                       it wants to share, LEASE_MS/HOLDERS
--   SIGNAL              list    where a client is told; an element is FENCE DEADLINE_MS TOKEN;
--                               FENCE 0 only asks for a call. The list is named P-signal:... if
--                               the lock is named P:..., or its name contains the lock's {NAME}
--
-- Always true:
--
--   * Only the tokens in lock:{NAME} hold the lock. A signal is a hint and may get lost.
--   * A lock that nobody holds fits every waiter. A shared lock fits a waiter with HOLDERS 0, and
--     a waiter with HOLDERS n > 1 while fewer than n share it. No limit is stored.
--   * Nobody overtakes. A call that finds that the lock fits the first live waiter gives it to
--     that waiter. The caller takes it only if no other live waiter is first.
--   * A lock stays free while somebody waits only until the next call after a lease ran out, or
--     while its first waiter cannot be told.
--   * A handed-over lease lasts at most CLAIM_MS until its holder has called again.
--   * A waiter is dropped at the front of the queue if
--       - WAIT_MS has passed since its last call,
--       - its client left a signal unread past the deadline and it has not called since, or
--       - the lock fits it, it cannot be told, and it is CLAIM_MS late for a check-in.
--   * Co-holders have the same fence. Each share ends by itself. An ended share is not counted,
--     and is removed later.
--   * A signal list is known by its name and by its oldest element. A forged lock-state cannot
--     make a caller with more rights write elsewhere.
--   * Fencing tokens grow: max(last + 1, server time in microseconds).
--   * Every key has a TTL, except lock and state while somebody holds without expiry. If that
--     lock is deleted by hand, the state keeps no TTL until the next call.
--
-- All functions read every key before their first write, so a key of the wrong type is an error
-- with nothing written. Times are milliseconds. A lease of 0 never expires.

local VERSION = '1.0.0'

local call, try -- redis.call and redis.pcall: missing while Redis loads this file

local CLAIM_MS = 2000       -- a handed-over lease, until its holder has called
local HEAD_CHECK_MS = 1000  -- check-in interval of the first waiter; the tenth waits 10 s
local SILENCE_MS = 10000    -- longest check-in interval of a waiter that cannot be told
local MEMORY_MS = 600000    -- lock-state remembers the fence this long after its last user
local MEMORY_TEXT = '600000' -- Redis takes text, and formatting a number is slow
local MAX_EXACT = 2 ^ 53    -- this library writes no larger number
local NEVER = '9007199254740992' -- MAX_EXACT, the score of a share that never expires

-- The limits of a call. Stored values beyond them are ignored, so they bound how long a call holds
-- the server.
local TOKEN_MAX = 16384     -- bytes
local TOKEN_MAX_TEXT = '16384'
local KEY_MAX = 8192        -- bytes of the name of each key
local NUMBER_MAX = {        -- of 13 digits at most
  LEASE_MS = 9999999999999, -- 317 years
  WAIT_MS = 86400000,       -- a day
  HOLDERS = 9999999999999,
}
local ENTRY_MAX = KEY_MAX + 64
local LET_IN_MAX = 100      -- shares that one call hands over
local BATCH = 100           -- waiters read at once after the first waiter turned out dead
local BATCH_LAST = '99'
local LOOKS_MAX = 4000      -- what one call may read: a waiter costs 1 + (bytes of token / 512)^2,
                            -- a batch 10
local LIST_MAX = 1000       -- waiters that lock_inspect lists; it counts all of them
local LIST_BYTES = 2 ^ 20   -- lock_inspect stops after the batch that exceeds this

-- The form of each call. Error texts use these names.
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

-- A whole number as text. '%.0f' costs as much as a command, Redis's own conversion even more. '%d'
-- is narrow on a 32-bit server, so it gets nine digits at a time.
local function decimal(number)
  if number < 1000000000 then
    return ('%d'):format(number)
  end
  local low = number % 1000000000
  return ('%d%09d'):format((number - low) / 1000000000, low)
end

-- A number read from a key; nil if this library cannot have written it.
local function stored(text)
  local n = text and text:find('^%d+$') and tonumber(text)
  return n and n < MAX_EXACT and n or nil
end

-- A quick check: true if the call is surely correct. Otherwise misuse decides, ten times slower.
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

-- The error text for a wrong call; nil if the call is correct.
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
      args[i] = value:gsub('^0+(%d)', '%1') -- Redis refuses leading zeros
    end
  end
end

-- A public function: checks the call, and returns an error of Redis (WRONGTYPE) unchanged. A thrown
-- error would carry a stack.
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

-- Reads the clock, at most once per call.
local function tell_time(c)
  if not c.now then
    local time = call('TIME')
    local micros = time[2]
    c.micros_text = time[1] .. (#micros == 6 and micros or ('00000' .. micros):sub(-6))
    micros = time[1] * 1000000 + micros
    c.micros, c.now = micros, (micros - micros % 1000) / 1000
  end
end

-- max(number + 1, microseconds) for a stored number, as text and as number. Parsing sixteen digits
-- is slow, so it compares texts first.
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

-- The state's entry of a waiter. If the entry is lost, the signal is nil and the waiter has
-- CLAIM_MS to call again.
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

-- Whether a waiter is CLAIM_MS late for its check-in.
local function silent(c, waiter)
  return c.now > waiter.called + math.min(waiter.wait / 3, SILENCE_MS) + CLAIM_MS
end

-- Removes the first n tokens of the queue: the first n of tokens.
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

-- The context of a call.
local function begin(keys, token)
  return {
    lock = keys[1], queue = keys[2], state = keys[3], token = token,
    holder = nil, -- '': nobody; SHARED: the tokens of the sorted set
    fence = nil, last = nil, -- as text, false if missing; only lock_acquire sets last
    tokens = nil, values = nil, looks = LOOKS_MAX, -- set by read_front
    first = false, -- nil: nobody waits; false: not known
    now = nil, micros = nil, micros_text = nil, -- set by tell_time
  }
end

-- Notes the state's fence, and whether the lock was last held together.
local function note_fence(c, text)
  if text and #text > 16 then
    text = text:match('^(%d+) shared$') or false
    c.shared = text
  end
  c.fence, c.new = text, not text
end

-- Reads the first tokens of the queue, up to rank last, and their entries; for lock_acquire also
-- the caller's own entry, c.mine.
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
    tokens[i] = tokens[i]:sub(1, TOKEN_MAX + 1) -- no call accepts a longer token
    fields[2 + i] = '@' .. tokens[i]
  end
  local values = call('HMGET', c.state, unpack(fields))
  c.values, c.mine = values, values[2]
  if c.fence == nil then
    note_fence(c, values[1])
  end
end

-- An unread waiter: it may be alive, so this call gives the lock to nobody.
local UNSEEN = {}

-- Sets c.first to the first live waiter and drops the dead ones before it. Uses the batch that
-- read_front has just read, if any. c.dead maps unread signal lists to their deadlines: a waiter
-- of such a list is dead unless it has called since. The caller is alive. Each waiter is dropped
-- once, so the cost is amortised. Sets UNSEEN if more are dead than one call may drop.
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

-- How many share the lock. A share has ended in the millisecond of its score.
local function shares(c)
  c.count = c.count or call('ZCOUNT', c.lock, '(' .. decimal(c.now), '+inf')
  return c.count
end

-- Sets c.holder, and c.share if the caller has a share. Reads no more of a string than a token
-- can have. WRONGTYPE means a sorted set whose state was lost.
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

-- Whether the lock fits a caller or waiter with this HOLDERS.
local function fits(c, holders)
  if c.holder ~= SHARED then
    return c.holder == ''
  end
  return holders == 0 or holders > 1 and shares(c) < holders
end

-- The TTL of the state: MEMORY_MS more than the rest of every lease and place. span is one of
-- these; 0: it never ends. While the lock is in use the TTL only grows. A state without a TTL gets
-- one if it is new or if a lease without end is over.
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

-- The TTLs of a shared lock: its sorted set lives as long as the longest lease. Without a new
-- lease (c.span), the state already lives long enough.
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

-- Removes ended shares. Nothing counts them, so a batch per call that adds or removes a share is
-- enough.
local function drop_ended(c)
  local ended = call('ZRANGE', c.lock, '-inf', decimal(c.now), 'BYSCORE',
    'LIMIT', '0', BATCH)
  if #ended > 0 then
    call('ZREM', c.lock, unpack(ended))
  end
end

-- The fence for the next holder, as text and as number. New, unless the lock is held already.
local function next_fence(c)
  local number = c.holder ~= '' and stored(c.fence)
  if number and number > 0 then
    return c.fence, number
  end
  return after(c, c.fence)
end

-- Gives the lock to a token that it fits, or renews it, for this lease (0: it never ends).
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
  -- The score is the first millisecond after the lease, so a lease is never too short.
  call('ZADD', c.lock, lease == 0 and NEVER or decimal(c.now + lease + 1), token)
  if c.count and not (c.share and token == c.token) then
    c.count = c.count + 1
  end
end

-- Whether the name is that of a signal list for this lock or prefix.
local function is_signal_list(lock, list)
  local prefix = list:match('^(.-)%-signal:')
  if prefix and lock:sub(1, #prefix + 1) == prefix .. ':' then
    return true
  end
  local tag = lock:match('{.-}')
  return tag and tag ~= '{}' and list:find(tag, 1, true)
end

-- Tells a waiter that it has the lock until the end of this lease; a fence of '0' asks it to call.
-- Returns whether that was possible. If the waiter's client is dead, also returns the deadline of
-- the signal that the client left unread; and whether the server refused it because the slot moves.
--
-- A client is dead if its oldest signal lies unread past the deadline and this waiter has not
-- called since. If the waiter has called, the old signal is litter and is removed: no list grows.
local function tell(c, waiter, fence, lease)
  local list = waiter.signal
  if not list or not is_signal_list(c.lock, list) then
    return false
  end
  -- The only step that Redis can refuse comes first: Redis rolls nothing back.
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
  if deadline and deadline >= c.now and fence == '0' then -- the unread signal is enough
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

-- Gives the lock to the first waiters that it fits, by signal and with a short lease. The first of
-- them gets a new fence; sharers have the same. Stops at
--   - the caller, which needs no signal, and
--   - a waiter that cannot be told: its entry is lost, its list is not a signal list, or the server
--     refuses an undeclared key. This waiter takes the lock when it checks in. While the slot moves
--     key by key nobody can check in, so a silent waiter keeps its place.
--
-- A waiter that wants the lock alone keeps out a caller that wants to share it (c.sharing). After
-- CLAIM_MS of silence it is told to call. If it is dead, this signal stays unread.
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

-- Gives the caller the lock, which fits it or is its own already. If it is shared, lets in the next
-- waiters too. Returns the reply of lock_acquire.
local function hold(c, lease_text, holders)
  local fence, number = next_fence(c)
  local lease = lease_text + 0
  grant(c, c.token, lease, lease_text, holders, fence)
  if c.holder == SHARED then
    c.sharing, c.span = false, c.span or 1 -- the caller is in: no waiter keeps it out
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

-- Hands on a lock that is free or shared. Deletes a free lock that nobody takes.
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
-- While the lock is held alone, only a waiter that calls again looks for the first live waiter: it
-- may be the first itself.
local function enqueue(c, signal, lease, wait, holders)
  local last, position = c.last, c.first == nil and 1
  if not last and not position then
    last = call('ZRANGE', c.queue, '-1', '-1', 'WITHSCORES')[2] -- nobody waits, or hash lost
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

-- Takes the lock, or queues for it. A repeated call only renews: a waiter keeps its place for
-- another WAIT_MS, a holder's lease ends LEASE_MS from now.
--
-- KEYS  lock queue state signal
-- ARGV  TOKEN     any bytes; unique for each wait
--       LEASE_MS  the lock is lost after this; 0: never
--       WAIT_MS   the place is lost this long after the last call; 0: only try, do not queue
--       HOLDERS   how many may share the lock, TOKEN included; 0: any number; 1 (default): alone
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
    c.sharing = false -- the caller has given up: no waiter keeps it out
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
  local long = wait + 0 > MEMORY_MS -- the state outlives a shorter wait anyway
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
    if position == 1 and not fits(c, holders) then -- look when enough shares have ended
      local rank = decimal(-holders) -- from the longest share
      local ends = call('ZRANGE', c.lock, rank, rank, 'WITHSCORES')[2]
      check_in = math.min(check_in, ends - c.now)
    elseif position == 2 and c.look_at then
      check_in = math.min(check_in, c.look_at - c.now)
    end
  end
  if c.first == UNSEEN and (c.holder == '' or c.holder == SHARED) then
    check_in = 1 -- the next call goes on dropping
  end
  return { 0, position, math.max(1, check_in), c.now }
end

-- Releases the lock and hands it to the next waiter, or leaves the queue.
--
-- KEYS  lock queue state
-- ARGV  TOKEN
--
-- 1  TOKEN held the lock: released, and handed over if somebody waits
-- 2  TOKEN was queued: it has left
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

-- Takes a stuck lock away from all its holders, for an operator. A former holder notices at its
-- next renewal; until then only the fencing token keeps its writes out. If the lock is free and its
-- first waiter cannot be told, this waiter blocks the lock and loses its place.
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

-- Shows the lock and its queue. Reads only. Look fields up by name: more may follow.
--
-- KEYS  lock queue state
--
-- holder   the token with the longest lease, '' if nobody holds the lock
-- fence    the last fencing token given out (the holder's, if there is one), 0 if not known
-- ttl_ms   the rest of that lease; -1: never expires; -2: nobody holds the lock
-- waiting  how many wait
-- waiters  the first 1,000, fewer if their tokens are long, each: token, waited_ms, lapses_in_ms,
--          lease_ms, signal ('' if lost), HOLDERS
-- now_ms   the server's time
-- held     how many hold it
-- holders  the first 1,000 that share it, by the end of their leases, fewer if their tokens are
--          long, each: token, ttl_ms (-1: never expires)
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

-- The version of this library, MAJOR.MINOR.PATCH. Callers of an older version with the same MAJOR
-- keep working.
local function version()
  return VERSION
end

-- ---------------------------------------------------------------------------------------------
-- Registration. allow-oom: over maxmemory, callers can still release, renew and reset.
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
