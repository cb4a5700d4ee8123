-- Write an API key and its entry of the audit log, unless the key has changed meanwhile.
-- KEYS: api-keys, audit   ARGV: id, key before ('' for a new one), key, audit entry
-- Returns 1, or 0 when nothing was written.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[4])
return 1
