-- What waits for its time, soonest first of each place. KEYS: stems. ARGV: consumer, credit, lease in ms. Returns of each: its
-- time, 1 when it stays outside of the stream, and the message as `claim` gives it. What stays outside is kept by its time,
-- which is put off to the end of the lease where it would come before, and noted in `early`, so that no other takes it.
local consumer, credit, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time, found = now(), {}
local MOST = 500

local function waiting(set, more)
  local most = math.min(credit + more, MOST + more)
  if credit <= 0 then return {} end
  return redis.call('ZRANGEBYSCORE', set, '(' .. string.format('%.0f', time), '+inf', 'WITHSCORES', 'LIMIT', 0, most)
end

for number, stem in ipairs(KEYS) do
  if redis.call('EXISTS', stem .. ':paused') == 0 then
    for _, class in ipairs(CLASSES) do
      local stream = stem .. ':' .. class
      local returned = waiting(stream .. ':returned', 0)
      for at = 1, #returned, 2 do
        redis.call('ZREM', stream .. ':returned', returned[at])
        local claimed = redis.pcall('XCLAIM', stream, GROUP, consumer, 0, returned[at])
        -- The stream, or the message in it, may have been removed by hand.
        if not claimed.err and claimed[1] and claimed[1][2] then
          redis.call('ZADD', stream .. ':leases', time + lease, returned[at])
          found[#found + 1] = {tonumber(returned[at + 1]), 0, {number, class, returned[at], 1, claimed[1][2]}}
          credit = credit - 1
        end
      end
    end
    local early = stem .. ':early'
    redis.call('ZREMRANGEBYSCORE', early, '-inf', time)
    local delayed = waiting(stem .. ':delayed', redis.call('ZCARD', early))
    for at = 1, #delayed, 2 do
      local id, due = delayed[at], tonumber(delayed[at + 1])
      local held = redis.call('HGET', stem .. ':held', id)
      if redis.call('ZSCORE', early, id) or credit <= 0 then
        -- Another's, or more than was asked for.
      elseif held then
        redis.call('ZADD', early, time + lease, id)
        local message = cmsgpack.unpack(held)
        redis.call('ZADD', stem .. ':delayed', 'GT', time + lease, id)
        found[#found + 1] = {due, 1, {number, message[1], id, 0, message[2]}}
        credit = credit - 1
      else
        redis.call('ZREM', stem .. ':delayed', id)
      end
    end
  end
end
return found
