-- Replace a feedback record (or a labeling task, once its notes are filtered), if it still is what
-- the caller read.
-- KEYS: feedback, texts, quarantine, counts
-- ARGV: id, expected record, new record, name of the count, its change, change of comparisons,
--       '1' if text of it no longer waits for the filter
-- Returns 1, or 0 when somebody else has changed it.
if redis.call('GET', KEYS[1]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
if ARGV[7] == '1' then
  redis.call('SREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
end
if ARGV[5] ~= '0' then redis.call('HINCRBY', KEYS[4], ARGV[4], ARGV[5]) end
if ARGV[6] ~= '0' then redis.call('HINCRBY', KEYS[4], 'comparisons', ARGV[6]) end
return 1
