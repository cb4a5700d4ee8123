-- Note that a version's weights are to be removed, unless somebody may need them at once: it is the
-- target, what a roll back would make the target, or in a canary that is on. It is promoted no more.
-- KEYS: target, collected, audit, target-history, quarantined, canary
-- ARGV: version, time, audit entry
-- Returns 1 when it is noted by now, 0 when it is needed.
local target = redis.call('GET', KEYS[1])
if target == ARGV[1] then return 0 end
for _, version in ipairs(redis.call('LRANGE', KEYS[4], 0, -1)) do
  if version ~= target and redis.call('HEXISTS', KEYS[5], version) == 0
    and redis.call('HEXISTS', KEYS[2], version) == 0 then
    if version == ARGV[1] then return 0 end
    break
  end
end
local raw = redis.call('GET', KEYS[6])
if raw then
  local canary = cjson.decode(raw)
  if canary.state == 'running' and (canary.candidate == ARGV[1] or canary.parent == ARGV[1]) then
    return 0
  end
end
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[3], '*', 'entry', ARGV[3])
end
return 1
