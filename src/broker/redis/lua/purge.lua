-- Removes what waits, some of it with each call. KEYS: stem. ARGV: most of each kind. Returns how many.
local stem, most, removed = KEYS[1], tonumber(ARGV[1]), 0
for _, id in ipairs(redis.call('ZRANGE', stem .. ':delayed', 0, most - 1)) do
  redis.call('ZREM', stem .. ':delayed', id)
  redis.call('HDEL', stem .. ':held', id)
  removed = removed + 1
end
for _, class in ipairs(CLASSES) do
  local stream = stem .. ':' .. class
  for _, entry in ipairs(redis.call('XRANGE', stream, '(' .. last_delivered(stream), '+', 'COUNT', most)) do
    redis.call('XDEL', stream, entry[1])
    removed = removed + 1
  end
  for _, id in ipairs(redis.call('ZRANGE', stream .. ':returned', 0, most - 1)) do
    remove(stream, id)
    removed = removed + 1
  end
end
return removed
