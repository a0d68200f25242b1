-- Shared by every script; the loader puts it in front.
--
-- One hash, the fence, holds everything a token depends on: epoch, counter and the identity of the
-- server they were counted on (run_id, replid). They are lost together or not at all, so a script
-- that finds them whole may count on, and one that does not must refuse.
--
-- Keys:  1 fence   2 lock   3 queue of request ids   4 waiters by request id
-- Each protective check stands on one line that ends in "-- check: NAME"; the tests remove them in
-- turn and see a promise broken.
local FENCE, LOCK, QUEUE, WAITERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local SKIP_MAX = 4096          -- waiters served or passed over in one call
-- A counter fills 32 bits of a token, and one call may mint SKIP_MAX; the keeper rolls the epoch long before.
local COUNTER_MAX = 4294967294 - SKIP_MAX
local ENTRIES_MAX = 32         -- nested entries of one owner
local WORDS_MAX = 64           -- request ids remembered of one grant

local find, match = string.find, string.match

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Is this server the one the fence was counted on? Returns the fence {epoch, counter, run_id, replid, state,
-- watch_until, ttl_high}, or nil and a refusal. `floor` is the highest epoch the caller has ever seen.
local function lineage(floor)
  local f = redis.call('HMGET', FENCE, 'epoch', 'counter', 'run_id', 'replid', 'state', 'watch_until',
    'ttl_high')
  local info = redis.call('INFO', 'server', 'replication')
  if not find(info, '\nrole:master', 1, true) then return nil, {'replica', 0} end -- check: role
  if not f[1] then return nil, {'lost', 0} end -- check: epoch
  if not find(info, '\nrun_id:' .. (f[3] or '-'), 1, true) then return nil, {'lost', f[1] or 0} end -- check: run_id
  if not find(info, '\nmaster_replid:' .. (f[4] or '-'), 1, true) then return nil, {'lost', f[1] or 0} end -- check: replid
  if tonumber(f[1] or 0) < tonumber(floor) then return nil, {'stale', f[1] or 0} end -- check: floor
  return f
end

-- A quarantine lasts as long as the longest TTL granted in the lost epoch, so a longer one than
-- etcd knows of has to be announced there first.
local function too_long(f, ttl)
  if tonumber(ttl) > tonumber(f[7] or 0) then return {'ttl', f[1] or 0, f[7] or 0} end -- check: ttl_high
  return nil
end

-- May this fence grant? Nil when it may, else the refusal.
local function closed(f)
  if f[5] ~= 'open' then return {'quarantine', f[1] or 0} end -- check: quarantine
  if tonumber(f[2] or 0) >= COUNTER_MAX then return {'exhausted', f[1] or 0} end
  return nil
end

local function mint()
  return redis.call('HINCRBY', FENCE, 'counter', 1)
end

-- Tell watchers that the lock changed; free while nobody watches.
local function touched(f)
  if f[6] and tonumber(f[6]) > now_ms() then redis.call('PUBLISH', 'ev:' .. LOCK, '') end
end

-- `via` is the channel of the process that asked: only that one may withdraw the request. Once it is
-- granted and asked for through another one too, nobody may (SEVERAL): calls of a process that hung
-- arrive late, so the last to arrive need not be the one whose caller holds the lock.
local SEVERAL = '*'

local function hold_exclusive(f, owner, request, ttl, since, via)
  local counter = mint()
  redis.call('HSET', LOCK, 'mode', 'x', 'owner', owner, 'epoch', f[1] or 0, 'counter', counter,
    'ttl', ttl, 'since', since, 'entries', 1, 'requests', request, 'via', via)
  redis.call('PEXPIRE', LOCK, ttl)
  return counter
end

-- Shared holders are fields "h:OWNER" = "epoch counter expires_ms ttl since entries via requests".
local SHARED = '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) (.*)$'

local function hold_shared(f, owner, request, ttl, since, via, now)
  local counter = mint()
  redis.call('HSET', LOCK, 'mode', 's', 'h:' .. owner, string.format('%s %.0f %.0f %s %s 1 %s %s',
    f[1] or 0, counter, now + ttl, ttl, since, via, request))
  if redis.call('PTTL', LOCK) < tonumber(ttl) then redis.call('PEXPIRE', LOCK, ttl) end
  return counter
end

-- Drop shared holders whose time is over; returns how many are left.
local function purge_shared(now)
  local fields, left = redis.call('HGETALL', LOCK), 0
  for i = 1, #fields, 2 do
    if find(fields[i], 'h:', 1, true) == 1 then
      local _, _, expires = match(fields[i + 1], SHARED)
      if tonumber(expires) <= now then redis.call('HDEL', LOCK, fields[i]) else left = left + 1 end
    end
  end
  if left == 0 then redis.call('DEL', LOCK) end
  return left
end

-- Give the lock to those who wait, in their order: one writer, or all readers up to the next writer.
-- A waiter is "mode ttl alive_until since sent channel owner"; one whose sign of life is too old is
-- passed over. `sent` is its own clock when it last asked: it tells the waiter from when its time counts.
-- `held` is the lock's mode where the caller knows it: false for free.
local function hand_off(f, me, held)
  local now, full = now_ms(), false
  if held == nil then held = redis.call('HGET', LOCK, 'mode') end
  for _ = 1, SKIP_MAX do
    local request = redis.call('LINDEX', QUEUE, 0)
    if not request then return end
    local packed = redis.call('HGET', WAITERS, request)
    local mode, ttl, alive, sent, channel, owner
    if packed then
      mode, ttl, alive, sent, channel, owner = match(packed, '^(%a) (%d+) (%d+) %d+ (%d+) (%S+) (%S+)$')
    end
    if packed and tonumber(alive) >= now then
      if held == 's' and purge_shared(now) == 0 then held = false end
      if held == 'x' or (held and mode == 'x') then return end
      local counter
      if mode == 'x' then
        counter = hold_exclusive(f, owner, request, ttl, string.format('%.0f', now), channel)
        full = true
      else
        counter = hold_shared(f, owner, request, ttl, string.format('%.0f', now), channel, now)
        held = 's'
      end
      if request ~= me then
        redis.call('PUBLISH', channel, string.format('%s %s %.0f %s %s', request, f[1] or 0, counter, ttl, sent))
      end
    end
    redis.call('LPOP', QUEUE)
    redis.call('HDEL', WAITERS, request)
    if full then return end
  end
end

local function has_word(words, word)
  return find(' ' .. words .. ' ', ' ' .. word .. ' ', 1, true) ~= nil
end

-- Append a word, and forget the oldest beyond WORDS_MAX: whoever repeats a call does so soon.
local function add_word(words, word)
  if words == '' then return word end
  local _, spaces = string.gsub(words, ' ', '')
  if spaces + 1 >= WORDS_MAX then words = match(words, '^%S+ (.*)$') or '' end
  return words .. ' ' .. word
end
