-- More keys: stem. ARGV: consumer, tag; then fields and values of the dead letter. Returns 0 when it was not ours.
local stem, tag = KEYS[5], ARGV[2]
if not list_of(tag, ARGV[1]) then return 0 end
redis.call('XADD', stem .. ':dead', '*', unpack(ARGV, 3))
forget(stem, tag)
return 1
