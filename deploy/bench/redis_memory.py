"""What each kind of record costs in Redis: megabytes for a million, by `used_memory`.

Records are as they stay, put in by the scripts that the service uses, each about answers of its
own; a word about an answer that others have spoken of costs less. A Redis and a folder of its own.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from core import keys
from core.ids import new_token
from core.keyring import Keyring
from core.records import Feedback, Output
from core.redis_client import Redis, connect, local_redis_url, script
from deploy.bench.log_memory import put, records, until_there, used_bytes
from deploy.redis_server import start_redis
from feedback import store

_BATCH = 500
_DAY_SECONDS = 86_400
_COMMENT = "The answer is right, and it says too much about what nobody has asked for here. "
Put = Callable[[Redis, Keyring, int], Any]


async def redis_memory(*, count: int) -> dict[str, float]:
    """Megabytes (10^6) of Redis for a million of each kind, measured with `count` of them."""
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        state_dir = Path(folder)
        keyring = Keyring(state_dir / "secrets")
        process = start_redis(state_dir, "bench", log=state_dir / "redis.log")
        try:
            async with connect(local_redis_url(state_dir, "bench")) as redis:
                await until_there(redis)
                return {
                    kind: await _cost(redis, keyring, write, count)
                    for kind, write in _kinds().items()
                }
        finally:
            process.kill()
            process.wait()


def _kinds() -> dict[str, Put]:
    flags = {"is_harmful": False, "fails_task": False}
    order = ((2,), (0, 3), (1,))
    return {
        "completion, waiting for ingest": _wait_for_ingest,
        "completion, kept in Redis": _keep,
        "signal": partial(_say, kind="signal", signal="copy"),
        "thumb": partial(_say, kind="rating", thumb="up"),
        "thumb, with an Idempotency-Key, for a day": partial(
            _say, kind="rating", thumb="up", once=True
        ),
        "rating with two flags and a comment": partial(
            _say, kind="rating", rating=5, flags=flags, text={"comment": _COMMENT}
        ),
        "ranking of 4 answers": partial(_say, kind="ranking", answers=4, ranking=order),
        "demonstration of 60 words": partial(
            _say, kind="demonstration", text={"text": _COMMENT * 4}
        ),
    }


async def _cost(redis: Redis, keyring: Keyring, write: Put, count: int) -> float:
    """Of a million, in megabytes. What all kinds share is there before."""
    await redis.flushall()
    await write(redis, keyring, min(count, _BATCH))
    before = await used_bytes(redis)
    await write(redis, keyring, count)
    return (await used_bytes(redis) - before) / count


async def _keep(redis: Redis, keyring: Keyring, count: int) -> None:
    await put(redis, keyring, records(keyring, count), count)


async def _wait_for_ingest(redis: Redis, keyring: Keyring, count: int) -> None:
    made = records(keyring, count)
    for start in range(0, count, _BATCH):
        async with redis.pipeline(transaction=False) as step:
            for _, record in zip(range(min(_BATCH, count - start)), made, strict=False):
                text = orjson.dumps(record.model_dump(mode="json", exclude_defaults=True))
                step.xadd(keys.inbox(), {"sealed": keyring.seal(text)})
            await step.execute()


async def _say(
    redis: Redis,
    keyring: Keyring,
    count: int,
    *,
    answers: int = 1,
    once: bool = False,
    **said: Any,
) -> None:
    made = _feedback(keyring, count, answers=answers, **said)
    for start in range(0, count, _BATCH):
        async with redis.pipeline(transaction=False) as step:
            for _, one in zip(range(min(_BATCH, count - start)), made, strict=False):
                key = store.Once(keys.idempotency(one.id), one.id, _DAY_SECONDS) if once else None
                call = store.script_call(one, reply=f'{{"id": "{one.id}"}}', once=key)
                await script(step, "record_feedback", *call)
            await step.execute()


def _feedback(keyring: Keyring, count: int, *, answers: int, **said: Any) -> Iterator[Feedback]:
    """Each by a rater of their own."""
    mac, now = keyring.key("mac"), time.time()
    about: dict[str, Any] = {"tenant": "acme", "key_id": "0a0b0c0d", "choices": 1, "stored": True}
    for number in range(count):
        tokens = [new_token(mac, tag=f"{number:016x}", **about) for _ in range(answers)]
        name = f"{said['kind']} {now} {number}"
        yield Feedback(
            id=f"fb-{keyring.hashed('acme', 'feedback', name)}",
            tenant="acme",
            key_id="0a0b0c0d",
            rater=keyring.hashed("acme", "rater", name),
            created_at=now,
            updated_at=now,
            outputs=tuple(Output(token=token, choice=0) for token in tokens),
            pii_version="presidio-2" if "text" in said else "",
            **said,
        )


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    chosen: Any = parser.parse_args()
    print(json.dumps(asyncio.run(redis_memory(count=chosen.count)), indent=1))


if __name__ == "__main__":
    main()
