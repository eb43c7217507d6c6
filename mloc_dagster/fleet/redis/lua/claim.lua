-- Takes a queued ticket under a lease. Returns its fencing token, or nil when somebody was first.
-- KEYS: ticket, lease, queue, virtual time of the queue, running tickets of the queue
-- ARGV: ticket id, worker id, lease in ms
local ticket, lease, queue, clock, running = unpack(KEYS)
if redis.call('HGET', ticket, 'state') ~= 'queued' then
  return nil
end
local fence = redis.call('INCR', 'fence')
if fence == 1 then
  -- A Redis that came back empty must not give out once more what somebody may still hold.
  fence = tonumber(redis.call('TIME')[1]) * 1000
  redis.call('SET', 'fence', string.format('%.0f', fence))
end
local token = string.format('%.0f', fence)
redis.call('HSET', ticket, 'state', 'running', 'worker_id', ARGV[2], 'fence', token)
redis.call('SET', lease, token, 'PX', ARGV[3])
redis.call('ZREM', queue, redis.call('HGET', ticket, 'place'))
redis.call('SADD', running, ARGV[1])
-- A list wakes one worker for many tickets that came while nobody waited: it wakes the next one.
local wake = queue .. ':wake'
if redis.call('EXISTS', queue) == 1 and redis.call('LLEN', wake) == 0 then
  redis.call('RPUSH', wake, ARGV[1])
  redis.call('EXPIRE', wake, 60)
end
local tag = tonumber(redis.call('HGET', ticket, 'tag'))
if tag > tonumber(redis.call('GET', clock) or '0') then
  redis.call('SET', clock, tag)
end
return fence
