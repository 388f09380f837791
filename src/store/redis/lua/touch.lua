-- KEYS: record. ARGV: fence, lease. Returns 1 when it is still that attempt's and not finished.
local record = fields_of(KEYS[1])
if not record or record.fence ~= tonumber(ARGV[1]) or is_finished(record.status) then return 0 end
redis.call('HSET', KEYS[1], 'lease', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'revision', 1)
return 1
