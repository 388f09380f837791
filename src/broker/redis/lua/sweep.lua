-- What a worker read and died over before it could note the lease lapses now; consumers of long ago that hold nothing are
-- forgotten, others never: to delete a consumer drops what it holds. KEYS: stems. ARGV: lease in ms, ms of silence, bell.
local found = 0
for _, stem in ipairs(KEYS) do
  for _, class in ipairs(CLASSES) do
    local stream = stem .. ':' .. class
    local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, GROUP)
    if not consumers.err then
      for _, consumer in ipairs(consumers) do
        local facts = {}
        for n = 1, #consumer, 2 do facts[consumer[n]] = consumer[n + 1] end
        local name = facts['name']
        if name ~= NOBODY and facts['pending'] == 0 and facts['idle'] > tonumber(ARGV[2]) then
          redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, name)
        elseif name ~= NOBODY and facts['pending'] > 0 then
          local pending = redis.call('XPENDING', stream, GROUP, 'IDLE', ARGV[1], '-', '+', 1000, name)
          for _, entry in ipairs(pending) do
            if not redis.call('ZSCORE', stream .. ':leases', entry[1]) then
              redis.call('ZADD', stream .. ':leases', 0, entry[1])
              found = found + 1
            end
          end
        end
      end
    end
  end
end
if found > 0 then redis.call('PUBLISH', ARGV[3], 0) end
return found
