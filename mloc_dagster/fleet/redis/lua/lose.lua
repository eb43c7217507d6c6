-- Strikes a worker off whose heartbeat has lapsed. Returns 1 to the one who did, else 0.
-- KEYS: ids of workers, worker, heartbeat
-- ARGV: worker id, seconds for which its last words stay readable
local ids, worker, heartbeat = unpack(KEYS)
if redis.call('EXISTS', heartbeat) == 1 or redis.call('SREM', ids, ARGV[1]) == 0 then
  return 0
end
redis.call('EXPIRE', worker, ARGV[2])
return 1
