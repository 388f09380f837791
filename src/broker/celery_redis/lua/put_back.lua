-- Leases that lapsed: their messages go back to where they came from and run next, as kombu restores. More keys: stem. ARGV: of
-- each: tag, the message with its flags. Whoever prolonged his lease meanwhile keeps it. Returns how many went back.
local stem, time, moved = KEYS[5], now(), 0
for at = 1, #ARGV, 2 do
  local tag = ARGV[at]
  local owner, list, ms = standing(tag)
  if owner and ms <= time then
    redis.call('RPUSH', list, ARGV[at + 1])
    forget(stem, tag)
    moved = moved + 1
  end
end
return moved
