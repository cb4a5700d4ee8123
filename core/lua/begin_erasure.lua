-- Ask for the erasure of a user, or ask again while one is open: the moment moves on then.
-- KEYS: tombstones, open, job, audit   ARGV: user, id, id that the caller saw open, milliseconds,
--       audit entry, then (field, value) pairs of the job
-- Returns 1, or 0 when another erasure of this user is open by now.
local open = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if open ~= ARGV[3] then return 0 end
local before = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if tonumber(ARGV[4]) > before then redis.call('HSET', KEYS[1], ARGV[1], ARGV[4]) end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[3], 'id', ARGV[2], 'user', ARGV[1], 'at', ARGV[4])
redis.call('HDEL', KEYS[3], 'receipt')
for i = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
  if ARGV[i] == 'raters' then  -- what this user said as a rater does not come back either
    for rater in string.gmatch(ARGV[i + 1], '%S+') do
      redis.call('HSET', KEYS[1], rater, redis.call('HGET', KEYS[1], ARGV[1]))
    end
  end
end
redis.call('XADD', KEYS[4], '*', 'entry', ARGV[5])
return 1
