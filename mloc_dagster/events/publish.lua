-- Appends events to their logs and publishes them, each fact once. All of them at one moment.
-- KEYS: for each event its log and the set of known facts
-- ARGV: length of a log, seconds that facts stay known,
--       for each event its channel, itself as JSON, and its id or '' if it may come twice
-- Returns how many were new.
local length, remembered_s = ARGV[1], ARGV[2]
local new = 0
for i = 1, #KEYS / 2 do
  local log, known = KEYS[2 * i - 1], KEYS[2 * i]
  local channel, data, id = ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
  local is_new = true
  if id ~= '' then
    is_new = redis.call('SADD', known, id) == 1
    redis.call('EXPIRE', known, remembered_s)
  end
  if is_new then
    redis.call('XADD', log, 'MAXLEN', '~', length, '*', 'event', data)
    redis.call('PUBLISH', channel, data)
    new = new + 1
  end
end
return new
