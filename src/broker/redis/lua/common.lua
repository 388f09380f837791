-- Begins every script of the queue. A queue's keys begin with its stem, PREFIX:queue:{NAME}:
--   :high :normal :low     streams of messages, with the group below; a message stays until it is done
--   :CLASS:leases          sorted set: id -> end of its lease, of what workers hold
--   :CLASS:returned        sorted set: id -> when it may go again, of what was given back; its consumer is NOBODY
--   :delayed :held         sorted set: number -> its time; hash: number -> message, of what was submitted for later
--   :early                 sorted set: number -> end of the lease of what was taken out of these before its time
--   :seen:ID               dedup ids, with their window as TTL
--   :dead                  stream of dead letters
--   :paused                exists while the queue hands nothing out
local GROUP, NOBODY = 'longshore', 'nobody'
local CLASSES = {'high', 'normal', 'low'}

-- Milliseconds by the server's clock, the only one that counts.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Who holds a message; nil when nobody may settle it.
local function owner(stream, id)
  local pending = redis.pcall('XPENDING', stream, GROUP, id, id, 1)
  if pending.err or not pending[1] then return nil end
  return pending[1][2]
end

local function give_up(stream, id, due)
  redis.call('XCLAIM', stream, GROUP, NOBODY, 0, id, 'JUSTID')
  redis.call('ZREM', stream .. ':leases', id)
  redis.call('ZADD', stream .. ':returned', due, id)
end

local function remove(stream, id)
  redis.call('XACK', stream, GROUP, id)
  redis.call('XDEL', stream, id)
  redis.call('ZREM', stream .. ':leases', id)
  redis.call('ZREM', stream .. ':returned', id)
end

-- The id of the newest message that was ever handed out.
local function last_delivered(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return '0-0', 0 end
  for _, group in ipairs(groups) do
    local facts = {}
    for n = 1, #group, 2 do facts[group[n]] = group[n + 1] end
    if facts['name'] == GROUP then return facts['last-delivered-id'], facts['pending'] end
  end
  return '0-0', 0
end
