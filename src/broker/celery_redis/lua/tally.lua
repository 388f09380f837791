-- More keys: stem, the queue's lists. Returns what could go now, what is leased, what waits for its time, dead letters, and 1 when
-- paused.
local stem, time, ready = KEYS[5], now(), 0
for n = 6, #KEYS do ready = ready + redis.call('LLEN', KEYS[n]) end
local later = '(' .. string.format('%.0f', time)
for _, set in ipairs({':leased', ':later'}) do ready = ready + redis.call('ZCOUNT', stem .. set, '-inf', time) end
return {
  ready,
  redis.call('ZCOUNT', stem .. ':leased', later, '+inf'),
  redis.call('ZCOUNT', stem .. ':later', later, '+inf'),
  redis.call('XLEN', stem .. ':dead'),
  redis.call('EXISTS', stem .. ':paused'),
}
