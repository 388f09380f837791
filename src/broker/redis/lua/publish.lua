-- KEYS: stream of status, stream of chatter, the newest id of both. ARGV: most events of each, most ms that they are kept,
-- what channels begin with; then of each event: 1 for chatter, its channel, its document. Ids grow over both streams
-- together, so that whoever reads both sees one order.
local time = now()
local ms, number = string.match(redis.call('GET', KEYS[3]) or '0-0', '(%d+)-(%d+)')
ms, number = tonumber(ms), tonumber(number)
local told = {}
for at = 4, #ARGV, 3 do
  if time > ms then ms, number = time, 0 else number = number + 1 end
  local id = string.format('%.0f-%.0f', ms, number)
  local stream = ARGV[at] == '1' and KEYS[2] or KEYS[1]
  redis.call('XADD', stream, 'MAXLEN', '~', ARGV[1], id, 'event', ARGV[at + 2])
  redis.call('PUBLISH', ARGV[3] .. ARGV[at + 1], '{"streamid":"' .. id .. '",' .. string.sub(ARGV[at + 2], 2))
  told[stream] = true
end
redis.call('SET', KEYS[3], string.format('%.0f-%.0f', ms, number))
for stream in pairs(told) do
  redis.call('XTRIM', stream, 'MINID', '~', string.format('%.0f', math.max(time - tonumber(ARGV[2]), 0)))
end
return 1
