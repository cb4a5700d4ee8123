"""The registry of policies: which versions exist, which one should be live, and what happened.

A version is a folder plus a signed card; it exists when it is in Redis, which one atomic script
decides (core/lua). The live version is a target that engine agents follow. Every change of the
target, every probe and erasure is an entry of the audit log. Holds no weights and loads none.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from core import keys
from core.errors import Conflict, LeaseLost, NotFound, Unprocessable
from core.keyring import Keyring
from core.records import Card
from core.redis_client import Redis, script


def version_name(number: int) -> str:
    """`v0000`, `v0001`, ..."""
    return f"v{number:04d}"


def card_bytes(card: Card) -> bytes:
    """What a signature covers: the card without it, as canonical JSON."""
    fields = card.model_dump(exclude={"signature"})
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def signed(card: Card, keyring: Keyring) -> Card:
    """The card with its Ed25519 signature."""
    return card.model_copy(update={"signature": keyring.sign(card_bytes(card))})


def timestamp() -> str:
    """Now, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


async def next_version(redis: Redis) -> str:
    """Reserve the next version number (the first is v0000). A gap does no harm."""
    return version_name(int(await redis.incr(keys.policy_next())) - 1)


async def publish(redis: Redis, card: Card, *, fencing_token: int, prefix: str = "") -> None:
    """Register a version whose folder is complete, and the prefix under which it is kept, too.

    Raises LeaseLost when another worker has taken over since; then nothing is registered.
    """
    outcome = await script(
        redis,
        "publish_policy",
        [
            keys.fence(),
            keys.policies(),
            keys.policy(card.version),
            keys.audit(),
            keys.policy_prefixes(),
        ],
        [
            str(fencing_token),
            card.version,
            int(card.version[1:]),
            card.model_dump_json(),
            audit_entry("published", version=card.version, kind=card.kind),
            prefix,
        ],
    )
    if outcome == 0:
        raise LeaseLost(f"another worker took over: {card.version} was not registered")


async def prefix(redis: Redis, version: str) -> str:
    """Where a version is kept under `policies_url`; "" if nowhere."""
    raw = await redis.hget(keys.policy_prefixes(), version)
    return raw.decode() if raw else ""


async def prefixes(redis: Redis) -> dict[str, str]:
    """The same of all versions that are kept there, by version."""
    raw = await redis.hgetall(keys.policy_prefixes())
    return {version.decode(): name.decode() for version, name in raw.items()}


async def cards(redis: Redis) -> list[Card]:
    """All registered versions, oldest first."""
    versions = await redis.zrange(keys.policies(), 0, -1)
    raw = await redis.mget([keys.policy(v.decode()) for v in versions]) if versions else []
    return [Card.model_validate_json(text) for text in raw if text]


async def card(redis: Redis, version: str) -> Card:
    """One version's card. Raises NotFound."""
    raw = await redis.get(keys.policy(version))
    if raw is None:
        raise NotFound(f"no policy {version}: `instructloop policies list` shows them")
    return Card.model_validate_json(raw)


async def target(redis: Redis) -> str | None:
    """The version that every replica should serve; None before the first."""
    raw = await redis.get(keys.target())
    return raw.decode() if raw else None


async def promote(
    redis: Redis,
    version: str,
    *,
    who: str,
    why: str,
    expected: str = "",
    fencing_token: int | None = None,
) -> str:
    """Make a version the target; returns it.

    `expected` is the target that the caller saw: when it moved meanwhile, Conflict. Raises
    NotFound, Unprocessable (quarantined), Conflict (also when its weights were removed), and
    LeaseLost for a stale fencing token; people have none.
    """
    entry = audit_entry("promoted", who=who, why=why)
    token = "" if fencing_token is None else str(fencing_token)
    return await _set_target(redis, version, entry=entry, expected=expected, token=token)


async def rollback(redis: Redis, *, who: str, why: str, expected: str = "") -> str:
    """Make the last good version before this one the target again; returns it."""
    entry = audit_entry("rolled back", who=who, why=why)
    return await _set_target(redis, "", entry=entry, expected=expected)


async def _set_target(
    redis: Redis, version: str, *, entry: str, expected: str, token: str = ""
) -> str:
    status, name = await script(
        redis,
        "set_target",
        [
            keys.policies(),
            keys.target(),
            keys.target_history(),
            keys.audit(),
            keys.quarantined(),
            keys.collected(),
            keys.canary(),
            keys.canary_units(),
            keys.fence(),
        ],
        [version, entry, expected, token],
    )
    match status.decode():
        case "ok" | "same":
            return str(name.decode())
        case "stale":
            raise LeaseLost(f"another worker took over: {version} was not promoted")
        case "unknown":
            raise NotFound(f"no policy {version}: `instructloop policies list` shows them")
        case "quarantined":
            raise Unprocessable(f"{version} is quarantined: an engine could not load it")
        case "collected":
            raise Conflict(
                f"the weights of {version} were removed to make room: promote another version, "
                "and name those to keep in INSTRUCTLOOP_RETENTION__PINNED"
            )
        case "none":
            raise Conflict("there is no earlier version to go back to")
        case _:
            raise Conflict(f"the live version is {name.decode()} now: look again and repeat")


async def quarantine(redis: Redis, version: str, *, why: str) -> None:
    """No engine may load this version again; the reason is kept."""
    async with redis.pipeline(transaction=True) as step:
        step.hset(keys.quarantined(), version, why)
        step.xadd(keys.audit(), {"entry": audit_entry("quarantined", version=version, why=why)})
        await step.execute()


async def collect(redis: Redis, version: str) -> bool:
    """Note that a version's weights are about to be removed: it cannot be promoted any more.

    False when it is live, what a roll back would make live, or in a canary that is on.
    """
    noted = await script(
        redis,
        "collect_policy",
        [
            keys.target(),
            keys.collected(),
            keys.audit(),
            keys.target_history(),
            keys.quarantined(),
            keys.canary(),
        ],
        [version, timestamp(), audit_entry("weights removed", version=version)],
    )
    return bool(noted)


async def collected(redis: Redis) -> frozenset[str]:
    """The versions whose weights were removed."""
    return frozenset(raw.decode() for raw in await redis.hkeys(keys.collected()))


async def record(redis: Redis, action: str, **details: str) -> None:
    """Append to the audit log."""
    await redis.xadd(keys.audit(), {"entry": audit_entry(action, **details)})


def audit_entry(action: str, **details: str) -> str:
    """One line of the audit log."""
    return json.dumps({"at": timestamp(), "action": action, **details}, sort_keys=True)


async def history(redis: Redis, version: str | None = None) -> list[dict[str, Any]]:
    """The audit log, oldest first; of one version when given."""
    entries = [stream_entry(fields) for _, fields in await redis.xrange(keys.audit())]
    return [e for e in entries if version is None or version in _versions_of(e)]


async def probes(
    redis: Redis, version: str, known: Sequence[Mapping[str, Any]] = ()
) -> dict[str, str]:
    """When each replica last proved to serve a version, by name; `known` is its history.

    Proofs at intervals are kept beside the audit log, which tells only of loads.
    """
    found = {
        str(entry["replica"]): str(entry["at"])
        for entry in known
        if entry["action"] == "probed" and "replica" in entry
    }
    raw = await redis.hgetall(keys.probes(version))
    for name, at in raw.items():
        replica = name.decode()
        found[replica] = max(found.get(replica, ""), at.decode())
    return dict(sorted(found.items()))


def stream_entry(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """An entry of the audit log as a script has written it."""
    entry: dict[str, Any] = json.loads(fields[b"entry"])
    for name in ("from", "to"):
        if value := fields.get(name.encode()):
            entry[name] = value.decode()
    return entry


def _versions_of(entry: Mapping[str, Any]) -> set[Any]:
    return {entry.get("version"), entry.get("from"), entry.get("to")}


async def acquire_fence(redis: Redis) -> int:
    """A fencing token newer than all before it; older holders can publish nothing from now on."""
    return int(await redis.incr(keys.fence()))


def milliseconds() -> int:
    """Now, as scores of sorted sets have it."""
    return int(time.time() * 1000)
