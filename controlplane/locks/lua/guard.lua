-- Seal a resource kept in Redis at a token and run commands on it, in one step.
--
-- KEYS: 1 the resource's fence, 2.. the keys that the commands use
-- ARGV: 1 epoch  2 counter  3 how many commands, then for each: number of words, words
-- Reply: {'sealed', reply, ...} | {'stale', epoch, counter}
--
-- Tokens are compared as pairs: as one number they would not fit Lua's doubles.
local seen = redis.call('HMGET', KEYS[1], 'epoch', 'counter')
local epoch, counter = tonumber(ARGV[1]), tonumber(ARGV[2])
local e, c = tonumber(seen[1] or 0), tonumber(seen[2] or 0)
if epoch < e or (epoch == e and counter < c) then return {'stale', e, c} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'counter', ARGV[2])
local replies, at = {'sealed'}, 4
for _ = 1, tonumber(ARGV[3]) do
  local words = tonumber(ARGV[at])
  local command = {}
  for i = 1, words do command[i] = ARGV[at + i] end
  at = at + words + 1
  replies[#replies + 1] = redis.call(unpack(command))
end
return replies
