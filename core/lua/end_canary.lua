-- End the canary with this salt, and move the target as its ending asks for.
-- KEYS: canary, target, target-history, audit, quarantined, collected, canary-units
-- ARGV: salt, ending, why, seconds, evidence JSON, audit entry
-- Returns {status, version}: ok (the live version now) | gone | barred | none
local raw = redis.call('GET', KEYS[1])
if not raw then return {'gone', ''} end
local canary = cjson.decode(raw)
if canary.state ~= 'running' or canary.salt ~= ARGV[1] then return {'gone', ''} end
local old = redis.call('GET', KEYS[2]) or ''
local is_barred = function(version)
  return redis.call('HEXISTS', KEYS[5], version) == 1 or redis.call('HEXISTS', KEYS[6], version) == 1
end
local live = old
local expected = canary.mode == 'split' and canary.parent or canary.candidate
if ARGV[2] ~= 'stopped' and old ~= expected then return {'gone', old} end
if ARGV[2] == 'promoted' and canary.mode == 'split' then
  if is_barred(canary.candidate) then return {'barred', canary.candidate} end
  live = canary.candidate
  redis.call('LPUSH', KEYS[3], old)
elseif ARGV[2] == 'rolled_back' and canary.mode == 'watch' then
  repeat
    live = redis.call('LPOP', KEYS[3]) or ''
    if live == '' then return {'none', old} end
  until live ~= old and not is_barred(live)
end
if live ~= old then
  redis.call('SET', KEYS[2], live)
  redis.call('XADD', KEYS[4], '*', 'entry', ARGV[6], 'from', old, 'to', live)
else
  redis.call('XADD', KEYS[4], '*', 'entry', ARGV[6])
end
canary.state, canary.why = ARGV[2], ARGV[3]
canary.ended_at, canary.evidence = tonumber(ARGV[4]), cjson.decode(ARGV[5])
redis.call('SET', KEYS[1], cjson.encode(canary))
redis.call('DEL', KEYS[7])
return {'ok', live}
