-- KEYS: record. ARGV: stem of the indexes, id, fence, sink.
local key, stem = KEYS[1], ARGV[1]
local found = redis.call('HMGET', key, 'fence', 'owed')
if not found[1] or not found[2] or tonumber(found[1]) ~= tonumber(ARGV[3]) then return 0 end
local left, struck = {}, false
for sink in string.gmatch(found[2], '[^\n]+') do
  if sink == ARGV[4] then struck = true else left[#left + 1] = sink end
end
if not struck then return 0 end
redis.call('HINCRBY', key, 'revision', 1)
if #left > 0 then
  redis.call('HSET', key, 'owed', table.concat(left, '\n'))
else
  redis.call('HDEL', key, 'owed')
  redis.call('ZREM', stem .. 'owing', ARGV[2])
end
return 1
