-- Take in what one gateway spent of several budgets, and give it a new slice of each.
-- A budget by the minute is a hash: level (what no gateway holds; below 0 is debt), at (its time),
-- and a field for each gateway: "held said seen", its slice, all it ever spent, when it was here.
-- A budget of places has no level: its limit less what the others hold; "said" is how many are open.
-- A report that was taken in twice counts once. What a gateway held that is gone comes back.
-- KEYS: gateways, budgets...   ARGV: gateway, milliseconds now (0: by the clock of Redis), then for
-- each budget: its serial number in the gateway, limit, fills per millisecond (0: places), said,
-- said before (counts if Redis has forgotten), wanted (-1: give back)
-- Returns how many gateways there are, then for each budget its slice and what is left in all.
local LIVE, GONE = 3000, 10000
local gateway, now = ARGV[1], tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
redis.call('ZADD', KEYS[1], now, gateway)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - LIVE)
redis.call('PEXPIRE', KEYS[1], GONE)
local replies = {tostring(redis.call('ZCARD', KEYS[1]))}

local function read(key, limit, me)
  local budget = {level = limit, at = now, held = 0, said = 0, live = 1}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'level' or name == 'at' then
      budget[name] = tonumber(value)
    else
      local held, said, seen = string.match(value, '(%S+) (%S+) (%S+)')
      if name == me then
        budget.mine = {held = tonumber(held), said = tonumber(said)}
      elseif now - tonumber(seen) > GONE then
        redis.call('HDEL', key, name)
        budget.back = (budget.back or 0) + tonumber(held)
      else
        budget.held = budget.held + tonumber(held)
        budget.said = budget.said + tonumber(said)
        if now - tonumber(seen) <= LIVE then budget.live = budget.live + 1 end
      end
    end
  end
  return budget
end

for i = 2, #KEYS do
  local first = 3 + (i - 2) * 6
  local me = gateway .. ':' .. ARGV[first]
  local limit, fill = tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local said, before = tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4])
  local want = tonumber(ARGV[first + 5])
  local budget = read(KEYS[i], limit, me)
  local mine = budget.mine or {held = 0, said = before}
  -- several leave one share with nobody, so that whoever is short finds something at once
  local shares = budget.live == 1 and 1 or budget.live + 1
  local pool, slice, kept
  if fill > 0 then
    local level = budget.level + fill * math.max(0, now - budget.at) + (budget.back or 0)
    level = level + mine.held - (said - mine.said)
    level = math.min(level, math.max(0, limit - budget.held))
    pool = level + budget.held
    slice = math.max(0, math.min(level, math.max(math.ceil(pool / shares), want)))
    if want < 0 then
      slice = 0
      -- in debt nobody starts on credit again, whatever the others still hold
      if level < 0 then pool = level end
    end
    kept = slice
    redis.call('HSET', KEYS[i], 'level', string.format('%.6f', level - slice),
      'at', string.format('%.0f', now))
    redis.call('PEXPIRE', KEYS[i], GONE + math.ceil(math.max(0, limit - level) / fill))
  else
    pool = math.max(0, limit - budget.said - said)
    local fair = math.max(math.ceil(pool / shares), want)
    slice = math.max(0, math.min(limit - budget.held, said + fair))
    kept = math.max(slice, said)
  end
  if want < 0 then
    redis.call('HDEL', KEYS[i], me)
  else
    redis.call('HSET', KEYS[i], me, string.format('%.6f %.6f %.0f', kept, said, now))
    if fill == 0 then redis.call('PEXPIRE', KEYS[i], GONE) end
  end
  replies[#replies + 1] = string.format('%.6f', slice)
  replies[#replies + 1] = string.format('%.6f', pool)
end
return replies
