-- KEYS: stem. ARGV: consumer, class, id, reason. Returns 0 when it was not ours.
local stream, id = KEYS[1] .. ':' .. ARGV[2], ARGV[3]
if owner(stream, id) ~= ARGV[1] then return 0 end
local entry = redis.call('XRANGE', stream, id, id)[1]
if entry then
  local fields = entry[2]
  fields[#fields + 1], fields[#fields + 2] = 'dead_reason', ARGV[4]
  fields[#fields + 1], fields[#fields + 2] = 'dead_class', ARGV[2]
  redis.call('XADD', KEYS[1] .. ':dead', '*', unpack(fields))
end
remove(stream, id)
return 1
