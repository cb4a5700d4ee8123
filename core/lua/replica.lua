-- One agent at a time speaks for a replica's name.
-- KEYS: names of all replicas, this one's heartbeat, its holder
-- ARGV: claim | say | leave, name, holder, place, heartbeat (JSON), seconds
-- A holder is its place, a space, and a word that is new for each agent: an agent that starts at the
-- place of the last one takes over at once, any other when the last one has been silent.
-- Returns the holder that stands in the way; empty if there is none.
local holder = redis.call('GET', KEYS[3]) or ''
local successor = ARGV[1] == 'claim' and string.sub(holder, 1, #ARGV[4] + 1) == ARGV[4] .. ' '
if holder ~= '' and holder ~= ARGV[3] and not successor then
  return holder
end
if ARGV[1] == 'leave' then
  redis.call('SREM', KEYS[1], ARGV[2])
  redis.call('DEL', KEYS[2], KEYS[3])
else
  redis.call('SADD', KEYS[1], ARGV[2])
  redis.call('SET', KEYS[2], ARGV[5], 'EX', ARGV[6])
  redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[6])
end
return ''
