-- KEYS: stem. ARGV: consumer, class, id, ms to wait, bell. Returns 0 when it was not ours.
local stream, id, after = KEYS[1] .. ':' .. ARGV[2], ARGV[3], tonumber(ARGV[4])
if owner(stream, id) ~= ARGV[1] then return 0 end
-- The clock's part of a millisecond is cut off: one more, so that no delay is too short.
give_up(stream, id, now() + after + (after > 0 and 1 or 0))
redis.call('PUBLISH', ARGV[5], ARGV[4])
return 1
