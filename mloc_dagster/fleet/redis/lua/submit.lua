-- Makes sure that a ticket is queued or running. Returns the state it is in afterwards.
-- KEYS: ticket, lease, queue, fair tag of the run, virtual time of the queue, tickets of the run
-- ARGV: ticket id, priority, field, value, field, value, …
--
-- Order in a queue is start-time fair queuing (Goyal, Vin and Cheng, 1996): a run's next ticket is
-- tagged one after its last, but never before the queue's virtual time, which is the tag of the
-- ticket taken last. A run of one shard then waits for one shard of each other run, not for all.
local ticket, lease, queue, fair, clock, members = unpack(KEYS)
local id, priority = ARGV[1], tonumber(ARGV[2])

local state = redis.call('HGET', ticket, 'state')
if state == 'done' or state == 'cancelled' or state == 'queued' then
  return state
end
if state == 'running' then
  if redis.call('EXISTS', lease) == 1 then
    return state
  end
  redis.call('HINCRBY', ticket, 'losses', 1)
else
  local tag = math.max(
    tonumber(redis.call('GET', clock) or '0'), tonumber(redis.call('GET', fair) or '0'))
  redis.call('SET', fair, tag + 1, 'EX', 86400)
  local sequence = redis.call('INCR', 'queue:sequence')
  redis.call('HSET', ticket, 'score', tag - priority * 1e10, 'tag', tag,
    'place', string.format('%015d:%s', sequence, id), 'losses', 0)
  redis.call('HSET', ticket, unpack(ARGV, 3))
  redis.call('SADD', members, id)
end
-- A lost ticket keeps its place: it has waited already.
redis.call('HSET', ticket, 'state', 'queued')
redis.call('ZADD', queue, redis.call('HGET', ticket, 'score'), redis.call('HGET', ticket, 'place'))

-- Wakes the worker that it is kept for, and one of the others: to wait until it is anybody's.
local function wake(list)
  if redis.call('LLEN', list) == 0 then
    redis.call('RPUSH', list, id)
    redis.call('EXPIRE', list, 60)
  end
end
local prefer = redis.call('HGET', ticket, 'prefer')
if prefer and prefer ~= '' then
  wake('worker:' .. prefer .. ':wake')
end
wake(queue .. ':wake')
return 'queued'
