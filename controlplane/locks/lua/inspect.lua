-- What is known of one lock; changes nothing.
--
-- ARGV: 1 how many waiters to name
-- Reply: {fields and values of the lock}, left_ms, waiters, {request, packed, ...}, now_ms
local named = {}
for _, request in ipairs(redis.call('LRANGE', QUEUE, 0, tonumber(ARGV[1]) - 1)) do
  named[#named + 1] = request
  named[#named + 1] = redis.call('HGET', WAITERS, request) or ''
end
return {redis.call('HGETALL', LOCK), redis.call('PTTL', LOCK), redis.call('LLEN', QUEUE), named, now_ms()}
