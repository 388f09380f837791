-- Begins every script of the store. PREFIX:result:{ID} is a hash: document (JSON), revision, fence, status, queue, changed
-- (µs since 1970), lease (µs; missing: none), owed (names by line; missing: none), labels (name=value by line, escaped), bytes.
-- Beside it, below PREFIX:results:
--   place:QUEUE:STATUS     sorted set: changed -> "ID BYTES", what lists and sweeps walk along
--   label:NAME=VALUE       sorted set: changed -> ID
--   owing                  sorted set: end of the lease -> ID, of open outboxes
--   queues, labels, bytes  names of queues and of labels that there are, and a sum over all records
local function fields_of(key)
  local found = redis.call('HMGET', key, 'revision', 'fence', 'status', 'queue', 'changed', 'lease', 'owed', 'labels', 'bytes')
  if not found[1] then return nil end
  return {revision = found[1], fence = tonumber(found[2]), status = found[3], queue = found[4], changed = found[5],
    lease = found[6], owed = found[7], labels = found[8] or '', bytes = found[9]}
end

local function place_of(stem, record)
  return stem .. 'place:' .. record.queue .. ':' .. record.status
end

local function each_label(labels, act)
  for label in string.gmatch(labels, '[^\n]+') do act(label) end
end

local function unlist(stem, id, record)
  redis.call('ZREM', place_of(stem, record), id .. ' ' .. record.bytes)
  each_label(record.labels, function(label) redis.call('ZREM', stem .. 'label:' .. label, id) end)
end

local function is_finished(status)
  return status == 'succeeded' or status == 'failed' or status == 'canceled' or status == 'dead'
end

local function whole(key)
  return redis.call('HMGET', key, 'revision', 'document', 'lease', 'owed')
end
