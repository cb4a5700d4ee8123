-- Remove a completion with all that points to it, and count it once.
-- KEYS: completion, prompts, user-prompts, user-completions, feedback-of, prompt-prefix, counts, job
-- ARGV: token
local token = ARGV[1]
redis.call('ZREM', KEYS[3], token)
redis.call('SREM', KEYS[4], token)
redis.call('DEL', KEYS[5])
if redis.call('GET', KEYS[6]) == token then redis.call('DEL', KEYS[6]) end
if redis.call('ZREM', KEYS[2], token) == 1 then redis.call('HINCRBY', KEYS[7], 'prompts', -1) end
if redis.call('DEL', KEYS[1]) == 1 then redis.call('HINCRBY', KEYS[8], 'count:completions', 1) end
return 1
