-- Leave the queue; if the lock was handed over in the meantime, give it back.
--
-- ARGV: 1 floor  2 owner  3 request  4 channel of the process that withdraws
-- Replies: cancelled | released (it had been granted) | gone (neither waiting nor holding by us)
--
-- A request that was repeated through another process since is not ours to withdraw: its caller has not
-- gone. One that was granted and asked for through several is nobody's; its TTL ends it.
local owner, request, via = ARGV[2], ARGV[3], ARGV[4]
local reply = 'gone'
local waiting = redis.call('HGET', WAITERS, request)
if waiting then
  local _, _, _, _, _, channel = match(waiting, '^(%a) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+)$')
  if channel ~= via then return {reply} end
  redis.call('HDEL', WAITERS, request)
  redis.call('LREM', QUEUE, 1, request)
  reply = 'cancelled'
else
  local held = redis.call('HMGET', LOCK, 'mode', 'owner', 'requests', 'via')
  if held[1] == 'x' and held[2] == owner and held[3] == request and held[4] == via then
    redis.call('DEL', LOCK)
    reply = 'released'
  elseif held[1] == 's' then
    local packed = redis.call('HGET', LOCK, 'h:' .. owner)
    local _, _, _, _, _, _, asked_by, requests = match(packed or '', SHARED)
    if requests == request and asked_by == via then
      redis.call('HDEL', LOCK, 'h:' .. owner)
      purge_shared(now_ms())
      reply = 'released'
    end
  end
end
if reply ~= 'gone' then
  if redis.call('EXISTS', QUEUE) == 1 then
    local f, refusal = lineage(ARGV[1])
    refusal = refusal or closed(f)
    if not refusal then hand_off(f, '') end
  end
  touched({nil, nil, nil, nil, nil, redis.call('HGET', FENCE, 'watch_until')})
end
return {reply}
