-- What a kombu channel took and left behind. ARGV: of each: tag, what was found under it, list, the message with its flags.
-- Whatever changed meanwhile stays as it is. Returns how many were moved.
local time, moved = now(), 0
for at = 1, #ARGV, 4 do
  local tag = ARGV[at]
  local owner, _, ms = standing(tag)
  if redis.call('HGET', UNACKED, tag) == ARGV[at + 1] and not (owner and ms > time) then
    redis.call('RPUSH', ARGV[at + 2], ARGV[at + 3])
    redis.call('HDEL', UNACKED, tag)
    redis.call('ZREM', INDEX, tag)
    redis.call('HDEL', OWNERS, tag)
    moved = moved + 1
  end
end
return moved
