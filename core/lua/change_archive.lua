-- Exchange a file of the archive for another (either may be ''), if nothing changed meanwhile.
-- KEYS: archive, counts, job, audit
-- ARGV: generation that the caller has read, name to remove, name to add, its entry, change of
--       prompts, rows to count in the job, entry of the audit log ('' for none)
-- Returns 1, or 0 when the archive is another by now.
if (redis.call('HGET', KEYS[1], '#generation') or '0') ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' and redis.call('HDEL', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], '#generation', 1)
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], ARGV[3], ARGV[4]) end
if ARGV[5] ~= '0' then redis.call('HINCRBY', KEYS[2], 'prompts', ARGV[5]) end
if ARGV[6] ~= '0' then redis.call('HINCRBY', KEYS[3], 'count:completions', ARGV[6]) end
if ARGV[7] ~= '' then redis.call('XADD', KEYS[4], '*', 'entry', ARGV[7]) end
return 1
