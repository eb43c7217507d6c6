-- Takes a queued ticket under a lease. Returns its fencing token, or nil when somebody was first.
-- KEYS: ticket, lease, queue, virtual time of the queue, running tickets of the queue
-- ARGV: ticket id, worker id, lease in ms
local ticket, lease, queue, clock, running = unpack(KEYS)
if redis.call('HGET', ticket, 'state') ~= 'queued' then
  return nil
end
local fence = redis.call('INCR', 'fence')
redis.call('HSET', ticket, 'state', 'running', 'worker_id', ARGV[2], 'fence', fence)
redis.call('SET', lease, fence, 'PX', ARGV[3])
redis.call('ZREM', queue, redis.call('HGET', ticket, 'place'))
redis.call('SADD', running, ARGV[1])
local tag = tonumber(redis.call('HGET', ticket, 'tag'))
if tag > tonumber(redis.call('GET', clock) or '0') then
  redis.call('SET', clock, tag)
end
return fence
