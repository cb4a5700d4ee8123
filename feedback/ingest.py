"""From the sealed inbox to records without personal data: the only reader of raw prompts.

A batch goes opt-out, cap, duplicates, filter, record; what a user said before their erasure is
dropped. An entry leaves the inbox in the same atomic step that records it
(core/lua/record_completion.lua), so ingest may be killed anywhere: what was read is read again, and
recorded once. What the filter cannot clear waits, sealed, in quarantine.
Every completion is recorded, so that feedback can be joined; only those that count are prompts to
train on. Knows no HTTP and no model; who calls it makes it nice and alone.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from core import keys, metrics
from core.keyring import Keyring, SealBroken
from core.records import Completion
from core.redis_client import Redis, redis_errors, script
from core.setting_groups import LogSettings
from core.settings import Settings
from feedback import quarantine
from feedback.entries import Entry, bare_record, entry_texts, user_hash, with_clear_texts
from feedback.erasure import erased_until
from feedback.erasure_said import erase_feedback_about
from feedback.openings import opening_member, openings_key, owner_mark
from feedback.pii.worker import PiiFailed
from feedback.quarantine import PROMPT
from feedback.sealed_texts import PiiFilter, Texts, filter_waiting_text, filter_waiting_texts
from feedback.split import prompt_opening, split_by, split_of

GROUP = "ingest"
CONSUMER = "ingest"
_DAY_SECONDS = 86_400
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A sealed entry, from the inbox (`entry_id`) or from quarantine (`quarantined`)."""

    sealed: bytes
    entry_id: str = ""
    quarantined: str = ""


@dataclass(frozen=True, slots=True)
class Ingest:
    """The collaborators of a batch."""

    redis: Redis
    keyring: Keyring
    log: LogSettings
    pii: PiiFilter

    @property
    def texts(self) -> Texts:
        """Those for texts of feedback."""
        return Texts(self.redis, self.keyring, self.pii, self.log.pii_seconds)


async def ingest_batch(
    redis: Redis,
    keyring: Keyring,
    settings: Settings,
    pii: PiiFilter,
    *,
    limit: int,
    retry_after_seconds: float = 30.0,
) -> int:
    """Take up to `limit` entries out of the inbox, and filter as many texts of feedback.

    Entries that failed, or whose ingest was killed, are tried again after `retry_after_seconds`,
    each alone, so that one that kills us takes no other along. Returns how many things were
    finished; 0 means that there is nothing to do now. Raises Unavailable, and PiiFailed when the
    filter does not even start.
    """
    work = Ingest(redis, keyring, settings.log, pii)
    with redis_errors():
        await script(redis, "ensure_group", [keys.inbox()], [GROUP])
        done = 0
        async for failed in _claim(work, retry_after_seconds):
            done += await _finish_all(work, [failed])
            if done >= limit:
                break
        done += await _finish_all(work, await _read_new(redis, limit))
        done += await filter_waiting_texts(work.texts, limit=limit)
        metrics.LOG_BACKLOG.set(await redis.xlen(keys.inbox()))
    return done


async def retry_quarantine(
    redis: Redis,
    keyring: Keyring,
    settings: Settings,
    pii: PiiFilter,
    *,
    limit: int,
    now: float | None = None,
) -> int:
    """Try up to `limit` quarantined texts whose time has come again. Returns how many passed.

    Raises Unavailable, and PiiFailed when the filter does not even start.
    """
    work = Ingest(redis, keyring, settings.log, pii)
    done = 0
    with redis_errors():
        moment = time.time() if now is None else now
        for name, sealed in await quarantine.take_due(redis, now=moment, limit=limit):
            if name.startswith(PROMPT):
                done += await _finish_all(work, [Delivery(sealed, quarantined=name)])
            else:
                done += await filter_waiting_text(work.texts, name)
        await quarantine.look(redis, now=moment)
    return done


async def _read_new(redis: Redis, limit: int) -> list[Delivery]:
    reply = await redis.xreadgroup(GROUP, CONSUMER, {keys.inbox(): ">"}, count=limit)
    return [_delivery(entry) for _, entries in reply for entry in entries]


def _delivery(entry: tuple[bytes, Mapping[bytes, bytes]]) -> Delivery:
    entry_id, fields = entry
    return Delivery(fields.get(b"sealed", b""), entry_id=entry_id.decode())


async def _claim(work: Ingest, idle_seconds: float) -> AsyncIterator[Delivery]:
    """Entries that were read before and not finished; those tried too often go to quarantine."""
    cursor: bytes | str = "0-0"
    while cursor != b"0-0":
        cursor, entries, *_ = await work.redis.xautoclaim(
            keys.inbox(), GROUP, CONSUMER, int(idle_seconds * 1000), start_id=cursor, count=1
        )
        for delivery in map(_delivery, entries):
            if await _attempts(work.redis, delivery) <= work.log.max_deliveries:
                yield delivery
            else:
                await _quarantine(work.redis, delivery)


async def _attempts(redis: Redis, delivery: Delivery) -> int:
    pending = await redis.xpending_range(
        keys.inbox(), GROUP, min=delivery.entry_id, max=delivery.entry_id, count=1
    )
    return int(pending[0]["times_delivered"]) if pending else 0


async def _quarantine(redis: Redis, delivery: Delivery) -> None:
    """Keep it sealed until the filter can clear it; nothing of it is readable there."""
    async with redis.pipeline(transaction=True) as step:
        quarantine.put(step, PROMPT + delivery.entry_id, delivery.sealed, now=time.time())
        step.xack(keys.inbox(), GROUP, delivery.entry_id)
        step.xdel(keys.inbox(), delivery.entry_id)
        await step.execute()
    metrics.PROMPTS.labels("failed").inc()
    _log.error("a completion waits in quarantine: the filter could not clear it")


async def _finish_all(work: Ingest, deliveries: Sequence[Delivery]) -> int:
    """Record what can be recorded, in one go. Returns how many entries are finished."""
    if not deliveries:
        return 0
    num_users = await work.redis.scard(keys.users())
    async with work.redis.pipeline(transaction=False) as step:
        for delivery in deliveries:
            try:
                await _add_record(work, step, delivery, num_users=num_users)
            except (SealBroken, ValueError) as error:
                _log.warning("a completion was not recorded: %s", type(error).__name__)
            except PiiFailed as error:
                if error.reason == "start":
                    raise
                _log.warning("a completion was not recorded: PII filter, %s", error.reason)
        outcomes = await step.execute()
    for outcome in {*outcomes} - {b"known", b"gone"}:
        metrics.PROMPTS.labels(outcome.decode()).inc(outcomes.count(outcome))
    return len(outcomes)


async def _add_record(work: Ingest, step: Redis, delivery: Delivery, *, num_users: int) -> None:
    """Open, filter and append the call that records it."""
    entry = Entry.model_validate(orjson.loads(work.keyring.open(delivery.sealed)))
    user = user_hash(work.keyring, tenant=entry.tenant, key_id=entry.key_id, user=entry.user)
    opted_out = bool(await work.redis.sismember(keys.opted_out(), user))
    opening = prompt_opening(entry.messages, work.log.duplicate_prefix_chars)
    digest = work.keyring.hashed(entry.tenant, "opening", opening)
    split = split_of(user if split_by(num_users, work.log) == "user" else digest, work.log)
    completion = bare_record(entry, user=user, split=split)
    if entry.created_at * 1000 <= await erased_until(work.redis, user):
        await erase_feedback_about(work.redis, entry.token)  # first: the entry names it
    elif not opted_out:
        completion = await _cleared(work, entry, completion)
    await script(
        step,
        "record_completion",
        [
            keys.inbox(),
            keys.quarantine(),
            keys.completion(entry.token),
            keys.prompts(),
            keys.user_prompts(user),
            keys.user_completions(user),
            openings_key(digest),
            keys.users(),
            keys.counts(),
            keys.tombstones(),
            keys.logged(),
        ],
        [
            delivery.entry_id,
            GROUP,
            delivery.quarantined,
            completion.model_dump_json(exclude={"counted", "outcome"}, exclude_defaults=True)[:-1],
            entry.token,
            user,
            int(entry.created_at * 1000),
            work.log.window_days * _DAY_SECONDS * 1000,
            work.log.prompts_per_user,
            "1" if entry.trains and not opted_out else "0",
            _outcome(completion, opted_out=opted_out),
            opening_member(digest),
            owner_mark(entry.token),
        ],
    )


async def _cleared(work: Ingest, entry: Entry, bare: Completion) -> Completion:
    """The record with its texts, filtered together so that placeholders agree."""
    clear = await asyncio.to_thread(
        work.pii.filter_record, entry_texts(entry), deadline_seconds=work.log.pii_seconds
    )
    for kind, number in clear.counts.items():
        metrics.PII_ENTITIES.labels(kind).inc(number)
    return with_clear_texts(bare, entry, clear)


def _outcome(completion: Completion, *, opted_out: bool) -> str:
    """What becomes of a prompt unless the cap or a duplicate decide otherwise."""
    if opted_out:
        return "opted_out"
    return "pii_filtered" if completion.pii else "logged"
