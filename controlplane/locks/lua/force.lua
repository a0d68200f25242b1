-- Take a lock away from whoever holds it, on an operator's word, and hand it to the next.
--
-- ARGV: 1 floor  2 the holders the operator saw, "epoch.counter" each, space-separated
-- Replies: forced | changed (somebody else holds it by now, nothing was done) | free
local held = redis.call('HMGET', LOCK, 'mode', 'epoch', 'counter')
if not held[1] then return {'free'} end
if held[1] == 'x' then
  if not has_word(ARGV[2], held[2] .. '.' .. held[3]) then return {'changed'} end
  redis.call('DEL', LOCK)
else
  local fields, gone = redis.call('HGETALL', LOCK), 0
  for i = 1, #fields, 2 do
    if find(fields[i], 'h:', 1, true) == 1 then
      local epoch, counter = match(fields[i + 1], SHARED)
      if has_word(ARGV[2], epoch .. '.' .. counter) then
        redis.call('HDEL', LOCK, fields[i])
        gone = gone + 1
      end
    end
  end
  if gone == 0 then return {'changed'} end
  purge_shared(now_ms())
end
local f, refusal = lineage(ARGV[1])
refusal = refusal or closed(f)
if not refusal then
  hand_off(f, '')
  touched(f)
end
return {'forced'}
