-- Takes a queued ticket out, or asks the worker of a running one to stop. Returns the state.
-- KEYS: ticket
local ticket = KEYS[1]
local state, queue, place = unpack(redis.call('HMGET', ticket, 'state', 'queue', 'place'))
if state == 'queued' then
  redis.call('ZREM', 'queue:' .. queue, place)
  redis.call('HSET', ticket, 'state', 'cancelled')
  return 'cancelled'
end
if state == 'running' then
  redis.call('HSET', ticket, 'cancel', '1')
end
return state
