-- One page of what waits, without bodies. KEYS: stem. ARGV: section, class, cursor (empty: the beginning), most that are
-- looked at, task (empty: any). Returns: cursor of the next page (empty: there is none), how many were looked at, and of each
-- that matches: its place among them, id, ms of its time or lease's end (-1: none), consumer, its fields but the body.
local stem, section, class, cursor, most, task = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local stream, time = stem .. ':' .. class, now()
local found, seen, next_cursor = {}, 0, ''

-- A plain XADD may carry the envelope alone.
local function task_of(facts)
  if facts['task'] or not facts['body'] then return facts['task'] end
  local read, envelope = pcall(cjson.decode, facts['body'])
  if read and type(envelope) == 'table' and type(envelope['id']) == 'string' then return envelope['id'] end
  return nil
end

local function look(id, due, consumer, fields)
  seen = seen + 1
  local facts = {}
  for n = 1, #fields, 2 do facts[fields[n]] = fields[n + 1] end
  facts['task'] = task_of(facts)
  if task ~= '' and facts['task'] ~= task then return end
  local kept = {}
  for _, name in ipairs({'task', 'priority', 'submitted', 'id'}) do
    if facts[name] then kept[#kept + 1], kept[#kept + 2] = name, facts[name] end
  end
  found[#found + 1] = {seen - 1, id, due, consumer, kept}
end

local function of_set(set, from, to)
  local offset = cursor == '' and 0 or tonumber(cursor)
  local ids = redis.call('ZRANGEBYSCORE', set, from, to, 'WITHSCORES', 'LIMIT', offset, most)
  for n = 1, #ids, 2 do
    local entry = redis.call('XRANGE', stream, ids[n], ids[n])[1]
    if entry then look(ids[n], tonumber(ids[n + 1]), owner(stream, ids[n]) or '', entry[2]) end
  end
  if #ids == most * 2 then next_cursor = tostring(offset + most) end
end

local later = '(' .. string.format('%.0f', time)
if section == 'leased' then
  of_set(stream .. ':leases', later, '+inf')
elseif section == 'lapsed' then
  of_set(stream .. ':leases', '-inf', time)
elseif section == 'again' then
  of_set(stream .. ':returned', '-inf', time)
elseif section == 'returned' then
  of_set(stream .. ':returned', later, '+inf')
elseif section == 'new' then
  if cursor == '' then cursor = last_delivered(stream) end
  local entries = redis.call('XRANGE', stream, '(' .. cursor, '+', 'COUNT', most)
  for _, entry in ipairs(entries) do look(entry[1], -1, '', entry[2]) end
  if #entries == most then next_cursor = entries[#entries][1] end
elseif section == 'held' then
  local offset = cursor == '' and 0 or tonumber(cursor)
  local ids = redis.call('ZRANGEBYSCORE', stem .. ':delayed', '-inf', '+inf', 'WITHSCORES', 'LIMIT', offset, most)
  for n = 1, #ids, 2 do
    local held = redis.call('HGET', stem .. ':held', ids[n])
    if held then
      local message = cmsgpack.unpack(held)
      if message[1] == class then look(ids[n], tonumber(ids[n + 1]), '', message[2]) end
    end
  end
  if #ids == most * 2 then next_cursor = tostring(offset + most) end
end
return {next_cursor, seen, found}
