-- Remove what somebody said (feedback, a labeling task), or what of it is an erased person's, if it
-- still is what the caller read.
-- KEYS: record, counts, texts, quarantine, quarantine-since, quarantine-retry, job, indexes (zset)
--       of which the caller says how many, then sets that name it
-- ARGV: expected record, new record ('' removes it), member of the indexes and sets, name of its
--       text, name of its count in the job ('' without a job), change of comparisons, number of
--       indexes, name of a count, change, then versions of policies that were trained on it
-- Returns 1, or 0 when it has changed.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
  for i = 8, #KEYS do
    redis.call(i < 8 + tonumber(ARGV[7]) and 'ZREM' or 'SREM', KEYS[i], ARGV[3])
  end
  redis.call('SREM', KEYS[3], ARGV[4])
  redis.call('HDEL', KEYS[4], ARGV[4])
  redis.call('ZREM', KEYS[5], ARGV[4])
  redis.call('ZREM', KEYS[6], ARGV[4])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
if ARGV[6] ~= '0' then redis.call('HINCRBY', KEYS[2], 'comparisons', ARGV[6]) end
if ARGV[9] ~= '0' then redis.call('HINCRBY', KEYS[2], ARGV[8], ARGV[9]) end
if ARGV[5] == '' then return 1 end
redis.call('HINCRBY', KEYS[7], 'count:' .. ARGV[5], 1)
for i = 10, #ARGV do redis.call('HSET', KEYS[7], 'version:' .. ARGV[i], '1') end
return 1
