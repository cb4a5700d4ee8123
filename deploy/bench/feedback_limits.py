"""What bounds the feedback route on this machine: Redis itself, a bare pass-through, the disk.

No comparable service can be installed beside ours to measure, so these stand in its place.
"""

import asyncio
import time
from pathlib import Path

from core import keys
from core.errors import InstructLoopError
from core.redis_client import connect, script
from deploy.bench.feedback_loads import Figures
from deploy.bench.feedback_service import FeedbackService
from deploy.bench.figures import many_at_once
from deploy.bench.gateway import disk_sync_ms
from deploy.bench.targets import Target
from feedback import intake, store
from feedback.schemas import FeedbackRequest

_BATCH = 64
_DAY_SECONDS = 86_400


async def limits(
    service: FeedbackService, bare: Target, folder: Path, *, seconds: float, run: str
) -> Figures:
    """One round of each."""
    request_rates = {
        name: (await many_at_once(target, service.secret, seconds))["requests_per_second"]
        for name, target in (("pass_through", bare), ("completions", service.gateway))
    }
    synced = await asyncio.to_thread(disk_sync_ms, folder)
    return {
        "redis_calls_per_second": await redis_calls_per_second(service, seconds=seconds, run=run),
        **{f"{name}_per_second": rate for name, rate in request_rates.items()},
        "disk_sync_p50_ms": synced["p50"],
        "disk_sync_p99_ms": synced["p99"],
    }


async def redis_calls_per_second(service: FeedbackService, *, seconds: float, run: str) -> float:
    """How many pieces Redis records in a second over one connection, 64 calls at a time.

    The same script with the same arguments and the same sync of every write, without HTTP; the time
    in which the calls are made up is not counted. Raises InstructLoopError.
    """
    number, spent = 0, 0.0
    async with connect(service.redis_url) as redis:
        while spent < seconds:
            pipeline = redis.pipeline(transaction=False)
            for _ in range(_BATCH):
                number += 1
                await script(pipeline, "record_feedback", *_call(service, f"{run} {number}"))
            began = time.perf_counter()
            answers = await pipeline.execute()
            spent += time.perf_counter() - began
            if any(status != b"recorded" for status, _ in answers):
                raise InstructLoopError(f"Redis did not record: {answers[0]!r}")
    return number / spent


def _call(service: FeedbackService, name: str) -> tuple[list[str], list[str | bytes | int | float]]:
    keyring, key = service.keyring, service.key
    who = intake.Speaker(
        key.tenant, key.id, keyring.hashed(key.tenant, "rater", name), heldout=False, trains=True
    )
    body = FeedbackRequest(completion_id=service.mint(), thumb="up")
    said = intake.rating(body, who, keyring=keyring, sealed=None, now=time.time())
    once = store.Once(keys.idempotency(said.id), said.id, _DAY_SECONDS)
    return store.script_call(said, reply="{}", once=once)
