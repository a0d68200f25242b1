-- Leave the queue; if the lock was handed over in the meantime, give it back.
--
-- ARGV: 1 floor  2 owner  3 request
-- Replies: cancelled | released (it had been granted) | gone (neither waiting nor holding)
local owner, request = ARGV[2], ARGV[3]
local reply = 'gone'
if redis.call('HDEL', WAITERS, request) == 1 then
  redis.call('LREM', QUEUE, 1, request)
  reply = 'cancelled'
else
  local held = redis.call('HMGET', LOCK, 'mode', 'owner', 'requests')
  if held[1] == 'x' and held[2] == owner and held[3] == request then
    redis.call('DEL', LOCK)
    reply = 'released'
  elseif held[1] == 's' then
    local packed = redis.call('HGET', LOCK, 'h:' .. owner)
    if packed and select(7, match(packed, SHARED)) == request then
      redis.call('HDEL', LOCK, 'h:' .. owner)
      purge_shared(now_ms())
      reply = 'released'
    end
  end
end
if reply ~= 'gone' and redis.call('EXISTS', QUEUE) == 1 then
  local f, refusal = lineage(ARGV[1])
  refusal = refusal or closed(f)
  if not refusal then hand_off(f, '') end
end
return {reply}
