-- Takes a queued ticket out, or asks the worker of a running one to stop. Returns the state.
-- KEYS: ticket, queue
local ticket, queue = unpack(KEYS)
local state, place = unpack(redis.call('HMGET', ticket, 'state', 'place'))
if state == 'queued' then
  redis.call('ZREM', queue, place)
  redis.call('HSET', ticket, 'state', 'cancelled')
  return 'cancelled'
end
if state == 'running' then
  redis.call('HSET', ticket, 'cancel', '1')
end
return state
