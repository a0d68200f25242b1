-- Acquire a lock, or take a place in its queue, or say why not.
--
-- ARGV: 1 floor  2 owner  3 request  4 ttl_ms  5 shared 0/1  6 reentrant 0/1  7 wait 0/1
--       8 channel for the notification  9 alive_ms of a waiter  10 waiters_max  11 wall_ms (for people)
--       12 the caller's clock, ms
-- Replies: granted epoch counter left_ms entries fence_epoch | queued left_ms ahead waiters
--          busy left_ms owner waiters | full waiters | upgrade | nested
--          lost/stale/replica/quarantine/exhausted epoch | ttl epoch high_ms
--
-- The same request again, whether queued or granted, changes nothing but its sign of life: a lost
-- reply is not a lost lock, and repeating the call is how a waiter shows that it lives.
local floor, owner, request, ttl, shared = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
local via = ARGV[8]
local f, refusal = lineage(floor)
refusal = refusal or closed(f) or too_long(f, ttl)
if refusal then return refusal end

local function granted(epoch, counter, left, entries)
  return {'granted', epoch or 0, counter, left, entries, f[1] or 0}
end

-- The owner holds it already. Within one epoch that is the same grant; a lock that outlived a loss
-- gets a new token, for its old one may have been passed by grants that were lost.
local function again(epoch, counter, left, entries, requests, asked_by, save, renew_token)
  if redis.call('HDEL', WAITERS, request) == 1 then redis.call('LREM', QUEUE, 1, request) end
  if epoch ~= f[1] then return granted(f[1], renew_token(), tonumber(ttl), 1) end -- check: survivor
  if not has_word(requests, request) then
    if ARGV[6] == '1' then
      if tonumber(entries) >= ENTRIES_MAX then return {'nested'} end
      entries = entries + 1
    end
    left = math.max(left, tonumber(ttl))
    save(left, entries, add_word(requests, request))
    touched(f)
  elseif asked_by ~= via and asked_by ~= SEVERAL then
    via = SEVERAL
    save(left, entries, requests)
  end
  return granted(epoch, counter, left, tonumber(entries))
end

local function holder_of(held)
  if held[1] == 'x' and held[2] == owner then
    return again(held[3], held[4], redis.call('PTTL', LOCK), held[5], held[6], held[7],
      function(left, entries, requests)
        redis.call('HSET', LOCK, 'entries', entries, 'requests', requests, 'via', via)
        redis.call('PEXPIRE', LOCK, left)
      end,
      function()
        redis.call('DEL', LOCK)
        return hold_exclusive(f, owner, request, ttl, ARGV[11], via)
      end)
  end
  if held[1] ~= 's' then return nil end
  local now = now_ms()
  purge_shared(now)
  local mine = redis.call('HGET', LOCK, 'h:' .. owner)
  if not mine then return nil end
  if not shared then return {'upgrade'} end
  local epoch, counter, expires, _, since, entries, asked_by, requests = match(mine, SHARED)
  return again(epoch, counter, expires - now, entries, requests, asked_by,
    function(left, count, words)
      redis.call('HSET', LOCK, 'h:' .. owner, string.format('%s %s %.0f %s %s %.0f %s %s',
        epoch, counter, now + left, ttl, since, count, via, words))
      if redis.call('PTTL', LOCK) < left then redis.call('PEXPIRE', LOCK, left) end
    end,
    function() return hold_shared(f, owner, request, ttl, ARGV[11], via, now) end)
end

local function look()
  return redis.call('HMGET', LOCK, 'mode', 'owner', 'epoch', 'counter', 'entries', 'requests', 'via')
end

local held = look()
if held[1] then
  local reply = holder_of(held)
  if reply then return reply end
end
local waiters = redis.call('LLEN', QUEUE)
if waiters > 0 and held[1] ~= 'x' then
  hand_off(f, request) -- the lock is free or shared: whoever waits first goes first
  touched(f)
  held = look()
  local reply = held[1] and holder_of(held)
  if reply then return reply end
  waiters = redis.call('LLEN', QUEUE)
end
if held[1] == 's' then held[1] = redis.call('HGET', LOCK, 'mode') end -- the purge may have emptied it
if waiters == 0 and (not held[1] or (held[1] == 's' and shared)) then
  local counter
  if shared then
    counter = hold_shared(f, owner, request, ttl, ARGV[11], via, now_ms())
  else
    counter = hold_exclusive(f, owner, request, ttl, ARGV[11], via)
  end
  touched(f)
  return granted(f[1], counter, tonumber(ttl), 1)
end

local left = redis.call('PTTL', LOCK)
if ARGV[7] ~= '1' then
  return {'busy', left, redis.call('HGET', LOCK, 'owner') or '', waiters}
end
local alive = tonumber(ARGV[9])
if waiters >= tonumber(ARGV[10]) and redis.call('HEXISTS', WAITERS, request) == 0 then return {'full', waiters} end
local new = redis.call('HSET', WAITERS, request, string.format('%s %s %.0f %s %s %s %s',
  shared and 's' or 'x', ttl, now_ms() + alive, ARGV[11], ARGV[12], via, owner)) == 1
local ahead = not new and redis.call('LPOS', QUEUE, request)
if not ahead then -- new, or its queue was evicted
  redis.call('RPUSH', QUEUE, request)
  ahead, waiters = waiters, waiters + 1
  touched(f)
end
if redis.call('PTTL', QUEUE) < alive then
  redis.call('PEXPIRE', QUEUE, 2 * alive)
  redis.call('PEXPIRE', WAITERS, 2 * alive)
end
return {'queued', left, ahead, waiters}
