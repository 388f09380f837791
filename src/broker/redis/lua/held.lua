-- Prolongs or ends the lease of what was taken before its time. KEYS: stem. ARGV: number, verb, and what it needs: `extend`
-- and `until` ms from now, `park` a reason, `ack` nothing. Returns 0 when it is not held any more: its time came, or another
-- took it away.
local stem, id, verb = KEYS[1], ARGV[1], ARGV[2]
local held = redis.call('HGET', stem .. ':held', id)
if not held then return 0 end
if verb == 'extend' then
  redis.call('ZADD', stem .. ':delayed', 'GT', now() + tonumber(ARGV[3]), id)
  redis.call('ZADD', stem .. ':early', 'GT', now() + tonumber(ARGV[3]), id)
  return 1
end
redis.call('ZREM', stem .. ':early', id)
if verb == 'until' then
  redis.call('ZADD', stem .. ':delayed', now() + tonumber(ARGV[3]) + 1, id)
  redis.call('PUBLISH', ARGV[4], ARGV[3])
  return 1
end
if verb == 'park' then
  local message = cmsgpack.unpack(held)
  local fields = message[2]
  fields[#fields + 1], fields[#fields + 2] = 'dead_reason', ARGV[3]
  fields[#fields + 1], fields[#fields + 2] = 'dead_class', message[1]
  redis.call('XADD', stem .. ':dead', '*', unpack(fields))
end
redis.call('HDEL', stem .. ':held', id)
redis.call('ZREM', stem .. ':delayed', id)
return 1
