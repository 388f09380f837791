-- ARGV: seconds that dedup ids are remembered, the bell; then of each message: stem, queue, list, its time (0: now), dedup id, tag,
-- envelope. Returns 1 for each that was queued and 0 for each duplicate.
local window, bell, time, results = ARGV[1], ARGV[2], now(), {}
for at = 3, #ARGV, 7 do
  local stem, queue, list, due = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local tag, envelope = ARGV[at + 5], ARGV[at + 6]
  if not redis.call('SET', stem .. ':seen:' .. ARGV[at + 4], 1, 'NX', 'EX', window) then
    results[#results + 1] = 0
  else
    if due > time then
      redis.call('HSET', UNACKED, tag, '[' .. envelope .. tail(queue))
      keep(tag, '', list, due)
      redis.call('ZADD', stem .. ':later', due, tag)
      redis.call('PUBLISH', bell, string.format('%.0f', due - time))
    else
      redis.call('LPUSH', list, envelope)
    end
    results[#results + 1] = 1
  end
end
return results
