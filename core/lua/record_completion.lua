-- Record a completion and take it out of the inbox (or out of quarantine): both or neither.
-- KEYS: inbox, quarantine, completion, prompts, user-prompts, user-completions, openings,
--       users, counts, tombstones, logged
-- ARGV: entry id ('' when it comes from quarantine), group, name in quarantine,
--       record without its last brace, token, user, milliseconds of the prompt, of the window,
--       cap, '1' if the prompt may count, outcome if it counts or may not, digest of its opening,
--       mark of its owner: a number under 4096
-- An opening's score is milliseconds * 4096 + mark: by it its owner is known again.
-- Returns the outcome, 'known' when it was recorded before, 'gone' when somebody else took it,
-- 'erased' when its user was erased since: it is dropped.
local taken
if ARGV[1] ~= '' then
  taken = redis.call('XACK', KEYS[1], ARGV[2], ARGV[1])
  redis.call('XDEL', KEYS[1], ARGV[1])
else
  taken = redis.call('HDEL', KEYS[2], ARGV[3])
end
if taken == 0 then return 'gone' end
if redis.call('EXISTS', KEYS[3]) == 1 then return 'known' end
local erased = redis.call('HGET', KEYS[10], ARGV[6])
if erased and tonumber(ARGV[7]) <= tonumber(erased) then return 'erased' end

local now, window = tonumber(ARGV[7]), tonumber(ARGV[8])
local outcome, counted = ARGV[11], false
if ARGV[10] == '1' then
  local since = string.format('(%.0f', now - window)
  if redis.call('ZCOUNT', KEYS[5], since, '+inf') >= tonumber(ARGV[9]) then
    outcome = 'over_user_cap'
  elseif tonumber(redis.call('ZSCORE', KEYS[7], ARGV[12]) or '-1') >= (now - window) * 4096 then
    outcome = 'duplicate'
  else
    counted = true
    redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', string.format('%.0f', now - window))
    redis.call('ZADD', KEYS[5], ARGV[7], string.sub(ARGV[5], -12))  -- of a token's MAC: enough
    redis.call('ZADD', KEYS[4], ARGV[7], ARGV[5])
    redis.call('PEXPIRE', KEYS[5], ARGV[8])
    redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', string.format('(%.0f', (now - window) * 4096))
    redis.call('ZADD', KEYS[7], string.format('%.0f', now * 4096 + tonumber(ARGV[13])), ARGV[12])
    redis.call('PEXPIRE', KEYS[7], ARGV[8])
    redis.call('HINCRBY', KEYS[9], 'prompts', 1)
  end
end
redis.call('SET', KEYS[3], ARGV[4] .. ',"counted":' .. tostring(counted)
  .. ',"outcome":"' .. outcome .. '"}')
redis.call('ZADD', KEYS[11], ARGV[7], ARGV[5])
redis.call('SADD', KEYS[6], ARGV[5])
redis.call('SADD', KEYS[8], ARGV[6])
return outcome
