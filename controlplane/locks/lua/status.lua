-- What the keeper looks at: does the fence belong to this server, and may it grant?
--
-- Reply: role, intact 0/1, epoch, counter, state, pending 0/1, maxmemory_policy
local info = redis.call('INFO', 'server', 'replication', 'memory')
local f = redis.call('HMGET', FENCE, 'epoch', 'counter', 'run_id', 'replid', 'state', 'pending')
local intact = f[1]
  and find(info, '\nrun_id:' .. (f[3] or '-'), 1, true)
  and find(info, '\nmaster_replid:' .. (f[4] or '-'), 1, true)
return {match(info, '\nrole:(%a+)'), intact and 1 or 0, f[1] or 0, f[2] or 0, f[5] or '', f[6] and 1 or 0,
  match(info, '\nmaxmemory_policy:(%S+)')}
