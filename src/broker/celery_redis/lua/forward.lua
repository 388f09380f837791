-- More keys: stem. ARGV: consumer, tag, list of the other queue, the message. Returns 0 when it was not ours.
if not list_of(ARGV[2], ARGV[1]) then return 0 end
redis.call('LPUSH', ARGV[3], ARGV[4])
forget(KEYS[5], ARGV[2])
return 1
