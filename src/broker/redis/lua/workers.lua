-- KEYS: deadlines, presences. Returns the presences whose deadline has not passed.
local found = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now()), '+inf')) do
  local presence = redis.call('HGET', KEYS[2], worker)
  if presence then found[#found + 1] = presence end
end
return found
