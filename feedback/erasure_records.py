"""What an erased person asked and was answered: sealed entries and completions go.

The tokens of all that goes are kept in Redis until the end, because later steps find by them what
belongs to the person: a step that is done again finds them still. Only what is as old as the
tombstone goes. Called by erasing.py.
"""

from collections.abc import Iterator, Sequence

import orjson

from core import keys
from core.keyring import Keyring, SealBroken
from core.records import Completion
from core.redis_client import Redis, script
from core.setting_groups import LogSettings
from feedback import store
from feedback.archive_files import Rest
from feedback.archive_manifest import Told
from feedback.compaction import drop_doubles, remove_rows
from feedback.entries import user_hash
from feedback.erasure import Job
from feedback.ingest import GROUP
from feedback.openings import all_buckets, opening_member, opening_score, openings_key
from feedback.quarantine import PROMPT
from feedback.split import prompt_opening

_BATCH = 500
_NO_OPENING = "0" * 32
_PAGE = 200


async def erase_sealed(redis: Redis, keyring: Keyring, job: Job) -> None:
    """Entries that wait in the inbox and in quarantine. What cannot be opened stays sealed."""
    after = "-"
    while entries := await redis.xrange(keys.inbox(), min=after, count=_PAGE):
        for entry_id, fields in entries:
            token = _token_of(fields.get(b"sealed", b""), keyring, job)
            if token:
                async with redis.pipeline(transaction=True) as step:
                    step.xack(keys.inbox(), GROUP, entry_id)
                    step.xdel(keys.inbox(), entry_id)
                    _note(step, job, token)
                    await step.execute()
        after = f"({entries[-1][0].decode()}"
    async for name, sealed in redis.hscan_iter(keys.quarantine(), count=_PAGE):
        token = _token_of(sealed, keyring, job) if name.startswith(PROMPT.encode()) else None
        if token:
            async with redis.pipeline(transaction=True) as step:
                step.hdel(keys.quarantine(), name)
                step.zrem(keys.quarantine_since(), name)
                step.zrem(keys.quarantine_retry(), name)
                _note(step, job, token)
                await step.execute()


async def collect_tokens(redis: Redis, job: Job) -> None:
    """The tokens of this user's completions that are as old as the tombstone."""
    known = await store.tokens_of_users(redis, [job.user])
    for batch in _batches(sorted(known)):
        found = await store.completions(redis, batch)
        gone = [t for t in batch if t not in found or found[t].created_at * 1000 <= job.at]
        if gone:
            await redis.sadd(keys.erasure_tokens(job.id), *gone)


async def erase_completions(redis: Redis, keyring: Keyring, log: LogSettings, job: Job) -> None:
    """The records in Redis, the prompts among them, and what points to either."""
    tokens = [raw.decode() for raw in await redis.smembers(keys.erasure_tokens(job.id))]
    await drop_doubles(redis, tokens)
    stray: set[int] = set()
    for batch in _batches(tokens):
        found = await store.completions(redis, batch)
        stray |= await _without_known_opening(redis, keyring, log, list(found.values()))
    if stray:
        await _forget_openings(redis, stray)
    for batch in _batches(tokens):
        found = await store.completions(redis, batch)
        async with redis.pipeline(transaction=False) as step:
            for token in batch:
                record = found.get(token)
                opening = _opening(keyring, log, record) if record else _NO_OPENING
                score = _score(record) if record else 0
                await _erase_completion(step, token, opening, score, job)
            step.hdel(keys.disagreement(), *batch)
            await step.execute()


async def erase_archived(redis: Redis, job: Job) -> bool:
    """The rows of the archive; the files are written anew without them. False: do it again."""
    tokens = {raw.decode() for raw in await redis.smembers(keys.erasure_tokens(job.id))}

    def tell(_: str, rest: Rest) -> Told:
        return Told(prompts=-rest.counted, job_id=job.id, removed=len(rest.removed))

    done = await remove_rows(redis, tokens, tell=tell)
    if done and not await store.tokens_of_users(redis, [job.user]):
        await redis.srem(keys.users(), job.user)
    return done


async def _erase_completion(step: Redis, token: str, opening: str, score: int, job: Job) -> None:
    await script(
        step,
        "erase_completion",
        [
            keys.completion(token),
            keys.prompts(),
            keys.user_prompts(job.user),
            keys.user_completions(job.user),
            keys.feedback_of(token),
            openings_key(opening),
            keys.counts(),
            keys.erasure(job.id),
            keys.logged(),
        ],
        [token, opening_member(opening), score],
    )


async def _without_known_opening(
    redis: Redis, keyring: Keyring, log: LogSettings, records: Sequence[Completion]
) -> set[int]:
    """Scores of prompts whose opening was hashed before the filter changed it."""
    counted = [record for record in records if record.counted]
    async with redis.pipeline(transaction=False) as step:
        for record in counted:
            opening = _opening(keyring, log, record)
            step.zscore(openings_key(opening), opening_member(opening))
        owners = await step.execute()
    scores = [_score(record) for record in counted]
    return {s for s, owner in zip(scores, owners, strict=True) if owner is None or s != int(owner)}


async def _forget_openings(redis: Redis, scores: set[int]) -> None:
    """Look through all openings for those of these prompts."""
    for names in _batches(all_buckets()):
        async with redis.pipeline(transaction=False) as step:
            for name in names:
                step.zrange(name, 0, -1, withscores=True)
            found = await step.execute()
        async with redis.pipeline(transaction=False) as step:
            for name, members in zip(names, found, strict=True):
                gone = [member for member, score in members if int(score) in scores]
                if gone:
                    step.zrem(name, *gone)
            await step.execute()


def _score(record: Completion) -> int:
    return opening_score(record.token, int(record.created_at * 1000))


def _opening(keyring: Keyring, log: LogSettings, record: Completion) -> str:
    opening = prompt_opening(record.messages, log.duplicate_prefix_chars)
    return keyring.hashed(record.tenant, "opening", opening)


def _token_of(sealed: bytes, keyring: Keyring, job: Job) -> str | None:
    """The token of a sealed entry if it is to go."""
    try:
        entry = orjson.loads(keyring.open(sealed))
    except (SealBroken, ValueError):
        return None
    if entry["tenant"] != job.tenant or entry["created_at"] * 1000 > job.at:
        return None
    user = user_hash(keyring, tenant=entry["tenant"], key_id=entry["key_id"], user=entry["user"])
    return str(entry["token"]) if user == job.user else None


def _note(step: Redis, job: Job, token: str) -> None:
    """Keep the token for the steps that come, and count."""
    step.sadd(keys.erasure_tokens(job.id), token)
    step.hincrby(keys.erasure(job.id), "count:sealed", 1)


def _batches(tokens: Sequence[str]) -> Iterator[Sequence[str]]:
    return (tokens[start : start + _BATCH] for start in range(0, len(tokens), _BATCH))
