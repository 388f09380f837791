-- Begins every script of Celery's queues. The first four keys are always these:
--   unacked         hash: tag -> [envelope, exchange, routing key], as kombu writes and restores it
--   unacked_index   sorted set: tag -> seconds, as kombu has it: restored when older than the visibility timeout
--   owners          hash: tag -> consumer (empty: nobody), list, and the ms that stand in the index, on a line each
--   aside           hash: tag -> message, of what kombu could not read and must therefore not find in unacked
-- A queue's own keys begin with its stem, PREFIX:queue:{NAME}:
--   :leased         sorted set: tag -> ms in which its lease ends, of what workers of longshore hold
--   :later          sorted set: tag -> ms of its time, of what was given back or submitted for later
--   :seen:ID :paused :dead   as longshore's own queues have them
local UNACKED, INDEX, OWNERS, ASIDE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- Milliseconds by the server's clock, the only one that counts.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What follows an envelope in unacked: from the default exchange, a queue's name leads into that queue.
local function tail(queue)
  return ',"",' .. cjson.encode(queue) .. ']'
end

-- Consumer, list and ms of a tag that stands as we put it; nil when a kombu channel took it over, or it is gone.
local function standing(tag)
  local owner = redis.call('HGET', OWNERS, tag)
  if not owner then return nil end
  local consumer, list, ms = string.match(owner, '^([^\n]*)\n(.*)\n(%d+)$')
  if redis.call('HEXISTS', ASIDE, tag) == 1 then return consumer, list, tonumber(ms) end
  local score = redis.call('ZSCORE', INDEX, tag)
  if not score or math.floor(tonumber(score) * 1000 + 0.5) ~= tonumber(ms) then return nil end
  return consumer, list, tonumber(ms)
end

-- The list of a tag that is the consumer's.
local function list_of(tag, consumer)
  local owner, list = standing(tag)
  if owner ~= consumer then return nil end
  return list
end

-- Keeps a tag until `ms`. Its score lies in the future meanwhile, so no visibility timeout is short enough to restore it.
local function keep(tag, consumer, list, ms)
  if redis.call('HEXISTS', ASIDE, tag) == 0 then
    redis.call('ZADD', INDEX, string.format('%.3f', ms / 1000), tag)
  end
  redis.call('HSET', OWNERS, tag, consumer .. '\n' .. list .. '\n' .. string.format('%.0f', ms))
end

-- What is kept under a tag; nil when it is none of ours.
local function envelope_of(tag, queue)
  local aside = redis.call('HGET', ASIDE, tag)
  if aside then return aside end
  local kept, after = redis.call('HGET', UNACKED, tag), tail(queue)
  if not kept or string.sub(kept, -#after) ~= after then return nil end
  return string.sub(kept, 2, -#after - 1)
end

local function forget(stem, tag)
  redis.call('HDEL', UNACKED, tag)
  redis.call('ZREM', INDEX, tag)
  redis.call('HDEL', ASIDE, tag)
  redis.call('HDEL', OWNERS, tag)
  redis.call('ZREM', stem .. ':leased', tag)
  redis.call('ZREM', stem .. ':later', tag)
end
