-- Register a version, if the worker still holds the newest fencing token.
-- KEYS: fence, policies, policy, audit, policy-prefixes
-- ARGV: token, version, number, card, audit entry, prefix ('' when it is kept nowhere else)
-- Returns 1 registered, 0 stale token, 2 registered before (by the same run).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return 2
end
redis.call('SET', KEYS[3], ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[5], ARGV[2], ARGV[6]) end
redis.call('XADD', KEYS[4], '*', 'entry', ARGV[5])
return 1
