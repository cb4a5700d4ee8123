-- Take completions out of Redis: they are in the archive, or too old to be kept.
-- KEYS: logged, prompts, archive-broken, audit, then for each completion its record and the set of
--       its user
-- ARGV: entry of the audit log ('' for none), then for each completion its token, and why it broke
--       off ('' where it did not, or where nothing is to be remembered of it)
if ARGV[1] ~= '' then redis.call('XADD', KEYS[4], '*', 'entry', ARGV[1]) end
for i = 1, (#KEYS - 4) / 2 do
  local token, broken = ARGV[2 * i], ARGV[2 * i + 1]
  redis.call('DEL', KEYS[3 + 2 * i])
  redis.call('SREM', KEYS[4 + 2 * i], token)
  redis.call('ZREM', KEYS[1], token)
  redis.call('ZREM', KEYS[2], token)
  if broken ~= '' then redis.call('HSET', KEYS[3], token, broken) end
end
return 1
