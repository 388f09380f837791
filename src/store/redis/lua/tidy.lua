-- Strikes from the labels' indexes what is gone, some with each call. KEYS: label's set. ARGV: stem of the indexes, what
-- records' keys begin with, label, offset, most. Returns: how many were looked at, how many of these were gone.
local members = redis.call('ZRANGE', KEYS[1], ARGV[4], ARGV[4] + ARGV[5] - 1)
local gone = 0
for _, id in ipairs(members) do
  if redis.call('EXISTS', ARGV[2] .. '{' .. id .. '}') == 0 then
    redis.call('ZREM', KEYS[1], id)
    gone = gone + 1
  end
end
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', ARGV[1] .. 'labels', ARGV[3]) end
return {#members, gone}
