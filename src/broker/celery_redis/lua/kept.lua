-- One page of what is kept. More keys: stem. ARGV: set (leased or later), queue, from, to. Returns how many were looked at, and of
-- each: ms of its lease's end or time, consumer, the message.
local found, tags = {}, redis.call('ZRANGE', KEYS[5] .. ':' .. ARGV[1], ARGV[3], ARGV[4], 'WITHSCORES')
for n = 1, #tags, 2 do
  local owner = standing(tags[n])
  local envelope = owner and envelope_of(tags[n], ARGV[2])
  if envelope then found[#found + 1] = {tonumber(tags[n + 1]), owner, envelope} end
end
return {#tags / 2, found}
