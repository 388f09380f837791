-- What kombu channels took before a time and nobody acknowledged. ARGV: seconds of the visibility timeout. Returns of each: tag, what
-- is found under it. Entries without a message go.
local found = {}
local before = string.format('%.3f', now() / 1000 - tonumber(ARGV[1]))
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', INDEX, '-inf', before, 'LIMIT', 0, 100)) do
  local kept = redis.call('HGET', UNACKED, tag)
  if not kept then
    redis.call('ZREM', INDEX, tag)
  else
    found[#found + 1] = {tag, kept}
  end
end
return found
