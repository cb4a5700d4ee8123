-- Close an erasure with its receipt, unless it was asked for again meanwhile.
-- KEYS: open, job, tokens, audit   ARGV: user, milliseconds until when it erased, finished,
--       receipt, then entries of the audit log
-- Returns 1, or 0 when there is more to erase by now.
if redis.call('HGET', KEYS[2], 'at') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'finished', ARGV[3], 'receipt', ARGV[4])
redis.call('DEL', KEYS[3])
for i = 5, #ARGV do redis.call('XADD', KEYS[4], '*', 'entry', ARGV[i]) end
return 1
