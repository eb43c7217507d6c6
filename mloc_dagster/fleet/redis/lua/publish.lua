-- What a claim has to say to its run; the last word ends the claim. Returns 1, or 0 when the
-- claim is lost and nothing was said.
-- KEYS: ticket, lease, inbox, running tickets of the queue
-- ARGV: ticket id, fence, run id, message ('' for none), next state ('running' to go on),
--       a name of this call
local ticket, lease, inbox, running = unpack(KEYS)
local state, fence, last = unpack(redis.call('HMGET', ticket, 'state', 'fence', 'last_call'))
-- A client whose answer was lost asks again, with the same name: the message is there already.
if last == ARGV[6] then
  return 1
end
-- A lapsed lease takes nobody's voice while nobody else was given the work; see `renew.lua`.
if state ~= 'running' or fence ~= ARGV[2] then
  return 0
end
redis.call('HSET', ticket, 'last_call', ARGV[6])
if ARGV[4] ~= '' then
  redis.call('RPUSH', inbox, ARGV[4])
end
if ARGV[5] ~= 'running' then
  redis.call('HSET', ticket, 'state', ARGV[5])
  redis.call('DEL', lease)
  redis.call('SREM', running, ARGV[1])
  if ARGV[5] == 'queued' then
    local queue, score, place = unpack(redis.call('HMGET', ticket, 'queue', 'score', 'place'))
    redis.call('ZADD', 'queue:' .. queue, score, place)
    local wake = 'queue:' .. queue .. ':wake'
    if redis.call('LLEN', wake) == 0 then
      redis.call('RPUSH', wake, ARGV[1])
      redis.call('EXPIRE', wake, 60)
    end
  end
end
redis.call('PUBLISH', 'inbox', ARGV[3])
return 1
