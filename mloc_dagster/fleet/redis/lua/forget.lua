-- Drops every trace of a ticket, wherever it stands.
-- KEYS: ticket, lease
-- ARGV: ticket id
local ticket, lease = unpack(KEYS)
local queue, place = unpack(redis.call('HMGET', ticket, 'queue', 'place'))
if queue then
  redis.call('ZREM', 'queue:' .. queue, place)
  redis.call('SREM', 'queue:' .. queue .. ':running', ARGV[1])
end
redis.call('DEL', ticket, lease)
