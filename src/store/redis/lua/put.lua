-- KEYS: record. ARGV: stem of the indexes, id, expected revision (empty: no record), fence, status, queue, changed, lease,
-- owed, labels, document, seconds that it may stay. Returns {1, revision}, or {0, what stands there}.
local key, stem, id = KEYS[1], ARGV[1], ARGV[2]
local found = fields_of(key)
local as_expected
if ARGV[3] == '' then as_expected = not found
else as_expected = found and found.revision == ARGV[3] and found.fence <= tonumber(ARGV[4]) end
if not as_expected then return {0, found and whole(key) or false} end
local record = {status = ARGV[5], queue = ARGV[6], labels = ARGV[10], bytes = #ARGV[11]}
local revision
if found then
  revision = redis.call('HINCRBY', key, 'revision', 1)
  if found.labels ~= record.labels or found.status ~= record.status or found.queue ~= record.queue
    or tonumber(found.bytes) ~= record.bytes then
    unlist(stem, id, found)
  end
  if found.lease and ARGV[8] == '' then redis.call('HDEL', key, 'lease') end
  if found.owed and ARGV[9] == '' then redis.call('HDEL', key, 'owed') end
else
  -- The time, so that no revision of a removed record comes back.
  local time = redis.call('TIME')
  revision = time[1] * 1000000 + time[2]
  redis.call('HSET', key, 'revision', string.format('%.0f', revision))
end
redis.call('HSET', key, 'fence', ARGV[4], 'status', ARGV[5], 'queue', ARGV[6], 'changed', ARGV[7], 'document', ARGV[11],
  'bytes', record.bytes)
if ARGV[8] ~= '' then redis.call('HSET', key, 'lease', ARGV[8]) end
if ARGV[9] ~= '' then redis.call('HSET', key, 'owed', ARGV[9]) end
if ARGV[10] ~= '' or (found and found.labels ~= '') then redis.call('HSET', key, 'labels', ARGV[10]) end
redis.call('EXPIRE', key, ARGV[12])
redis.call('ZADD', place_of(stem, record), ARGV[7], id .. ' ' .. record.bytes)
each_label(record.labels, function(label)
  redis.call('ZADD', stem .. 'label:' .. label, ARGV[7], id)
  redis.call('SADD', stem .. 'labels', label)
end)
if ARGV[9] ~= '' then
  redis.call('ZADD', stem .. 'owing', ARGV[8] == '' and 0 or ARGV[8], id)
elseif found and found.owed then
  redis.call('ZREM', stem .. 'owing', id)
end
redis.call('SADD', stem .. 'queues', record.queue)
redis.call('INCRBY', stem .. 'bytes', record.bytes - (found and tonumber(found.bytes) or 0))
return {1, string.format('%.0f', revision)}
