"""Comments, notes and demonstrations: opened once, filtered, and kept only without personal data.

Feedback is acknowledged with its raw text sealed; this file turns `sealed` into `text`. What the
filter cannot clear stays sealed, in quarantine, until it can. Called by ingest.py.
"""

import asyncio
import base64
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from core import keys, metrics
from core.keyring import Keyring, SealBroken
from core.records import Feedback
from core.redis_client import Redis
from feedback import store
from feedback.pii.record import Filtered
from feedback.pii.worker import PiiFailed
from feedback.texts import texts_of, with_texts

_log = logging.getLogger(__name__)


class PiiFilter(Protocol):
    """What feedback/pii/worker.py offers."""

    def filter_record(self, texts: Sequence[str], *, deadline_seconds: float) -> Filtered:
        """The texts of one record without personal data. Blocking. Raises PiiFailed."""


async def filter_feedback_texts(
    redis: Redis, keyring: Keyring, pii: PiiFilter, *, seconds: float, limit: int
) -> int:
    """Filter up to `limit` texts that wait. Returns how many are done, quarantined ones too."""
    waiting = await redis.srandmember(keys.feedback_text(), limit)
    done = 0
    for raw_id in waiting or []:
        done += await filter_feedback_text(redis, keyring, pii, raw_id.decode(), seconds=seconds)
    return done


async def filter_feedback_text(
    redis: Redis, keyring: Keyring, pii: PiiFilter, feedback_id: str, *, seconds: float
) -> bool:
    """Filter the text of one record; False when it has to wait longer."""
    raw = await redis.get(keys.feedback(feedback_id))
    old = Feedback.model_validate_json(raw) if raw else None
    if raw is None or old is None or old.sealed is None:
        await redis.srem(keys.feedback_text(), feedback_id)
        await redis.hdel(keys.quarantine(), feedback_id)
        return True
    try:
        new = await _filtered(old, old.sealed, keyring, pii, seconds=seconds)
    except (PiiFailed, SealBroken, ValueError) as error:
        _log.error("text of feedback waits in quarantine: %s", type(error).__name__)
        await _quarantine(redis, feedback_id, old.sealed)
        return False
    return await store.replace(redis, raw, old, new)


async def _filtered(
    old: Feedback, sealed: str, keyring: Keyring, pii: PiiFilter, *, seconds: float
) -> Feedback:
    payload: dict[str, Any] = orjson.loads(keyring.open(base64.b64decode(sealed)))
    values = list(payload.values())
    clear = await asyncio.to_thread(pii.filter_record, texts_of(values), deadline_seconds=seconds)
    for kind, number in clear.counts.items():
        metrics.PII_ENTITIES.labels(kind).inc(number)
    text = dict(zip(payload, with_texts(values, clear.texts), strict=True))
    return old.model_copy(
        update={
            "messages": text.pop("messages", old.messages),
            "text": text,
            "sealed": None,
            "pii_version": clear.version,
        }
    )


async def _quarantine(redis: Redis, feedback_id: str, sealed: str) -> None:
    async with redis.pipeline(transaction=True) as step:
        step.hset(keys.quarantine(), feedback_id, sealed)
        step.srem(keys.feedback_text(), feedback_id)
        await step.execute()
