-- Start a run, unless one is current or the loop is paused.
-- KEYS: loop, run-current, run, runs   ARGV: id, run JSON, milliseconds, loop field, value, ...
-- Returns {ok | paused | busy, id of the current run}.
if redis.call('HGET', KEYS[1], 'paused') == '1' then
  return {'paused', ''}
end
local current = redis.call('GET', KEYS[2])
if current then
  return {'busy', current}
end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1])
for i = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return {'ok', ARGV[1]}
