-- What a blocking read brought gets its leases. KEYS: stems. ARGV: consumer, credit, lease in ms, bell; then of each message,
-- best first: number of its stem, class, id. Returns 1 for each that is kept; others are given back: they were more than the
-- credit, of a queue that was paused meanwhile, or are another's already.
local consumer, credit, lease, bell, time = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], now()
local kept, returned = {}, false
for at = 5, #ARGV, 3 do
  local stem, id = KEYS[tonumber(ARGV[at])], ARGV[at + 2]
  local stream = stem .. ':' .. ARGV[at + 1]
  if owner(stream, id) ~= consumer then
    kept[#kept + 1] = 0
  elseif credit > 0 and redis.call('EXISTS', stem .. ':paused') == 0 then
    redis.call('ZADD', stream .. ':leases', time + lease, id)
    credit = credit - 1
    kept[#kept + 1] = 1
  else
    give_up(stream, id, time)
    returned = true
    kept[#kept + 1] = 0
  end
end
if returned then redis.call('PUBLISH', bell, 0) end
return kept
