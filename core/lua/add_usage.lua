-- Add one batch of a gateway's counts to the usage of its days, once, however often it is sent.
-- KEYS: mark of the gateway, then a day for each count
-- ARGV: number of the batch, seconds to keep the mark, seconds to keep a day, then (field, count)
-- Returns 1, or 0 when the batch was in already.
local number = tonumber(ARGV[1])
if number <= tonumber(redis.call('GET', KEYS[1]) or '0') then return 0 end
for i = 2, #KEYS do
  local first = 4 + (i - 2) * 2
  redis.call('HINCRBY', KEYS[i], ARGV[first], ARGV[first + 1])
  redis.call('EXPIRE', KEYS[i], ARGV[3])
end
redis.call('SET', KEYS[1], number, 'EX', ARGV[2])
return 1
