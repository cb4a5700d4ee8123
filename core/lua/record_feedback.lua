-- Record what a rater says, replacing what they said before about the same thing.
-- KEYS: feedback, index, texts, quarantine, counts, idempotency, archive-broken, then for each
--       completion it is about: feedback-of ..., then the same completions again: completion ...
-- ARGV: id, head, rest, milliseconds, name of the count, '1' if text waits for the filter,
--       request digest ('' without an idempotency key), its seconds to live, reply, then the tokens
--       of the completions
-- The record is head .. rest. Head holds what outlives a replacement: when it was first said, and
-- why it is held back.
-- Returns {recorded, version} | {replayed, reply} | {conflict, ''} | {broken, reason}
if ARGV[7] ~= '' then
  local seen = redis.call('GET', KEYS[6])
  if seen then
    local digest, reply = string.match(seen, '^(%S+) (.*)$')
    if digest == ARGV[7] then return {'replayed', reply} end
    return {'conflict', ''}
  end
end

local about = (#KEYS - 7) / 2
local version = ''
for i = 1, about do
  local raw = redis.call('GET', KEYS[7 + about + i])
  if not raw then  -- not recorded yet, or in the archive
    local broken = redis.call('HGET', KEYS[7], ARGV[9 + i])
    if broken then return {'broken', broken} end
  end
  -- to decode a very long record would hold everybody up: only when it may say 'error'
  if raw and (#raw < 65536 or string.find(raw, '"error":"', 1, true)) then
    local completion = cjson.decode(raw)
    if completion.error and completion.error ~= cjson.null then
      return {'broken', completion.error}
    end
    if version == '' then version = (completion.policy_versions or {})[1] or '' end
  end
end

local function comparisons(record)
  if record.withdrawn then return 0 end
  if record.kind == 'demonstration' then return #(record.outputs or {}) > 0 and 1 or 0 end
  local total, tied = 0, 0
  for _, tie in ipairs(record.ranking or {}) do
    total = total + #tie
    tied = tied + #tie * #tie
  end
  return (total * total - tied) / 2
end

local head, said, before = ARGV[2], 1, 0
local old = redis.call('GET', KEYS[1])
if old then
  local record = cjson.decode(old)
  if not record.withdrawn then said = 0 end
  before = comparisons(record)
  head = string.match(old, '^{"created_at":[^,]+,"held":null,')
    or string.match(old, '^{"created_at":[^,]+,"held":"[^"]*",')
end
local new = head .. ARGV[3]
redis.call('SET', KEYS[1], new)
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call(ARGV[6] == '1' and 'SADD' or 'SREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('HINCRBY', KEYS[5], ARGV[5], said)
local compares = ARGV[5] ~= 'ratings' and ARGV[5] ~= 'signals'
local after = compares and comparisons(cjson.decode(new)) or 0
redis.call('HINCRBY', KEYS[5], 'comparisons', after - before)
for i = 1, about do redis.call('SADD', KEYS[7 + i], ARGV[1]) end
if ARGV[7] ~= '' then
  redis.call('SET', KEYS[6], ARGV[7] .. ' ' .. ARGV[9], 'EX', ARGV[8])
end
return {'recorded', version}
