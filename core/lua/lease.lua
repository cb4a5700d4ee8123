-- Take, keep or drop a lease that fences: each holder gets a token newer than all before.
-- KEYS: lease, fence   ARGV: take | keep | drop, milliseconds, token
-- Returns the new fencing token when taken, 1 when kept or dropped, 0 when it is somebody else's.
-- A lease without a fence is taken by SET NX, and kept and dropped by this.
if ARGV[1] == 'take' then
  if redis.call('EXISTS', KEYS[1]) == 1 then
    return 0
  end
  local token = redis.call('INCR', KEYS[2])
  redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
  return token
end
if redis.call('GET', KEYS[1]) ~= ARGV[3] then
  return 0
end
if ARGV[1] == 'keep' then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
