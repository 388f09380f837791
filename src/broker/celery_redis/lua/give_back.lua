-- More keys: stem. ARGV: consumer, tag, ms to wait, bell, queue, the message with its flags. Returns 0 when it was not ours. What must
-- wait stays in unacked in nobody's name: when no worker of longshore is left, a kombu channel restores it later.
local stem, tag, after, envelope = KEYS[5], ARGV[2], tonumber(ARGV[3]), ARGV[6]
local list = list_of(tag, ARGV[1])
if not list then return 0 end
if after <= 0 then
  redis.call('RPUSH', list, envelope)
  forget(stem, tag)
  return 1
end
-- The clock's part of a millisecond is cut off: one more, so that no delay is too short.
local due = now() + after + 1
if redis.call('HEXISTS', ASIDE, tag) == 1 then
  redis.call('HSET', ASIDE, tag, envelope)
else
  redis.call('HSET', UNACKED, tag, '[' .. envelope .. tail(ARGV[5]))
end
keep(tag, '', list, due)
redis.call('ZREM', stem .. ':leased', tag)
redis.call('ZADD', stem .. ':later', due, tag)
redis.call('PUBLISH', ARGV[4], ARGV[3])
return 1
