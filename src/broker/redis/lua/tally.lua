-- KEYS: stem. Returns what could go now, what is leased, what waits for its time, dead letters, 1 when paused, and the ms
-- in which the oldest that could go was submitted (-1: there is none).
local stem, time = KEYS[1], now()
local ready, leased, oldest = redis.call('ZCOUNT', stem .. ':delayed', '-inf', time), 0, -1
local delayed = redis.call('ZCOUNT', stem .. ':delayed', '(' .. string.format('%.0f', time), '+inf')
for _, class in ipairs(CLASSES) do
  local stream = stem .. ':' .. class
  local last, pending = last_delivered(stream)
  local lapsed = redis.call('ZCOUNT', stream .. ':leases', '-inf', time)
  local again = redis.call('ZCOUNT', stream .. ':returned', '-inf', time)
  local returned = redis.call('ZCARD', stream .. ':returned')
  ready = ready + math.max(redis.call('XLEN', stream) - pending, 0) + lapsed + again
  leased = leased + math.max(pending - returned - lapsed, 0)
  delayed = delayed + returned - again
  local first = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1]
  if first then
    local ms = tonumber(string.match(first[1], '^%d+'))
    if oldest < 0 or ms < oldest then oldest = ms end
  end
end
return {ready, leased, delayed, redis.call('XLEN', stem .. ':dead'), redis.call('EXISTS', stem .. ':paused'), oldest}
