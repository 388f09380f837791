-- KEYS: a lock. ARGV: its token. As redis-py releases one.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
