-- Point every replica at a version; remember what was live before.
-- A canary that is on ends with that.
-- KEYS: policies, target, target-history, audit, quarantined, collected, canary
-- ARGV: version ('' for the one before), audit entry with %s for old and new, mode, expected target
-- Returns {status, version}: ok | unknown | quarantined | collected | none | same | moved
local old = redis.call('GET', KEYS[2]) or ''
local new = ARGV[1]
if ARGV[4] ~= '' and ARGV[4] ~= old then
  return {'moved', old}
end
if new == '' then
  repeat
    new = redis.call('LPOP', KEYS[3]) or ''
    if new == '' then return {'none', old} end
  until new ~= old and redis.call('HEXISTS', KEYS[5], new) == 0
    and redis.call('HEXISTS', KEYS[6], new) == 0
else
  if not redis.call('ZSCORE', KEYS[1], new) then return {'unknown', old} end
  if redis.call('HEXISTS', KEYS[5], new) == 1 then return {'quarantined', old} end
  if redis.call('HEXISTS', KEYS[6], new) == 1 then return {'collected', old} end
  if new == old then return {'same', old} end
  if old ~= '' then redis.call('LPUSH', KEYS[3], old) end
end
redis.call('SET', KEYS[2], new)
redis.call('XADD', KEYS[4], '*', 'entry', ARGV[2], 'from', old, 'to', new)
local raw = redis.call('GET', KEYS[7])
local canary = raw and cjson.decode(raw)
if canary and canary.state == 'running' then
  local back = new == canary.parent and old == canary.candidate
  canary.state = new == canary.candidate and 'promoted' or (back and 'rolled_back' or 'stopped')
  canary.why = cjson.decode(ARGV[2]).why or 'the live version was changed'
  canary.ended_at = tonumber(redis.call('TIME')[1])
  redis.call('SET', KEYS[7], cjson.encode(canary))
end
return {'ok', new}
