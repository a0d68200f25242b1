-- Last step of a bump: put the epoch that etcd allocated for this nonce in force.
--
-- ARGV: 1 nonce  2 epoch  3 ttl_high: longest TTL that etcd knows of for this epoch, ms
-- Replies: installed state | done state (this epoch is in force already) | stale (the nonce died or was used)
--
-- It starts in quarantine: grants of the lost lineage may still be believed in for one TTL. No
-- quarantine where nothing can have been lost: the very first epoch, or a roll of an intact fence.
local nonce, epoch = ARGV[1], tonumber(ARGV[2])
local info = redis.call('INFO', 'server', 'replication')
local run_id, replid = match(info, '\nrun_id:(%x+)'), match(info, '\nmaster_replid:(%x+)')
local f = redis.call('HMGET', FENCE, 'epoch', 'run_id', 'replid', 'pending', 'pending_run_id', 'pending_replid', 'state')
local ours = f[2] == run_id and f[3] == replid
if ours and tonumber(f[1] or 0) == epoch and f[4] ~= nonce then return {'done', f[7]} end
if f[4] ~= nonce then return {'stale'} end -- check: install_nonce
if f[5] ~= run_id or f[6] ~= replid then return {'stale'} end -- check: install_ids
if tonumber(f[1] or 0) >= epoch then return {'stale'} end -- check: install_order
local rolled = ours and tonumber(f[1]) == epoch - 1
local state = (epoch == 1 or rolled) and 'open' or 'quarantine'
redis.call('HSET', FENCE, 'epoch', epoch, 'counter', 0, 'run_id', run_id, 'replid', replid, 'state', state,
  'ttl_high', ARGV[3])
redis.call('HDEL', FENCE, 'pending', 'pending_run_id', 'pending_replid')
return {'installed', state}
