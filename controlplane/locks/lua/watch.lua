-- Ask the scripts to publish changes of locks for a while (they do nothing when nobody watches).
--
-- ARGV: 1 for how long, ms
-- Replies: watched | lost
if redis.call('HEXISTS', FENCE, 'epoch') == 0 then return {'lost', 0} end
redis.call('HSET', FENCE, 'watch_until', now_ms() + ARGV[1])
return {'watched'}
