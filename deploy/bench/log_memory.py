"""What a logged completion costs: bytes in Redis before and after it moves to the archive, on disk.

Records are as ingest leaves them, of questions and answers of some 56 tokens each, put in by the
script that ingest uses; nothing is sealed or filtered here. A Redis and a folder of its own.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import keys
from core.errors import Unavailable
from core.ids import new_token
from core.keyring import Keyring
from core.records import Choice, Completion
from core.redis_client import Redis, connect, local_redis_url, redis_errors, script
from core.setting_groups import LogSettings
from core.settings import Settings
from deploy.redis_server import start_redis
from feedback.archive_manifest import read_manifest
from feedback.compaction import compact
from feedback.ingest import GROUP
from feedback.openings import opening_member, openings_key, owner_mark

WORDS_PER_TEXT = 42
"""English words that make some 56 tokens."""
_VOCABULARY = 2_000
_PROMPTS_PER_USER = 50
_BATCH = 500
_START_SECONDS = 20
_BEFORE = 2_000
"""Completions put in to see what one costs before any has moved."""


async def log_memory(*, completions: int, step: int, keep: int = 2_000) -> dict[str, float]:
    """Bytes per logged completion in Redis and on disk, and the slope in Redis.

    `before` is without an archive; `after` with all but the newest `keep` in it, over all; `slope`
    is bytes of Redis for each further completion from the first tenth on, a straight line through
    one point every `step` completions.
    """
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        state_dir = Path(folder)
        settings = Settings(state_dir=state_dir, log=LogSettings(keep_in_redis=keep))
        process = start_redis(state_dir, "bench", log=state_dir / "redis.log")
        try:
            async with connect(local_redis_url(state_dir, "bench")) as redis:
                await until_there(redis)
                return await _measure(redis, settings, completions=completions, step=step)
        finally:
            process.kill()
            process.wait()


async def until_there(redis: Redis) -> None:
    """Wait until a Redis that was just started answers. Raises Unavailable."""
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            with redis_errors():
                await redis.ping()
            return
        except Unavailable:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)


async def _measure(
    redis: Redis, settings: Settings, *, completions: int, step: int
) -> dict[str, float]:
    keyring = Keyring(settings.secrets)
    made = records(keyring, completions)
    empty = await used_bytes(redis)
    await put(redis, keyring, made, _BEFORE)
    before = (await used_bytes(redis) - empty) / _BEFORE
    points: list[tuple[int, int]] = []
    done = _BEFORE
    for number in range(step, completions + 1, step):
        await put(redis, keyring, made, max(number - done, 0))
        done = max(number, done)
        while await compact(redis, settings, now=time.time()):
            pass
        points.append((done, await used_bytes(redis)))
    files = (await read_manifest(redis)).files.values()
    rows = sum(entry.rows for entry in files)
    return {
        "completions": points[-1][0],
        "bytes_in_redis_before": before,
        "bytes_in_redis_after": (points[-1][1] - empty) / points[-1][0],
        "slope_bytes_per_completion": slope([p for p in points if p[0] >= completions // 10]),
        "bytes_on_disk": sum(entry.bytes for entry in files) / rows,
        "archived": rows,
        "redis_mb": points[-1][1] / 1e6,
    }


def slope(points: list[tuple[int, int]]) -> float:
    """Of the straight line nearest to the points."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


async def used_bytes(redis: Redis) -> int:
    """What Redis has for data and keys; buffers of connections and of its file come and go."""
    info = await redis.info("memory")
    return int(info["used_memory"] - info["mem_clients_normal"] - info["mem_aof_buffer"])


def records(keyring: Keyring, count: int) -> Iterator[Completion]:
    """Completions as ingest makes them, all different."""
    draw = random.Random(5)
    words = [
        "".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(_VOCABULARY)
    ]
    mac = keyring.key("mac")
    now = time.time()
    for number in range(count):
        token = new_token(
            mac, tenant="acme", key_id="0a0b0c0d", choices=1, stored=True, tag=f"{number:016x}"
        )
        prompt, answer = (" ".join(draw.choices(words, k=WORDS_PER_TEXT)) for _ in range(2))
        yield Completion(
            token=token,
            id=f"chatcmpl-{token}",
            tenant="acme",
            key_id="0a0b0c0d",
            user=keyring.hashed("acme", "user", str(number // _PROMPTS_PER_USER)),
            prompt_tag=f"{number:016x}",
            messages=[{"role": "user", "content": prompt}],
            choices=(Choice(text=answer, finish_reason="stop", tokens=56),),
            policy_versions=("v0001",),
            created_at=now + number / 1000,
            sampling={"temperature": 1.0, "max_tokens": 64},
            split="train",
            counted=True,
        )


async def put(redis: Redis, keyring: Keyring, made: Iterator[Completion], count: int) -> None:
    """Record so many more by the script of ingest, as if each came from quarantine."""
    for start in range(0, count, _BATCH):
        number = min(_BATCH, count - start)
        async with redis.pipeline(transaction=False) as step:
            for _, record in zip(range(number), made, strict=False):
                await _record(step, keyring, record)
            await step.execute()


async def _record(step: Redis, keyring: Keyring, record: Completion) -> None:
    digest = keyring.hashed("acme", "opening", record.token)
    step.hset(keys.quarantine(), record.token, "x")
    text = record.model_dump_json(exclude={"counted", "outcome"}, exclude_defaults=True)[:-1]
    await script(
        step,
        "record_completion",
        [
            keys.inbox(),
            keys.quarantine(),
            keys.completion(record.token),
            keys.prompts(),
            keys.user_prompts(record.user),
            keys.user_completions(record.user),
            openings_key(digest),
            keys.users(),
            keys.counts(),
            keys.tombstones(),
            keys.logged(),
        ],
        [
            *("", GROUP, record.token, text, record.token, record.user),
            *(int(record.created_at * 1000), 30 * 86_400_000, 200, "1", "logged"),
            *(opening_member(digest), owner_mark(record.token)),
        ],
    )


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", type=int, default=100_000)
    parser.add_argument("--step", type=int, default=5_000)
    chosen: Any = parser.parse_args()
    figures = asyncio.run(log_memory(completions=chosen.completions, step=chosen.step))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
