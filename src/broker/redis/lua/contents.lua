-- Messages with all their fields. KEYS: stem. ARGV: of each: class, id. Returns the fields of each, empty when it is gone.
local found = {}
for at = 1, #ARGV, 2 do
  local fields = {}
  local held = redis.call('HGET', KEYS[1] .. ':held', ARGV[at + 1])
  if held then
    fields = cmsgpack.unpack(held)[2]
  elseif string.match(ARGV[at + 1], '^%d+-%d+$') then
    local entry = redis.call('XRANGE', KEYS[1] .. ':' .. ARGV[at], ARGV[at + 1], ARGV[at + 1])[1]
    if entry then fields = entry[2] end
  end
  found[#found + 1] = fields
end
return found
