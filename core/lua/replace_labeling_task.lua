-- Replace a labeling task, if it still is what the caller read: a lease, an answer, a skip.
-- KEYS: task, open, seen, counts, idempotency, texts
-- ARGV: expected task, new task, task id, score in open ('+inf' when it is done),
--       '1' if the rater is not to see it again, change of rankings, of comparisons,
--       request digest ('' without an idempotency key), its seconds to live, reply,
--       name under which notes wait for the filter ('' when there are none)
-- Returns {'done', ''} | {'changed', ''} | {'replayed', reply} | {'conflict', ''}
if ARGV[8] ~= '' then
  local before = redis.call('GET', KEYS[5])
  if before then
    local digest, reply = string.match(before, '^(%S+) (.*)$')
    if digest == ARGV[8] then return {'replayed', reply} end
    return {'conflict', ''}
  end
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'changed', ''} end
redis.call('SET', KEYS[1], ARGV[2])
if redis.call('ZSCORE', KEYS[2], ARGV[3]) ~= 'inf' then  -- a closed task stays closed
  redis.call('ZADD', KEYS[2], ARGV[4], ARGV[3])
end
if ARGV[5] == '1' then redis.call('SADD', KEYS[3], ARGV[3]) end
if ARGV[6] ~= '0' then redis.call('HINCRBY', KEYS[4], 'rankings', ARGV[6]) end
if ARGV[7] ~= '0' then redis.call('HINCRBY', KEYS[4], 'comparisons', ARGV[7]) end
if ARGV[11] ~= '' then redis.call('SADD', KEYS[6], ARGV[11]) end
if ARGV[8] ~= '' then
  redis.call('SET', KEYS[5], ARGV[8] .. ' ' .. ARGV[10], 'EX', ARGV[9])
end
return {'done', ''}
