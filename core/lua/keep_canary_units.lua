-- Keep what a look at a canary came to, unless that canary is over by now.
-- KEYS: canary, canary-units
-- ARGV: salt, seconds to keep it at most, then of each field: 1 where one that is there stays, name,
--       value
-- Returns 1 when it was kept, else 0.
local raw = redis.call('GET', KEYS[1])
if not raw then return 0 end
local canary = cjson.decode(raw)
if canary.state ~= 'running' or canary.salt ~= ARGV[1] then return 0 end
for i = 3, #ARGV, 3 do
  if ARGV[i] == '1' then
    redis.call('HSETNX', KEYS[2], ARGV[i + 1], ARGV[i + 2])
  else
    redis.call('HSET', KEYS[2], ARGV[i + 1], ARGV[i + 2])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
