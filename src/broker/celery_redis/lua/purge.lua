-- Removes what waits, some of it with each call. More keys: stem, the queue's lists. ARGV: most. Returns how many.
local stem, removed = KEYS[5], 0
for n = 6, #KEYS do
  removed = removed + redis.call('LLEN', KEYS[n])
  redis.call('DEL', KEYS[n])
end
for _, tag in ipairs(redis.call('ZRANGE', stem .. ':later', 0, tonumber(ARGV[1]) - 1)) do
  if standing(tag) then
    forget(stem, tag)
    removed = removed + 1
  else
    redis.call('ZREM', stem .. ':later', tag)
  end
end
return removed
