-- KEYS: stems. ARGV: consumer, credit, lease in ms. Returns: ms until something will be due by itself (-1: nothing will),
-- the numbers of the stems that hand out, and of each message: number of its stem, class, id, 1 when it was handed over
-- before, its fields. The best class of all queues comes first; in it what was handed over before, then the oldest.
local consumer, credit, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = now()
local found, open = {}, {}
-- What is moved by one call.
local MOST = 500

local function move_due(stem)
  local due = redis.call('ZRANGEBYSCORE', stem .. ':delayed', '-inf', time, 'LIMIT', 0, MOST)
  for _, id in ipairs(due) do
    local held = redis.call('HGET', stem .. ':held', id)
    if held then
      local message = cmsgpack.unpack(held)
      redis.call('XADD', stem .. ':' .. message[1], '*', unpack(message[2]))
      redis.call('HDEL', stem .. ':held', id)
    end
    redis.call('ZREM', stem .. ':delayed', id)
  end
end

local function hand_over(number, class, stream, message, again)
  redis.call('ZADD', stream .. ':leases', time + lease, message[1])
  found[#found + 1] = {number, class, message[1], again, message[2]}
  credit = credit - 1
end

local function take_again(number, class, stream, set)
  local ids = redis.call('ZRANGEBYSCORE', set, '-inf', time, 'LIMIT', 0, math.min(credit, MOST))
  if #ids == 0 then return end
  for _, id in ipairs(ids) do redis.call('ZREM', set, id) end
  local claimed = redis.pcall('XCLAIM', stream, GROUP, consumer, 0, unpack(ids))
  -- The stream, or the message in it, may have been removed by hand.
  if claimed.err then return end
  for _, message in ipairs(claimed) do
    if message and message[2] then hand_over(number, class, stream, message, 1) end
  end
end

local function read_new(stream)
  local command = {'XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', math.min(credit, MOST), 'STREAMS', stream, '>'}
  local read = redis.pcall(unpack(command))
  if read and read.err then
    if not string.find(read.err, 'NOGROUP', 1, true) then return read end
    redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    read = redis.call(unpack(command))
  end
  return read
end

for number, stem in ipairs(KEYS) do
  if redis.call('EXISTS', stem .. ':paused') == 0 then
    open[#open + 1] = number
    move_due(stem)
  end
end
for _, class in ipairs(CLASSES) do
  for _, number in ipairs(open) do
    local stream = KEYS[number] .. ':' .. class
    if credit > 0 then take_again(number, class, stream, stream .. ':leases') end
    if credit > 0 then take_again(number, class, stream, stream .. ':returned') end
    if credit > 0 then
      local read = read_new(stream)
      if read and read.err then return read end
      if read and read[1] then
        for _, message in ipairs(read[1][2]) do hand_over(number, class, stream, message, 0) end
      end
    end
  end
end

local next_due = -1
local function consider(set)
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if first[1] then
    local wait = math.max(tonumber(first[2]) - time, 0)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end
if #found == 0 then
  for _, number in ipairs(open) do
    consider(KEYS[number] .. ':delayed')
    for _, class in ipairs(CLASSES) do
      consider(KEYS[number] .. ':' .. class .. ':leases')
      consider(KEYS[number] .. ':' .. class .. ':returned')
    end
  end
end
return {next_due, open, found}
