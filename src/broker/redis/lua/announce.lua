-- KEYS: deadlines, presences. ARGV: worker, ms until its deadline, its presence. Forgets whose deadline has passed.
local time = now()
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time)) do
  redis.call('ZREM', KEYS[1], worker)
  redis.call('HDEL', KEYS[2], worker)
end
redis.call('ZADD', KEYS[1], time + tonumber(ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return 1
