-- Extend a lock that is still held by this token.
--
-- ARGV: 1 floor  2 owner  3 epoch  4 counter  5 ttl_ms
-- Replies: renewed entries fence_epoch | gone | lost/stale/replica epoch | ttl epoch high_ms
--
-- Quarantine does not forbid it: a lock that survived blocks its name anyway.
local owner, ttl = ARGV[2], ARGV[5]
local f, refusal = lineage(ARGV[1])
refusal = refusal or too_long(f, ttl)
if refusal then return refusal end
local held = redis.call('HMGET', LOCK, 'mode', 'owner', 'epoch', 'counter', 'entries')
if held[1] == 'x' then
  if held[2] ~= owner or held[3] ~= ARGV[3] or held[4] ~= ARGV[4] then return {'gone'} end
  redis.call('PEXPIRE', LOCK, ttl)
  return {'renewed', tonumber(held[5]), f[1] or 0}
end
if held[1] ~= 's' then return {'gone'} end
local now = now_ms()
purge_shared(now)
local packed = redis.call('HGET', LOCK, 'h:' .. owner)
if not packed then return {'gone'} end
local epoch, counter, _, _, since, entries, via, requests = match(packed, SHARED)
if epoch ~= ARGV[3] or counter ~= ARGV[4] then return {'gone'} end
redis.call('HSET', LOCK, 'h:' .. owner, string.format('%s %s %.0f %s %s %s %s %s',
  epoch, counter, now + ttl, ttl, since, entries, via, requests))
if redis.call('PTTL', LOCK) < tonumber(ttl) then redis.call('PEXPIRE', LOCK, ttl) end
return {'renewed', tonumber(entries), f[1] or 0}
