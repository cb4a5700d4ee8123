-- Take completions out of Redis: they are in the archive, or too old to be kept.
-- KEYS: logged, prompts, archive-broken, audit, then for each completion its record and the set of
--       its user
-- ARGV: entry of the audit log ('' for none), then for each completion its token, and why it broke
--       off ('' where it did not, or where nothing is to be remembered of it)
-- No key is named again once it may be empty and so gone: while a Cluster gives the slot away that
-- would break off in the middle, and what is then done again writes its audit entry twice.
local tokens, users, of = {}, {}, {}
for i = 1, (#KEYS - 4) / 2 do
  local user = KEYS[4 + 2 * i]
  if not of[user] then
    of[user] = {}
    users[#users + 1] = user
  end
  tokens[i] = ARGV[2 * i]
  table.insert(of[user], ARGV[2 * i])
end
if ARGV[1] ~= '' then redis.call('XADD', KEYS[4], '*', 'entry', ARGV[1]) end
for i, token in ipairs(tokens) do
  redis.call('DEL', KEYS[3 + 2 * i])
  local broken = ARGV[2 * i + 1]
  if broken ~= '' then redis.call('HSET', KEYS[3], token, broken) end
end
for _, user in ipairs(users) do redis.call('SREM', user, unpack(of[user])) end
if #tokens > 0 then
  redis.call('ZREM', KEYS[1], unpack(tokens))
  redis.call('ZREM', KEYS[2], unpack(tokens))
end
return 1
