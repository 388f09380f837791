-- KEYS: stem, stem of the other queue. ARGV: consumer, class, id. Returns 0 when it was not ours.
local stream, id = KEYS[1] .. ':' .. ARGV[2], ARGV[3]
if owner(stream, id) ~= ARGV[1] then return 0 end
local entry = redis.call('XRANGE', stream, id, id)[1]
if entry then redis.call('XADD', KEYS[2] .. ':' .. ARGV[2], '*', unpack(entry[2])) end
remove(stream, id)
return 1
