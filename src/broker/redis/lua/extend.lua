-- KEYS: stem. ARGV: consumer, class, id, ms from now, bell (empty: nobody must hear of an earlier end). Also of a lease that
-- lapsed while nobody took the message: it is still ours. Returns 0 when it is not.
local stream, id, by = KEYS[1] .. ':' .. ARGV[2], ARGV[3], tonumber(ARGV[4])
if owner(stream, id) ~= ARGV[1] then return 0 end
redis.call('XCLAIM', stream, GROUP, ARGV[1], 0, id, 'JUSTID')
redis.call('ZADD', stream .. ':leases', now() + by, id)
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[5], ARGV[4]) end
return 1
