"""The erasure of a person, asked for and told about: tombstone, job, receipt.

A tombstone is the user's keyed hash and a moment: what they said until then is gone and cannot come
back (ingest.py asks `erased_until`); whoever comes back later begins anew. The name itself is kept
nowhere. The work is done in steps by erasing.py. Light: the gateway loads this file.
"""

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from core import keys
from core.auth import list_keys
from core.errors import Conflict, NotFound
from core.keyring import Keyring
from core.redis_client import Redis, promise, redis_errors
from core.registry import audit_entry
from feedback.entries import IMPORT_KEY_ID

_ATTEMPTS = 20


class Receipt(BaseModel):
    """What became of an erasure. `signature` (Ed25519, base64) is over the rest as JSON with sorted
    keys and no white space; it is there when all is gone."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: Literal["accepted", "erasing", "erased"]
    tenant: str
    user: str
    """The user's keyed hash."""
    erased_until: float
    """Seconds: what came later belongs to a new beginning."""
    started_at: float
    finished_at: float | None = None
    step: str = ""
    """The step that was done last."""
    counts: dict[str, int] = {}
    """What was removed, by store."""
    versions: list[str] = []
    """Policies that were trained on something of this user: their history says so."""
    notes: list[str] = []
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """An erasure as Redis has it."""

    id: str
    tenant: str
    user: str
    raters: frozenset[str]
    """The hashes under which this user may have spoken as a rater."""
    at: int
    """Milliseconds: what is younger stays."""
    started: float
    done: str
    """`AT:STEP` that was done last."""


def rater_hashes(
    keyring: Keyring, *, tenant: str, user: str, key_ids: Iterable[str]
) -> frozenset[str]:
    """The raters that an end user may be: their name within each key, or a key itself."""
    within = [f"{key_id}\x00{user}" for key_id in {*key_ids, IMPORT_KEY_ID}]
    return frozenset(keyring.hashed(tenant, "rater", name) for name in [*within, user])


async def begin(redis: Redis, keyring: Keyring, *, tenant: str, user: str, now: float) -> str:
    """Ask for the erasure of a user by name; returns its id. From now on nothing old comes in.

    While one is open, the same one goes on, until the new moment. Raises Unavailable.
    """
    with redis_errors():
        key_ids = [key.id for key in await list_keys(redis) if key.tenant == tenant]
    raters = rater_hashes(keyring, tenant=tenant, user=user, key_ids=key_ids)
    digest = keyring.hashed(tenant, "user", user)
    new = "er-" + secrets.token_hex(12)
    return await open_job(
        redis,
        new=new,
        user=digest,
        at=int(now * 1000),
        fields={"tenant": tenant, "raters": " ".join(sorted(raters)), "started": repr(now)},
    )


async def open_job(redis: Redis, *, new: str, user: str, at: int, fields: Mapping[str, str]) -> str:
    """Write tombstone and job together; the id of the job, which is the open one if there is."""
    with redis_errors():
        for _ in range(_ATTEMPTS):
            raw = await redis.hget(keys.erasures_open(), user)
            known = raw.decode() if raw else ""
            erasure_id = known or new
            flat = [text for pair in fields.items() for text in pair]
            about = {"erasure": erasure_id, "user": user, "tenant": fields["tenant"]}
            entry = audit_entry("erasure begun", **about)
            done = await promise(
                redis,
                "begin_erasure",
                [keys.tombstones(), keys.erasures_open(), keys.erasure(erasure_id), keys.audit()],
                [user, erasure_id, known, at, entry, *flat],
            )
            if done:
                return erasure_id
    raise Conflict("this user is being erased by several callers at once: try again")


async def read_job(redis: Redis, erasure_id: str) -> Job:
    """One erasure. Raises NotFound."""
    fields = await _fields(redis, erasure_id)
    return Job(
        id=fields["id"],
        tenant=fields["tenant"],
        user=fields["user"],
        raters=frozenset(fields["raters"].split()),
        at=int(fields["at"]),
        started=float(fields["started"]),
        done=fields.get("done", ""),
    )


async def receipt(redis: Redis, erasure_id: str, *, tenant: str | None = None) -> Receipt:
    """What became of an erasure, signed once it is finished. Raises NotFound, Unavailable."""
    with redis_errors():
        fields = await _fields(redis, erasure_id)
    if tenant is not None and fields["tenant"] != tenant:
        raise NotFound("no such erasure")
    if "receipt" in fields:
        return Receipt.model_validate_json(fields["receipt"])
    return unsigned(fields)


def unsigned(fields: Mapping[str, str], *, finished_at: float | None = None) -> Receipt:
    """The receipt that the fields of a job give."""
    at, _, step = fields.get("done", "").partition(":")
    under_way = bool(step) and at == fields["at"]
    return Receipt(
        id=fields["id"],
        state="erased" if finished_at else "erasing" if under_way else "accepted",
        tenant=fields["tenant"],
        user=fields["user"],
        erased_until=int(fields["at"]) / 1000,
        started_at=float(fields["started"]),
        finished_at=finished_at,
        step=step if under_way else "",
        counts={n: int(v) for n, v in _with_prefix(fields, "count:")},
        versions=[version for version, _ in _with_prefix(fields, "version:")],
        notes=[note for note, _ in _with_prefix(fields, "note:")],
    )


def signed(plain: Receipt, keyring: Keyring) -> Receipt:
    """The receipt with its signature."""
    return plain.model_copy(update={"signature": keyring.sign(receipt_bytes(plain))})


def receipt_bytes(plain: Receipt) -> bytes:
    """What the signature covers."""
    fields = plain.model_dump(exclude={"signature"})
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


async def fields_of(redis: Redis, erasure_id: str) -> dict[str, str]:
    """The fields of a job. Raises NotFound."""
    return await _fields(redis, erasure_id)


async def is_open(redis: Redis) -> bool:
    """Whether somebody waits for an erasure. Cheap: every tick looks."""
    return bool(await redis.exists(keys.erasures_open()))


async def erased_until(redis: Redis, user: str) -> int:
    """Milliseconds until when what this user (a hash) said is erased; 0 for nobody erased."""
    return int(await redis.hget(keys.tombstones(), user) or 0)


def _with_prefix(fields: Mapping[str, str], prefix: str) -> list[tuple[str, str]]:
    return sorted(
        (name.removeprefix(prefix), value)
        for name, value in fields.items()
        if name.startswith(prefix)
    )


async def _fields(redis: Redis, erasure_id: str) -> dict[str, str]:
    raw = await redis.hgetall(keys.erasure(erasure_id))
    if not raw:
        raise NotFound("no such erasure")
    return {name.decode(): value.decode() for name, value in raw.items()}
