-- KEYS: stems. ARGV: seconds that dedup ids are remembered, the bell; then of each message: number of its stem, class, its
-- time (0: now), dedup id, count of fields, fields. Returns 1 for each that was queued and 0 for each duplicate.
local window, bell, time = ARGV[1], ARGV[2], now()
local results, at = {}, 3
while at <= #ARGV do
  local stem, class, due = KEYS[tonumber(ARGV[at])], ARGV[at + 1], tonumber(ARGV[at + 2])
  local dedup, count = ARGV[at + 3], tonumber(ARGV[at + 4])
  local fields = {}
  for n = 1, count do fields[n] = ARGV[at + 4 + n] end
  at = at + 5 + count
  if not redis.call('SET', stem .. ':seen:' .. dedup, 1, 'NX', 'EX', window) then
    results[#results + 1] = 0
  else
    if due > time then
      local id = 'd' .. redis.call('INCR', stem .. ':number')
      fields[#fields + 1], fields[#fields + 2] = 'id', id
      fields[#fields + 1], fields[#fields + 2] = 'submitted', string.format('%.0f', time)
      redis.call('HSET', stem .. ':held', id, cmsgpack.pack({class, fields}))
      redis.call('ZADD', stem .. ':delayed', due, id)
      redis.call('PUBLISH', bell, string.format('%.0f', due - time))
    else
      redis.call('XADD', stem .. ':' .. class, '*', unpack(fields))
    end
    results[#results + 1] = 1
  end
end
return results
