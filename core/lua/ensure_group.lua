-- Make the consumer group of a stream, and the stream, unless they are there.
-- KEYS: stream   ARGV: group   Returns 1 when it was made, 0 when it was there.
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err then
  if string.find(made.err, 'BUSYGROUP', 1, true) then return 0 end
  return made
end
return 1
