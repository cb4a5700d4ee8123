-- Append sealed completions to the inbox, each exactly once, as long as there is room.
-- A gateway numbers its entries; the mark is the last number of that gateway that is in.
-- KEYS: inbox, mark   ARGV: most entries, seconds to keep the mark, then (number, sealed) pairs
-- Returns {pairs dealt with from the front, entries in the inbox}
local last = tonumber(redis.call('GET', KEYS[2]) or '-1')
local length = redis.call('XLEN', KEYS[1])
local most = tonumber(ARGV[1])
local before = last
local done = 0
for i = 3, #ARGV, 2 do
  local number = tonumber(ARGV[i])
  if number > last then
    if length >= most then break end
    redis.call('XADD', KEYS[1], '*', 'sealed', ARGV[i + 1])
    length = length + 1
    last = number
  end
  done = done + 1
end
if last > before then
  redis.call('SET', KEYS[2], last, 'EX', ARGV[2])
end
return {done, length}
