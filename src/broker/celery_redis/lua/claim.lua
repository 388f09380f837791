-- More keys: the counter of tags, stems. ARGV: consumer, credit, lease in ms, number of the queue that is first this time; then of
-- each stem: the name of its queue, and its four lists, the first one first. Returns: ms until something will be due by itself
-- (-1: nothing will), the numbers of the stems that hand out, the leases that lapsed (number of the stem, tag, message), and of
-- each message: number of its stem, tag, the message. What is taken goes from its list into unacked in this one step.
local COUNTER, consumer, credit, lease, first = KEYS[5], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = now()
local open, lapsed, found = {}, {}, {}
-- What is moved by one call.
local MOST = 100

local function stem_of(number) return KEYS[5 + number] end
local function queue_of(number) return ARGV[5 * number] end
local function list_at(number, step) return ARGV[5 * number + step] end

-- Those of a set whose time has come and that still stand as they were put.
local function due_of(stem, set)
  local due = {}
  local tags = redis.call('ZRANGEBYSCORE', stem .. set, '-inf', time, 'WITHSCORES', 'LIMIT', 0, MOST)
  for n = 1, #tags, 2 do
    local owner, list, ms = standing(tags[n])
    if owner and ms == tonumber(tags[n + 1]) then
      due[#due + 1] = {tags[n], list}
    else
      redis.call('ZREM', stem .. set, tags[n])
      if not owner then redis.call('HDEL', OWNERS, tags[n]) end
    end
  end
  return due
end

local function move_due(number)
  local stem, queue = stem_of(number), queue_of(number)
  for _, one in ipairs(due_of(stem, ':later')) do
    local envelope = envelope_of(one[1], queue)
    if envelope then redis.call('RPUSH', one[2], envelope) end
    forget(stem, one[1])
  end
  for _, one in ipairs(due_of(stem, ':leased')) do
    local envelope = envelope_of(one[1], queue)
    if envelope then
      lapsed[#lapsed + 1] = {number, one[1], envelope}
    else
      forget(stem, one[1])
    end
  end
end

-- Whether kombu can restore it, and the tag that it has.
local function look(envelope)
  local read, map = pcall(cjson.decode, envelope)
  if not read or type(map) ~= 'table' or type(map['headers']) ~= 'table' or type(map['properties']) ~= 'table' then
    return false, nil
  end
  local tag = map['properties']['delivery_tag']
  if type(tag) ~= 'string' or tag == '' or #tag > 255 then tag = nil end
  return true, tag
end

local function take(number, list, envelope)
  local restorable, tag = look(envelope)
  if not tag then
    tag = 'longshore-' .. redis.call('INCR', COUNTER)
  elseif redis.call('HEXISTS', UNACKED, tag) == 1 then
    -- Its sender was not sure and sent it twice.
    tag = tag .. '#' .. redis.call('INCR', COUNTER)
  end
  if restorable then
    redis.call('HSET', UNACKED, tag, '[' .. envelope .. tail(queue_of(number)))
  else
    redis.call('HSET', ASIDE, tag, envelope)
  end
  keep(tag, consumer, list, time + lease)
  redis.call('ZADD', stem_of(number) .. ':leased', time + lease, tag)
  found[#found + 1] = {number, tag, envelope}
  credit = credit - 1
end

for number = 1, #KEYS - 5 do
  move_due(number)
  if redis.call('EXISTS', stem_of(number) .. ':paused') == 0 then open[#open + 1] = number end
end
for step = 1, 4 do
  for turn = 0, #open - 1 do
    local number = open[(first + turn) % #open + 1]
    if credit > 0 then
      local list = list_at(number, step)
      for _, envelope in ipairs(redis.call('RPOP', list, credit) or {}) do take(number, list, envelope) end
    end
  end
end

local next_due = -1
local function consider(set)
  local soonest = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if soonest[1] then
    local wait = math.max(tonumber(soonest[2]) - time, 0)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end
if #found == 0 then
  for number = 1, #KEYS - 5 do
    consider(stem_of(number) .. ':leased')
    consider(stem_of(number) .. ':later')
  end
end
return {next_due, open, lapsed, found}
