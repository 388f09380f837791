-- Removes finished records of one place that owe nothing. KEYS: place. ARGV: stem of the indexes, what records' keys begin
-- with, latest time, most that are looked at, offset, most bytes to remove (0: no bound). Returns: how many were looked at,
-- how many were removed or had been gone, how many of these were records, and their bytes.
local place, stem = KEYS[1], ARGV[1]
local most_bytes = tonumber(ARGV[6])
local members = redis.call('ZRANGEBYSCORE', place, '-inf', ARGV[3], 'LIMIT', ARGV[5], ARGV[4])
local gone, removed, freed = 0, 0, 0
for _, member in ipairs(members) do
  if most_bytes > 0 and freed >= most_bytes then break end
  local id, bytes = string.match(member, '^(.*) (%d+)$')
  local key = ARGV[2] .. '{' .. id .. '}'
  local record = fields_of(key)
  if not record then
    -- Its time to live had passed.
    redis.call('ZREM', place, member)
    redis.call('ZREM', stem .. 'owing', id)
    redis.call('DECRBY', stem .. 'bytes', bytes)
    gone = gone + 1
  elseif place_of(stem, record) ~= place or record.bytes ~= bytes then
    redis.call('ZREM', place, member)
    gone = gone + 1
  elseif is_finished(record.status) and not record.owed then
    unlist(stem, id, record)
    redis.call('DEL', key)
    redis.call('DECRBY', stem .. 'bytes', bytes)
    gone, removed, freed = gone + 1, removed + 1, freed + tonumber(bytes)
  end
end
return {#members, gone, removed, freed}
