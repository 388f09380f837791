-- What waits for its time, soonest first of each queue. More keys: the counter of tags, stems. ARGV: consumer, credit, lease in ms; then
-- the queue of each stem. Returns of each: its time, and the message as `claim` gives it. Until it is given back it is leased: should
-- its mover die, it goes back to its list when the lease ends, and whoever reads it heeds the time that stands in it.
local consumer, credit, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time, found = now(), {}

for number = 1, #KEYS - 5 do
  local stem, queue = KEYS[5 + number], ARGV[3 + number]
  if credit > 0 and redis.call('EXISTS', stem .. ':paused') == 0 then
    local later = stem .. ':later'
    local after = '(' .. string.format('%.0f', time)
    local tags = redis.call('ZRANGEBYSCORE', later, after, '+inf', 'WITHSCORES', 'LIMIT', 0, credit)
    for at = 1, #tags, 2 do
      local tag, due = tags[at], tonumber(tags[at + 1])
      local owner, list, ms = standing(tag)
      local envelope = owner and ms == due and envelope_of(tag, queue)
      redis.call('ZREM', later, tag)
      if envelope then
        keep(tag, consumer, list, time + lease)
        redis.call('ZADD', stem .. ':leased', time + lease, tag)
        found[#found + 1] = {due, {number, tag, envelope}}
        credit = credit - 1
      elseif not owner then
        redis.call('HDEL', OWNERS, tag)
      end
    end
  end
end
return found
