-- Note that a version's weights are to be removed, unless it is the target: it is promoted no more.
-- KEYS: target, collected, audit   ARGV: version, time, audit entry
-- Returns 1 when it is noted by now, 0 when it is the target.
if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[3], '*', 'entry', ARGV[3])
end
return 1
