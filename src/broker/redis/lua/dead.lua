-- Dead letters without their bodies, newest first. KEYS: stem. ARGV: most. Returns of each: id, bytes of its body, its fields
-- but the body.
local letters = {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1] .. ':dead', '+', '-', 'COUNT', ARGV[1])) do
  local kept, bytes = {}, 0
  for n = 1, #entry[2], 2 do
    if entry[2][n] == 'body' then
      bytes = #entry[2][n + 1]
    else
      kept[#kept + 1], kept[#kept + 2] = entry[2][n], entry[2][n + 1]
    end
  end
  letters[#letters + 1] = {entry[1], bytes, kept}
end
return letters
