-- Keeps a claim alive. Returns 'held', 'cancelled' (held, but asked to stop) or 'lost'.
-- KEYS: ticket, lease
-- ARGV: fence, lease in ms
local ticket, lease = unpack(KEYS)
local state, fence, cancel = unpack(redis.call('HMGET', ticket, 'state', 'fence', 'cancel'))
if state ~= 'running' or fence ~= ARGV[1] then
  return 'lost'
end
-- A lapsed lease comes back while nobody has noticed: after an outage of Redis all of them lapse.
redis.call('SET', lease, fence, 'PX', ARGV[2])
return cancel and 'cancelled' or 'held'
