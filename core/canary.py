"""A canary: a version that a share of users gets before all do, and how it begins and ends.

At most one runs. In a `split` a share of users, chosen by a salted hash so that each keeps their
side, is answered by replicas that serve the candidate, while the target stays the parent. One
replica alone gets a second engine beside it for so long, where `instructloop up` says that there
is room (deploy/canary_engine.py). Else there is nothing to split: in a `watch` the candidate is
made the target at once, and goes back by itself if users say worse of it than of the parent before.
Every beginning and end is one script; a change of the target by anybody ends the canary in the
same step. Holds no statistics: learning/canary/watch.py decides, gateways (serving/replicas.py) and
agents follow.
"""

import hashlib
import json
import math
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from core import keys, loop, registry
from core.errors import Conflict, LeaseLost, NotFound, Unprocessable
from core.records import Record, Replica
from core.redis_client import Redis, script

Cohort = Literal["candidate", "live"]
Ending = Literal["promoted", "rolled_back", "stopped"]
ROUTED_MODES = frozenset({"split"})
SECOND_ENGINE = "engine-canary"
"""The replica that is there for a canary alone."""
_SERVES = frozenset({"ready", "swapping"})
_TINY = 1e-9
_ACTIONS: dict[Ending, str] = {
    "promoted": "promoted",
    "rolled_back": "rolled back",
    "stopped": "canary stopped",
}


class Canary(Record):
    """A canary, running or over; the last one stays to be shown."""

    candidate: str
    parent: str
    share: float
    """Of users who get the candidate; 1 in a watch."""
    salt: str
    """Of the cohorts, new for each canary: nobody is always among the first."""
    mode: Literal["split", "watch"]
    started_at: float
    run_id: str = ""
    """The run of learning that made it; empty when a person began it."""
    second_engine: bool = False
    """In a split: an engine started for it serves the candidate, and all others the parent."""
    state: Literal["running", "promoted", "rolled_back", "stopped"] = "running"
    why: str = ""
    ended_at: float | None = None
    evidence: dict[str, float] = {}
    """The last, once it is over."""


@dataclass(frozen=True, slots=True)
class Release:
    """What should serve whom, as Redis has it."""

    target: str | None = None
    canary: Canary | None = None

    @property
    def running(self) -> Canary | None:
        """The canary that is on; one whose target was moved is on no more."""
        canary = self.canary
        if canary is None or canary.state != "running":
            return None
        live = canary.parent if canary.mode in ROUTED_MODES else canary.candidate
        return canary if self.target == live else None

    @property
    def split(self) -> Canary | None:
        """The canary that is on, if users are split by it."""
        canary = self.running
        return canary if canary is not None and canary.mode in ROUTED_MODES else None


# --- who gets it: pure ----------------------------------------------------------------------


def cohort_of(user: str, salt: str, share: float) -> Cohort:
    """The side of a user (a keyed hash); the same at every call, and uniform over salts."""
    digest = hashlib.blake2b(user.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return "candidate" if int.from_bytes(digest) < share * 2.0**64 else "live"


def serve_candidate(names: Collection[str], share: float) -> frozenset[str]:
    """The replicas that serve the candidate: its share of them, one at least, never all."""
    count = min(max(math.ceil(share * len(names) - _TINY), 1), len(names) - 1)
    return frozenset(sorted(names)[: max(count, 0)])


def parsed(target: bytes | None, canary: bytes | None) -> Release:
    """A release from the values of `keys.target()` and `keys.canary()`."""
    return Release(
        target=target.decode() if target else None,
        canary=Canary.model_validate_json(canary) if canary else None,
    )


# --- what Redis says ------------------------------------------------------------------------


async def read(redis: Redis) -> Release:
    """The target, and the canary that runs or ran last."""
    target, canary = await redis.mget(keys.target(), keys.canary())
    return parsed(target, canary)


async def wanted_version(redis: Redis, name: str) -> str | None:
    """The version that the replica of this name should serve; None before the first.

    That is the target but for the canary's replicas. A candidate that an engine refused is wanted
    by nobody any more, and a replica that is alone serves the live version. An engine started for
    a canary serves it to its end, and then the live version until it leaves.
    """
    release = await read(redis)
    canary = release.split
    if canary is None or await redis.hexists(keys.quarantined(), canary.candidate):
        return release.target
    if canary.second_engine:
        return canary.candidate if name == SECOND_ENGINE else release.target
    names = {*await answering(redis), name} - {SECOND_ENGINE}
    chosen = name in serve_candidate(names, canary.share)
    return canary.candidate if chosen else release.target


async def answering(redis: Redis) -> frozenset[str]:
    """The names of our replicas that answer requests now."""
    return frozenset(said.name for said in await heard(redis) if said.state in _SERVES)


async def heard(redis: Redis) -> list[Replica]:
    """What our replicas that are alive said last."""
    names = [raw.decode() for raw in await redis.smembers(keys.replicas())]
    raw = await redis.mget([keys.replica(name) for name in names]) if names else []
    return [Replica.model_validate_json(text) for text in raw if text]


def serves(replica: Replica, version: str) -> bool:
    """Whether a replica answers requests with this version now."""
    return replica.state in _SERVES and replica.version == version


async def held_versions(redis: Redis) -> frozenset[str]:
    """Versions whose weights must stay while a canary is on: candidate and parent."""
    canary = (await read(redis)).running
    return frozenset() if canary is None else frozenset({canary.candidate, canary.parent})


async def with_evidence(redis: Redis) -> Canary | None:
    """The canary that is on or was last, with what the newest look at it found."""
    canary = (await read(redis)).canary
    if canary is None or canary.state != "running":
        return canary
    raw = await redis.hget(keys.canary_units(), "evidence")
    return canary.model_copy(update={"evidence": json.loads(raw) if raw else {}})


async def stop(redis: Redis, *, who: str, why: str) -> str:
    """End the canary that is on; the live version stays, and is returned. Raises Conflict."""
    canary = await with_evidence(redis)
    if canary is None or canary.state != "running":
        raise Conflict("no canary is on")
    return await end(redis, canary, "stopped", who=who, why=why, evidence=canary.evidence)


# --- begin and end --------------------------------------------------------------------------


async def start(
    redis: Redis,
    candidate: str,
    *,
    share: float,
    who: str,
    why: str,
    expected: str = "",
    run_id: str = "",
    fencing_token: int | None = None,
) -> Canary:
    """Begin a canary of `candidate` against the live version, for a share of users in (0, 1).

    Raises NotFound, Unprocessable (a share of no one or all, a quarantined version), LeaseLost
    (a stale fencing token), and Conflict: no worker is there to judge it, one is on already, the
    live version is not `expected`, it is live itself, its weights were removed.
    """
    if not 0.0 < share < 1.0:
        raise Unprocessable("a canary takes a share of users between 0 and 1", param="canary")
    if not await loop.worker_alive(redis):
        raise Conflict("no learning worker is there to judge a canary: start one, or promote")
    canary = Canary(
        candidate=candidate,
        parent=expected or await registry.target(redis) or "",
        share=share,
        salt=secrets.token_hex(16),
        mode="split",
        started_at=time.time(),
        run_id=run_id,
        why=why,
    )
    if len(await answering(redis) - {SECOND_ENGINE}) < 2:
        room = await redis.exists(keys.canary_room())
        alone = {"second_engine": True} if room else {"mode": "watch", "share": 1.0}
        canary = canary.model_copy(update=alone)
    status, name = await _begin(redis, canary, fencing_token, who)
    _refuse_start(status.decode(), name.decode(), candidate)
    return canary


async def _begin(
    redis: Redis, canary: Canary, fencing_token: int | None, who: str
) -> tuple[bytes, bytes]:
    action = "promoted" if canary.mode == "watch" else "canary started"
    details = {"version": canary.candidate, "who": who, "why": canary.why, "canary": canary.mode}
    status, name = await script(
        redis,
        "start_canary",
        [
            keys.fence(),
            keys.policies(),
            keys.target(),
            keys.quarantined(),
            keys.collected(),
            keys.canary(),
            keys.target_history(),
            keys.audit(),
            keys.canary_units(),
        ],
        [
            "" if fencing_token is None else str(fencing_token),
            canary.candidate,
            canary.parent,
            canary.model_dump_json(),
            canary.mode,
            registry.audit_entry(action, **details),
        ],
    )
    return status, name


def _refuse_start(status: str, name: str, candidate: str) -> None:
    match status:
        case "ok":
            return
        case "stale":
            raise LeaseLost(f"another worker took over: no canary of {candidate} was begun")
        case "unknown":
            raise NotFound(f"no policy {candidate}: `instructloop policies list` shows them")
        case "quarantined":
            raise Unprocessable(f"{candidate} is quarantined: an engine could not load it")
        case "collected":
            raise Conflict(f"the weights of {candidate} were removed to make room")
        case "same":
            raise Conflict(f"{candidate} is the live version already")
        case "running":
            raise Conflict(
                f"a canary of {name} is on: wait for it, or `instructloop policies canary stop`"
            )
        case _:
            raise Conflict(f"the live version is {name or 'none'} now: look again and repeat")


async def end(
    redis: Redis,
    canary: Canary,
    ending: Ending,
    *,
    who: str,
    why: str,
    evidence: dict[str, float] | None = None,
) -> str:
    """End a canary and move the target as that asks for, in one step; returns the live version.

    Promoted: the candidate is live. Rolled back: the version before it is, or stays. Stopped: the
    live version stays, which in a watch is the candidate. Raises Conflict when this canary is over
    already or the candidate cannot be loaded any more.
    """
    status, name = await script(
        redis,
        "end_canary",
        [
            keys.canary(),
            keys.target(),
            keys.target_history(),
            keys.audit(),
            keys.quarantined(),
            keys.collected(),
            keys.canary_units(),
        ],
        [
            canary.salt,
            ending,
            why,
            time.time(),
            json.dumps(evidence or {}),
            registry.audit_entry(
                _action(canary, ending), version=canary.candidate, who=who, why=why, canary="ended"
            ),
        ],
    )
    match status.decode():
        case "ok":
            return str(name.decode())
        case "barred":
            raise Conflict(f"{name.decode()} cannot be loaded any more: it is not promoted")
        case "none":
            raise Conflict("there is no earlier version to go back to")
        case _:
            raise Conflict(f"this canary of {canary.candidate} is over already")


def _action(canary: Canary, ending: Ending) -> str:
    """What the audit log calls it: only what moves the target is a promotion or a roll back."""
    moves = (canary.mode == "split") == (ending == "promoted")
    return _ACTIONS[ending] if moves or ending == "stopped" else f"canary {_ACTIONS[ending]}"
