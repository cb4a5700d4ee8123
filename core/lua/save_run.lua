-- Write a run's record, if the writer still holds the newest fencing token and the run is not over.
-- KEYS: fence, run, run-current, loop
-- ARGV: token, id, run JSON, '1' when the run is over by this, loop field, value, ...
-- Returns 1 saved, 0 stale token, -1 the run was over before.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if redis.call('GET', KEYS[3]) ~= ARGV[2] then
  return -1
end
redis.call('SET', KEYS[2], ARGV[3])
if ARGV[4] == '1' then
  redis.call('DEL', KEYS[3])
  redis.call('HDEL', KEYS[4], 'cancel', 'failures', 'failed_fraction', 'retry_at')
end
for i = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
end
return 1
