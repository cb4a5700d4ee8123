"""Every place in which something could be left, as bytes, and a search for many items at once."""

import asyncio
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import prometheus_client
import pyarrow.parquet as parquet

from core.redis_client import Redis

_GRAM = 8
_KEEP = np.zeros(256, dtype=bool)
_KEEP[[*range(48, 58), *range(65, 91), *range(97, 123)]] = True


async def everything(redis: Redis, folder: Path, *more: str) -> dict[str, bytes]:
    """All keys and values, all files below the folder (what is packed, unpacked), the metrics."""
    disk = await asyncio.to_thread(on_disk, folder)
    return {
        **disk,
        **await in_redis(redis),
        "metrics": prometheus_client.generate_latest(),
        "more": "\n".join(more).encode(),
    }


def on_disk(folder: Path) -> dict[str, bytes]:
    """Files by name; those of Parquet and gzip also as what is in them."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        name = str(path.relative_to(folder))
        found[name] = path.read_bytes()
        if path.suffix == ".parquet":
            rows = parquet.read_table(path).to_pylist()
            found[name + " rows"] = json.dumps(rows, ensure_ascii=False, default=str).encode()
        if path.suffix == ".gz":
            found[name + " open"] = gzip.decompress(found[name])
    return found


async def in_redis(redis: Redis) -> dict[str, bytes]:
    """Keys with their values, whatever their type."""
    found: dict[str, bytes] = {}
    async for key in redis.scan_iter():
        kind = (await redis.type(key)).decode()
        read = {
            "string": lambda k: redis.get(k),
            "hash": lambda k: redis.hgetall(k),
            "set": lambda k: redis.smembers(k),
            "zset": lambda k: redis.zrange(k, 0, -1),
            "list": lambda k: redis.lrange(k, 0, -1),
            "stream": lambda k: redis.xrange(k),
        }[kind]
        value = await read(key)
        found[f"redis {key.decode()}"] = value if isinstance(value, bytes) else repr(value).encode()
    return found


def left(canaries: Iterable[str], stores: Mapping[str, bytes]) -> dict[str, set[str]]:
    """Which canaries are in which store, whatever separators stand between their characters.

    A canary is known by its letters and digits, of which it needs at least nine.
    """
    by_gram: dict[int, list[tuple[bytes, str]]] = {}
    for canary in canaries:
        core = _bare(canary.encode())
        assert len(core) > _GRAM, canary
        by_gram.setdefault(int(np.frombuffer(core[:_GRAM], "<u8")[0]), []).append((core, canary))
    grams = np.array(sorted(by_gram), dtype="<u8")
    found: dict[str, set[str]] = {}
    for name, content in stores.items():
        bare = _bare(content)
        for shift in range(_GRAM):
            count = (len(bare) - shift) // _GRAM
            if count < 1:
                continue
            windows = np.frombuffer(bare, "<u8", count=count, offset=shift)
            for hit in np.flatnonzero(np.isin(windows, grams)):
                start = shift + int(hit) * _GRAM
                for core, canary in by_gram[int(windows[hit])]:
                    if bare.startswith(core, start):
                        found.setdefault(name, set()).add(canary)
    return found


def _bare(content: bytes) -> bytes:
    """Letters and digits alone."""
    raw = np.frombuffer(content, dtype=np.uint8)
    return raw[_KEEP[raw]].tobytes()
