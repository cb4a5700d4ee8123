-- Begin a canary, unless something is in its way; a watch makes the candidate the target at once.
-- KEYS: fence, policies, target, quarantined, collected, canary, target-history, audit, canary-units
-- ARGV: fencing token ('' when a person asks), candidate, parent, canary JSON, mode, audit entry
-- Returns {status, version}: ok | stale | moved | same | unknown | quarantined | collected | running
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'stale', ''} end
local target = redis.call('GET', KEYS[3]) or ''
if not redis.call('ZSCORE', KEYS[2], ARGV[2]) then return {'unknown', target} end
if target == ARGV[2] then return {'same', target} end
if target == '' or target ~= ARGV[3] then return {'moved', target} end
if redis.call('HEXISTS', KEYS[4], ARGV[2]) == 1 then return {'quarantined', target} end
if redis.call('HEXISTS', KEYS[5], ARGV[2]) == 1 then return {'collected', target} end
local before = redis.call('GET', KEYS[6])
if before then
  local said = cjson.decode(before)
  if said.state == 'running' then return {'running', said.candidate} end
end
redis.call('SET', KEYS[6], ARGV[4])
redis.call('DEL', KEYS[9])
if ARGV[5] == 'watch' then
  redis.call('LPUSH', KEYS[7], target)
  redis.call('SET', KEYS[3], ARGV[2])
  redis.call('XADD', KEYS[8], '*', 'entry', ARGV[6], 'from', target, 'to', ARGV[2])
else
  redis.call('XADD', KEYS[8], '*', 'entry', ARGV[6])
end
return {'ok', target}
