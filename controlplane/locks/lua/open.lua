-- End the quarantine of an epoch; the caller has waited one TTL by its own monotonic clock.
--
-- ARGV: 1 epoch
-- Replies: open | lost/stale/replica
local f, refusal = lineage(ARGV[1])
if refusal then return refusal end
if f[1] == ARGV[1] then redis.call('HSET', FENCE, 'state', 'open') end
return {'open'}
