-- Which schema this Redis holds; nothing where nothing was ever kept.
-- KEYS: schema   ARGV: where the first release keeps it, schema with which to mark a new Redis or ''
-- In a Cluster the first release's key is another server's. That release could use none, so there
-- is nothing to read there, and nobody to keep out.
local function first(command, ...)
  local said = redis.pcall(command, ARGV[1], ...)
  if type(said) ~= 'table' or not said.err then
    return said
  end
  -- the second from Redis 7 on, also where both slots are this server's
  for _, elsewhere in ipairs({'non local key', 'same slot', 'slot not served'}) do
    if string.find(said.err, elsewhere, 1, true) then
      return false
    end
  end
  return redis.error_reply('this user may not use ' .. ARGV[1] .. ': ' .. said.err)
end
local said = redis.call('GET', KEYS[1]) or first('GET')
if said or ARGV[2] == '' then
  return said
end
local marked = first('SET', ARGV[2])
if type(marked) == 'table' and marked.err then
  return marked
end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
