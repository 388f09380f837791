-- KEYS: stem. ARGV: consumer; then of each message: class, id. Returns 1 for each that was ours and is gone now.
local results = {}
for at = 2, #ARGV, 2 do
  local stream, id = KEYS[1] .. ':' .. ARGV[at], ARGV[at + 1]
  local ours = owner(stream, id) == ARGV[1]
  if ours then
    redis.call('XACK', stream, GROUP, id)
    redis.call('XDEL', stream, id)
    redis.call('ZREM', stream .. ':leases', id)
  end
  results[#results + 1] = ours and 1 or 0
end
return results
