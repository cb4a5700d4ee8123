"""What a release leaves, as lines of JSON: each key of its Redis, each small file, its answers.

A value that is no UTF-8 is in base64. Times to live are kept. Only texts made up for it are in it.
"""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.redis_client import Redis

HERE = Path(__file__).parent
_LARGEST_FILE = 8192


@dataclass
class Golden:
    """A fixture in memory."""

    about: dict[str, Any]
    """`schema`, `release` and `now`, in seconds: when it was written."""
    answers: dict[str, Any]
    """What the release itself read out of all this, through its ordinary functions."""
    files: list[dict[str, Any]] = field(default_factory=list)
    keys: list[dict[str, Any]] = field(default_factory=list)


def fixture(schema: int) -> Path:
    return HERE / f"schema-{schema}.jsonl"


def read(path: Path) -> Golden:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    golden = Golden(about=lines[0], answers=lines[1])
    for line in lines[2:]:
        (golden.keys if "key" in line else golden.files).append(line)
    return golden


def write(path: Path, golden: Golden) -> None:
    lines = [golden.about, golden.answers, *golden.files, *golden.keys]
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


# --- out of an installation ------------------------------------------------------------------


async def keys_of(redis: Redis) -> list[dict[str, Any]]:
    """Every key with its value and its time to live."""
    names = sorted([name async for name in redis.scan_iter(count=1000)])
    lines = []
    for name in names:
        kind = (await redis.type(name)).decode()
        line = {"key": name.decode(), "type": kind, "value": await _value(redis, name, kind)}
        if (left := await redis.pttl(name)) > 0:
            line["ttl"] = left
        lines.append(line)
    return lines


async def _value(redis: Redis, name: bytes, kind: str) -> Any:
    if kind == "string":
        return _out(await redis.get(name))
    if kind == "hash":
        found = await redis.hgetall(name)
        return [[_out(part), _out(value)] for part, value in sorted(found.items())]
    if kind == "set":
        return [_out(member) for member in sorted(await redis.smembers(name))]
    if kind == "list":
        return [_out(member) for member in await redis.lrange(name, 0, -1)]
    if kind == "zset":
        found = await redis.zrange(name, 0, -1, withscores=True)
        return [[_out(member), score] for member, score in found]
    return {
        "entries": [
            [place.decode(), [[_out(part), _out(value)] for part, value in fields.items()]]
            for place, fields in await redis.xrange(name)
        ],
        "last": (await redis.xinfo_stream(name))["last-generated-id"].decode(),
        "groups": [
            [group["name"].decode(), group["last-delivered-id"].decode()]
            for group in await redis.xinfo_groups(name)
        ],
    }


def files_of(state_dir: Path, *skip: str) -> Iterator[dict[str, Any]]:
    """Every small file, but not those under the named folders."""
    for path in sorted(state_dir.rglob("*")):
        name = path.relative_to(state_dir).as_posix()
        if not path.is_file() or name.split("/")[0] in skip or path.stat().st_size > _LARGEST_FILE:
            continue
        yield {"file": name, "mode": path.stat().st_mode & 0o777, "text": _out(path.read_bytes())}


def _out(raw: bytes) -> Any:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


# --- and into one ----------------------------------------------------------------------------


def _in(text: Any) -> bytes:
    return base64.b64decode(text["base64"]) if isinstance(text, dict) else text.encode()


def put_files(golden: Golden, state_dir: Path) -> None:
    for line in golden.files:
        path = state_dir / line["file"]
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=line["mode"])
        path.write_bytes(_in(line["text"]))


async def put_keys(golden: Golden, redis: Redis) -> None:
    for line in golden.keys:
        async for command in _commands(line["key"], line["type"], line["value"]):
            await redis.execute_command(*command)
        if "ttl" in line:
            await redis.pexpire(line["key"], line["ttl"])


async def _commands(name: str, kind: str, value: Any) -> AsyncIterator[list[Any]]:
    if kind == "stream":
        for place, fields in value["entries"]:
            yield ["XADD", name, place, *(_in(text) for pair in fields for text in pair)]
        for group, delivered in value["groups"]:
            yield ["XGROUP", "CREATE", name, group, delivered, "MKSTREAM"]
        if value["entries"] or value["groups"]:
            yield ["XSETID", name, value["last"]]
    elif kind == "string":
        yield ["SET", name, _in(value)]
    elif kind == "zset":
        yield ["ZADD", name, *(part for member, score in value for part in (score, _in(member)))]
    elif kind == "hash":
        yield ["HSET", name, *(_in(text) for pair in value for text in pair)]
    else:
        yield [{"set": "SADD", "list": "RPUSH"}[kind], name, *(_in(member) for member in value)]
