-- Remove a completion with all that points to it, and count it once.
-- KEYS: completion, prompts, user-prompts, user-completions, feedback-of, openings, counts, job,
--       logged
-- ARGV: token, digest of its prompt's opening, the score by which that is its own
local token = ARGV[1]
redis.call('ZREM', KEYS[3], string.sub(token, -12), token)
redis.call('SREM', KEYS[4], token)
redis.call('DEL', KEYS[5])
redis.call('ZREM', KEYS[9], token)
local owner = redis.call('ZSCORE', KEYS[6], ARGV[2])
if owner and tonumber(owner) == tonumber(ARGV[3]) then redis.call('ZREM', KEYS[6], ARGV[2]) end
if redis.call('ZREM', KEYS[2], token) == 1 then redis.call('HINCRBY', KEYS[7], 'prompts', -1) end
if redis.call('DEL', KEYS[1]) == 1 then redis.call('HINCRBY', KEYS[8], 'count:completions', 1) end
return 1
