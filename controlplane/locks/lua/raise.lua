-- Allow longer TTLs in this epoch; etcd knows of them already.
--
-- ARGV: 1 epoch  2 ttl_high ms
-- Replies: raised | lost/stale/replica epoch
local f, refusal = lineage(ARGV[1])
if refusal then return refusal end
if f[1] ~= ARGV[1] then return {'stale', f[1]} end
if tonumber(f[7] or 0) < tonumber(ARGV[2]) then redis.call('HSET', FENCE, 'ttl_high', ARGV[2]) end
return {'raised'}
