-- Point every replica at a version; remember what was live before.
-- A canary that is on ends with that; its evidence stays, what single people said goes.
-- KEYS: policies, target, target-history, audit, quarantined, collected, canary, canary-units, fence
-- ARGV: version ('' for the one before), audit entry, expected target ('' for any),
--       fencing token ('' when a person asks)
-- Returns {status, version}: ok | stale | unknown | quarantined | collected | none | same | moved
local old = redis.call('GET', KEYS[2]) or ''
local new = ARGV[1]
if ARGV[4] ~= '' and redis.call('GET', KEYS[9]) ~= ARGV[4] then return {'stale', old} end
if ARGV[3] ~= '' and ARGV[3] ~= old then
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
  canary.evidence = cjson.decode(redis.call('HGET', KEYS[8], 'evidence') or '{}')
  redis.call('SET', KEYS[7], cjson.encode(canary))
  redis.call('DEL', KEYS[8])
end
return {'ok', new}
