-- First step of a bump: mark this lineage with a nonce that dies with its data.
--
-- ARGV: 1 floor: an intact fence below it is replaced too  2 random text of the caller
-- Replies: intact epoch | pending nonce epoch_so_far | replica
--
-- A nonce that waits already is returned as it is, so that whoever comes next finishes the bump that
-- another began. Server time makes a nonce unrepeatable: a PREPARE delivered twice cannot bring an
-- old one back, and with it the right to install an epoch that has been used.
local info = redis.call('INFO', 'server', 'replication')
if match(info, '\nrole:(%a+)') ~= 'master' then return {'replica'} end
local run_id, replid = match(info, '\nrun_id:(%x+)'), match(info, '\nmaster_replid:(%x+)')
local f = redis.call('HMGET', FENCE, 'epoch', 'run_id', 'replid', 'pending', 'pending_run_id', 'pending_replid')
if f[1] and f[2] == run_id and f[3] == replid and tonumber(f[1]) >= tonumber(ARGV[1]) then
  return {'intact', f[1]}
end
if f[4] and f[5] == run_id and f[6] == replid then return {'pending', f[4], f[1] or 0} end
local t = redis.call('TIME')
local nonce = ARGV[2] .. ':' .. t[1] .. '.' .. t[2] -- check: nonce_time
redis.call('HSET', FENCE, 'pending', nonce, 'pending_run_id', run_id, 'pending_replid', replid)
return {'pending', nonce, f[1] or 0}
