-- Rebuild the audit log of a Redis that was restored from a backup, from the file that outlived it.
-- KEYS: audit   ARGV: id of the last entry that the caller saw ('' for none), then of each entry,
--       oldest first: id, entry, from, to
-- Returns 1, or 0 when somebody has appended meanwhile.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if (newest[1] and newest[1][1] or '') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 4 do
  if ARGV[i + 3] == '' then
    redis.call('XADD', KEYS[1], ARGV[i], 'entry', ARGV[i + 1])
  else
    redis.call('XADD', KEYS[1], ARGV[i], 'entry', ARGV[i + 1], 'from', ARGV[i + 2], 'to', ARGV[i + 3])
  end
end
return 1
