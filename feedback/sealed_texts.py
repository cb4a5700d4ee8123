"""Comments, notes and demonstrations: opened once, filtered, and kept only without personal data.

What people say is acknowledged with its raw text sealed; this file turns `sealed` into `text`, and
`sealed_notes` of labeling answers into `notes`. What the filter cannot clear stays sealed, in
quarantine, until it can. Called by ingest.py.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from core import keys, metrics
from core.keyring import Keyring, SealBroken
from core.records import Answer, Feedback, LabelingTask
from core.redis_client import Redis
from feedback import labeling, quarantine, store
from feedback.pii.record import Filtered
from feedback.pii.worker import PiiFailed
from feedback.quarantine import NOTES
from feedback.sealing import open_texts
from feedback.texts import texts_of, with_texts

_log = logging.getLogger(__name__)


class PiiFilter(Protocol):
    """What feedback/pii/worker.py offers."""

    def filter_record(self, texts: Sequence[str], *, deadline_seconds: float) -> Filtered:
        """The texts of one record without personal data. Blocking. Raises PiiFailed."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The collaborators; `seconds` is what the filter may take for one record."""

    redis: Redis
    keyring: Keyring
    pii: PiiFilter
    seconds: float


async def filter_waiting_texts(work: Texts, *, limit: int) -> int:
    """Filter up to `limit` texts that wait. Returns how many are done.

    Raises PiiFailed when the filter does not even start; then all of them go on waiting.
    """
    done = 0
    for name in await work.redis.srandmember(keys.feedback_text(), limit) or []:
        done += await filter_waiting_text(work, name.decode())
    return done


async def filter_waiting_text(work: Texts, name: str) -> bool:
    """Filter what waits under a name; False when it, or a part of it, has to wait longer."""
    if name.startswith(NOTES):
        return await _filter_notes(work, name)
    raw = await work.redis.get(keys.feedback(name))
    old = Feedback.model_validate_json(raw) if raw else None
    if raw is None or old is None or old.sealed is None:
        await _forget(work.redis, name)
        return True
    clear = await _cleared(work, old.sealed)
    if clear is None:
        await _quarantine(work.redis, name, old.sealed)
        return False
    text, version = clear
    new = old.model_copy(
        update={
            "messages": text.pop("messages", old.messages),
            "text": text,
            "sealed": None,
            "pii_version": version,
        }
    )
    return await store.replace(work.redis, raw, old, new)


async def _filter_notes(work: Texts, name: str) -> bool:
    """The notes of all answers to a labeling task, each answer for itself."""
    raw = await work.redis.get(keys.labeling_task(name.removeprefix(NOTES)))
    old = LabelingTask.model_validate_json(raw) if raw else None
    if raw is None or old is None or not labeling.sealed_notes(old):
        await _forget(work.redis, name)
        return True
    answers = [await _with_notes(work, answer) for answer in old.answers]
    new = old.model_copy(update={"answers": tuple(answers)})
    left = labeling.sealed_notes(new)
    if new != old and not await labeling.replace_notes(work.redis, raw, new, done=not left):
        return False  # somebody has answered meanwhile: the name still waits
    if left:
        await _quarantine(work.redis, name, " ".join(left))
    return not left


async def _with_notes(work: Texts, answer: Answer) -> Answer:
    """The answer with clear notes; as it is when it has none or they cannot be cleared."""
    clear = await _cleared(work, answer.sealed_notes) if answer.sealed_notes else None
    if clear is None:
        return answer
    return answer.model_copy(update={"sealed_notes": None, "notes": clear[0]})


async def _cleared(work: Texts, sealed: str) -> tuple[dict[str, Any], str] | None:
    """The texts by name, and the filter's version; None when they have to wait."""
    try:
        raw = open_texts(sealed, work.keyring)
        values = list(raw.values())
        clear = await asyncio.to_thread(
            work.pii.filter_record, texts_of(values), deadline_seconds=work.seconds
        )
        text = dict(zip(raw, with_texts(values, clear.texts), strict=True))
    except (PiiFailed, SealBroken, ValueError) as error:
        if isinstance(error, PiiFailed) and error.reason == "start":
            raise
        _log.error("what somebody said waits in quarantine: %s", type(error).__name__)
        return None
    for kind, number in clear.counts.items():
        metrics.PII_ENTITIES.labels(kind).inc(number)
    return text, clear.version


async def _quarantine(redis: Redis, name: str, sealed: str) -> None:
    async with redis.pipeline(transaction=True) as step:
        quarantine.put(step, name, sealed, now=time.time())
        step.srem(keys.feedback_text(), name)
        await step.execute()


async def _forget(redis: Redis, name: str) -> None:
    """Nothing waits under this name: it was taken back, replaced or filtered before."""
    async with redis.pipeline(transaction=True) as step:
        step.srem(keys.feedback_text(), name)
        step.hdel(keys.quarantine(), name)
        await step.execute()
