-- More keys: stem. ARGV: consumer, tag, ms from now, bell (empty: nobody must hear of an earlier end). Also of a lease that lapsed
-- while its message was not put back: it is still ours. Returns 0 when it is not.
local tag, ends = ARGV[2], now() + tonumber(ARGV[3])
local list = list_of(tag, ARGV[1])
if not list then return 0 end
keep(tag, ARGV[1], list, ends)
redis.call('ZADD', KEYS[5] .. ':leased', ends, tag)
if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[3]) end
return 1
