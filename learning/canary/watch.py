"""Watching a canary: every few seconds what users said since is read, kept and judged.

What counts of it is learning/canary/words.py, whether it is enough learning/canary/sequential.py;
here it is read from Redis, a bounded part each time, and the canary ended as the judgement says.
Values once read are kept in a hash until the canary is over, so that no later word changes evidence
that was looked at; who is erased meanwhile is taken out. Called by a tick; calls no engine.
"""

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from core import canary as canaries
from core import keys, metrics
from core.canary import Canary, Cohort, Ending
from core.errors import Conflict
from core.redis_client import Redis, redis_errors, script
from core.setting_groups import CanarySettings
from core.settings import Settings
from feedback import store
from learning.canary import sequential
from learning.canary.presence import presence
from learning.canary.sequential import Action, Decision, Observations
from learning.canary.words import Side, Signal, Unit, Word, observed, settled, words_of

MOST_WORDS = 5_000
MOST_PROMPTS = 2_000
LAG_SECONDS = 15.0
"""Words and prompts younger than this are left for the next look: the log may not be there yet."""
_HOLD_MILLISECONDS = 60_000
_KEPT_SECONDS = 30 * 86_400
_DAY_SECONDS = 86_400.0
_LARGEST = 1e300
_WHO = "canary"
_ENDINGS: dict[Action, Ending] = {
    "promote": "promoted",
    "rollback": "rolled_back",
    "stop": "stopped",
}
_STATES = ("running", "promoted", "rolled_back", "stopped")
_shown: set[str] = set()

log = logging.getLogger(__name__)


class Decide(Protocol):
    """What learning/canary/sequential.py does."""

    def __call__(
        self,
        observations: Observations,
        *,
        alpha_rollback: float,
        alpha_promote: float,
        min_users: int,
        margin: float,
    ) -> Decision: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """What earlier looks came to: the fields of `keys.canary_units()`."""

    units: tuple[Unit, ...] = ()
    """In the order in which they were kept."""
    asked: dict[str, Cohort] | None = None
    """The side of each user who has asked anything."""
    read_to: float = 0.0
    """What was said before this moment is taken in, in seconds."""
    asked_to: float = 0.0
    next_order: int = 0
    has_before: bool = False
    """Whether the words about the version before are in; only a watch needs them."""


async def look_due(redis: Redis) -> bool:
    """Whether a canary is on that nobody looks at or has just looked at."""
    canary = (await canaries.read(redis)).canary
    if canary is None:
        return False
    _show_state(canary)
    return canary.state == "running" and not await redis.exists(keys.canary_look())


async def look(
    redis: Redis,
    settings: Settings,
    *,
    now: float | None = None,
    decide: Decide = sequential.decide,
) -> Decision | None:
    """Read on, judge, and end the canary if that is the judgement; None when none is on.

    None also while another worker is at it. Raises Unavailable.
    """
    with redis_errors():
        hold = {"nx": True, "px": _HOLD_MILLISECONDS}
        if not await redis.set(keys.canary_look(), "1", **hold):
            return None
        try:
            moment = time.time() if now is None else now
            patience = settings.engine.start_timeout_seconds
            return await _look(redis, settings.canary, moment, decide, patience)
        finally:
            rest = int(settings.canary.look_seconds * 1000)
            await redis.set(keys.canary_look(), "1", px=max(rest, 1))


async def _look(
    redis: Redis, settings: CanarySettings, now: float, decide: Decide, patience: float
) -> Decision | None:
    release = await canaries.read(redis)
    canary = release.canary
    if canary is None or canary.state != "running":
        return None
    if release.running is None:
        return await _end(redis, canary, Decision("stop", "the live version was changed", {}))
    if await redis.hexists(keys.quarantined(), canary.candidate):
        why = f"an engine could not load {canary.candidate}"
        return await _end(redis, canary, Decision("rollback", why, {}))
    if canary.second_engine:
        engine = await presence(redis, canary, now=now)
        await _note(redis, canary, engine.fields)
        if why := engine.missing_for(patience, now=now):
            return await _end(redis, canary, Decision("stop", why, {}))
        if engine.served_from is None:
            return Decision("continue", "the second engine is not there yet", {})
        canary = canary.model_copy(update={"started_at": engine.served_from})
    kept = await _read_on(redis, canary, settings, now)
    decision = _judged(canary, kept, settings, now, decide)
    await _note(redis, canary, {"evidence": json.dumps(decision.evidence)})
    _show_evidence(decision)
    return await _end(redis, canary, decision)


def _judged(
    canary: Canary, kept: Kept, settings: CanarySettings, now: float, decide: Decide
) -> Decision:
    """What is to be done; a canary that found nothing in all its time ends."""
    sides = list((kept.asked or {}).values())
    observations = observed(
        kept.units,
        canary=canary,
        signals=settings.signals,
        users_candidate=sides.count("candidate"),
        users_live=sides.count("live"),
    )
    decision = decide(
        observations,
        alpha_rollback=settings.alpha_rollback,
        alpha_promote=settings.alpha_promote,
        min_users=settings.min_users,
        margin=settings.margin,
    )
    users = {
        "users.candidate": float(observations.users_candidate),
        "users.live": float(observations.users_live),
    }
    evidence = {name: _finite(value) for name, value in (decision.evidence | users).items()}
    action, why = decision.action, decision.why
    if action == "continue" and now - canary.started_at > settings.max_days * _DAY_SECONDS:
        action, why = "stop", f"no verdict in {settings.max_days:g} days: {why}"
    return Decision(action, why, evidence)


async def _end(redis: Redis, canary: Canary, decision: Decision) -> Decision:
    """End the canary as was decided, if it was; what somebody else ended is over."""
    ending = _ENDINGS.get(decision.action)
    if ending is None:
        return decision
    try:
        live = await canaries.end(
            redis, canary, ending, who=_WHO, why=decision.why, evidence=decision.evidence
        )
    except Conflict as conflict:
        log.warning("the canary of %s was not ended: %s", canary.candidate, conflict.message)
    else:
        log.warning("canary of %s %s: %s; %s is live", canary.candidate, ending, decision.why, live)
        _show_state(canary.model_copy(update={"state": ending}))
    return decision


# --- reading on -----------------------------------------------------------------------------


async def _read_on(redis: Redis, canary: Canary, settings: CanarySettings, now: float) -> Kept:
    """Take in what is new, without those who were erased since the canary began."""
    gone = await _erased_since(redis, canary)
    kept = await _kept(redis, gone)
    until = now - LAG_SECONDS
    if canary.mode == "watch" and not kept.has_before:
        before = await _units_before(redis, canary, settings)
        await _note(redis, canary, {"has_before": "1"}, once=_fields(kept, before, gone))
        kept = await _kept(redis, gone)
    settle = settings.settle_seconds
    since = max(kept.read_to - settle, canary.started_at)
    ids, until = await _said_between(redis, since, until)
    if until <= kept.read_to and len(ids) == MOST_WORDS:
        until += settle  # more than is read at once in so short a time: they count as they are
    words = await _words(redis, canary, ids)
    units = settled(words, known=kept.units, canary=canary, until=until, seconds=settle)
    read_to = {"read_to": repr(max(until, kept.read_to))}
    await _note(redis, canary, read_to, once=_fields(kept, units, gone))
    if canary.mode == "split":
        await _count_users(redis, canary, kept, gone, until=now - LAG_SECONDS)
    return await _kept(redis, gone)


async def _said_between(redis: Redis, since: float, until: float) -> tuple[list[str], float]:
    """Ids of feedback of a time, and the moment to which that is all of it."""
    found = await redis.zrangebyscore(
        keys.feedback_index(),
        int(since * 1000),
        int(until * 1000),
        start=0,
        num=MOST_WORDS,
        withscores=True,
    )
    if len(found) == MOST_WORDS:
        until = found[-1][1] / 1000
    return [raw.decode() for raw, _ in found], until


async def _units_before(redis: Redis, canary: Canary, settings: CanarySettings) -> list[Unit]:
    """What was said of the parent while it was live, all of each speaker in one value."""
    since = canary.started_at - settings.before_days * _DAY_SECONDS
    newest = await redis.zrevrangebyscore(
        keys.feedback_index(),
        f"({int(canary.started_at * 1000)}",
        int(since * 1000),
        start=0,
        num=MOST_WORDS,
    )
    words = await _words(redis, canary, [raw.decode() for raw in newest])
    live = [word for word in words if word.side == "live"]
    return settled(live, known=(), canary=canary, until=math.inf, seconds=math.inf)


async def _words(redis: Redis, canary: Canary, ids: Iterable[str]) -> list[Word]:
    feedback = await store.get_many(redis, ids)
    about = sorted({output.token for said in feedback for output in said.outputs})
    return words_of(feedback, await store.completions(redis, about), canary=canary)


async def _count_users(
    redis: Redis, canary: Canary, kept: Kept, gone: frozenset[str], *, until: float
) -> None:
    """Note the side of every user who asked something that counts as a prompt."""
    since = max(kept.asked_to, canary.started_at)
    found = await redis.zrangebyscore(
        keys.prompts(),
        int(since * 1000),
        int(until * 1000),
        start=0,
        num=MOST_PROMPTS,
        withscores=True,
    )
    completions = await store.completions(redis, [raw.decode() for raw, _ in found])
    users = {completion.user for completion in completions.values()} - gone
    fields: dict[str, str] = {
        f"asked:{user}": canaries.cohort_of(user, canary.salt, canary.share) for user in users
    }
    if found:
        fields["asked_to"] = repr(found[-1][1] / 1000)
        await _note(redis, canary, fields)


async def _erased_since(redis: Redis, canary: Canary) -> frozenset[str]:
    tombstones = await redis.hgetall(keys.tombstones())
    since = canary.started_at * 1000
    return frozenset(user.decode() for user, at in tombstones.items() if float(at) >= since)


def _fields(kept: Kept, units: Iterable[Unit], gone: frozenset[str]) -> dict[str, str]:
    """Units as they are written, behind those that are kept."""
    new = [unit for unit in units if unit.speaker not in gone]
    return {
        f"unit:{unit.signal}:{unit.side}:{unit.speaker}": f"{order} {unit.value!r}"
        for order, unit in enumerate(new, start=kept.next_order)
    }


async def _note(
    redis: Redis,
    canary: Canary,
    fields: Mapping[str, str],
    *,
    once: Mapping[str, str] | None = None,
) -> None:
    """Keep fields, and those of `once` that are not there yet, in one step.

    Nothing is kept when somebody ended the canary meanwhile: it would be the next one's.
    """
    flat = [part for name, value in fields.items() for part in ("", name, value)]
    flat += [part for name, value in (once or {}).items() for part in ("1", name, value)]
    names = [keys.canary(), keys.canary_units()]
    await script(redis, "keep_canary_units", names, [canary.salt, _KEPT_SECONDS, *flat])


async def _kept(redis: Redis, gone: frozenset[str]) -> Kept:
    raw = await redis.hgetall(keys.canary_units())
    said = {name.decode(): value.decode() for name, value in raw.items()}
    erased = [name for name in said if ":" in name and name.rpartition(":")[2] in gone]
    if erased:
        await redis.hdel(keys.canary_units(), *erased)
    units: list[tuple[int, Unit]] = []
    asked: dict[str, Cohort] = {}
    for name, value in said.items():
        kind, _, rest = name.partition(":")
        if name in erased:
            continue
        if kind == "unit":
            signal, side, speaker = rest.split(":", 2)
            order, _, number = value.partition(" ")
            unit = Unit(cast(Signal, signal), speaker, cast(Side, side), float(number))
            units.append((int(order), unit))
        elif kind == "asked":
            asked[rest] = cast(Cohort, value)
    return Kept(
        units=tuple(unit for _, unit in sorted(units, key=lambda pair: pair[0])),
        asked=asked,
        read_to=float(said.get("read_to", 0.0)),
        asked_to=float(said.get("asked_to", 0.0)),
        next_order=max((order for order, _ in units), default=-1) + 1,
        has_before="has_before" in said,
    )


# --- what is shown --------------------------------------------------------------------------


def _finite(value: float) -> float:
    return max(-_LARGEST, min(_LARGEST, value)) if not math.isnan(value) else 0.0


def _show_evidence(decision: Decision) -> None:
    for name, value in decision.evidence.items():
        signal, _, side = name.rpartition(".")
        if signal == "users":
            metrics.CANARY_USERS.labels(side).set(value)
        else:
            metrics.CANARY_EVIDENCE.labels(signal or "all", side).set(value)


def _show_state(canary: Canary) -> None:
    _shown.add(canary.candidate)
    for version in _shown:
        for state in _STATES:
            is_it = version == canary.candidate and state == canary.state
            metrics.CANARY_INFO.labels(version, state).set(1.0 if is_it else 0.0)
