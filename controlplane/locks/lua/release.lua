-- Release a lock (or one nested entry of it) and hand it to the next in the queue.
--
-- ARGV: 1 floor  2 owner  3 epoch  4 counter  5 request id of this release  6 all 0/1
-- Replies: released | kept entries | gone (not held by this token: released before, expired or taken)
--
-- Deleting one's own lock needs no lineage: it grants nothing. The hand-off does.
local owner, epoch, counter = ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HMGET', LOCK, 'mode', 'owner', 'epoch', 'counter', 'entries', 'undone')
local mode = held[1]

-- Tell watchers, where the fence has not been read.
local function watched()
  touched({nil, nil, nil, nil, nil, redis.call('HGET', FENCE, 'watch_until')})
end

if mode == 'x' then
  if held[2] ~= owner or held[3] ~= epoch or held[4] ~= counter then return {'gone'} end
  local entries, undone = tonumber(held[5]), held[6] or ''
  if has_word(undone, ARGV[5]) then return {'kept', entries} end
  if entries > 1 and ARGV[6] ~= '1' then
    redis.call('HSET', LOCK, 'entries', entries - 1, 'undone', add_word(undone, ARGV[5]))
    watched()
    return {'kept', entries - 1}
  end
  redis.call('DEL', LOCK)
elseif mode == 's' then
  local packed = redis.call('HGET', LOCK, 'h:' .. owner)
  if not packed then return {'gone'} end
  local e, c, expires, ttl, since, entries, via, requests = match(packed, SHARED)
  if e ~= epoch or c ~= counter then return {'gone'} end
  if has_word(requests, '-' .. ARGV[5]) then return {'kept', tonumber(entries)} end
  if tonumber(entries) > 1 and ARGV[6] ~= '1' then
    redis.call('HSET', LOCK, 'h:' .. owner, string.format('%s %s %s %s %s %d %s %s',
      e, c, expires, ttl, since, entries - 1, via, add_word(requests, '-' .. ARGV[5])))
    watched()
    return {'kept', entries - 1}
  end
  redis.call('HDEL', LOCK, 'h:' .. owner)
  if purge_shared(now_ms()) > 0 then
    watched()
    return {'released'}
  end
else
  return {'gone'}
end

if redis.call('EXISTS', QUEUE) == 1 then
  local f, refusal = lineage(ARGV[1])
  refusal = refusal or closed(f) -- check: hand_off
  if refusal then return {'released'} end -- check: hand_off
  f = f or {}
  hand_off(f, '', false)
  touched(f)
else
  watched()
end
return {'released'}
