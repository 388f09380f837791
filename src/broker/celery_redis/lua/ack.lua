-- More keys: stem. ARGV: consumer, tag. Returns 0 when it was not ours.
if not list_of(ARGV[2], ARGV[1]) then return 0 end
forget(KEYS[5], ARGV[2])
return 1
