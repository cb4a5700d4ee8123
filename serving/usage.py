"""What each key used: requests, tokens and refusals by day, and `GET /v1/usage`.

Counted in memory, and added to Redis once a second and when the gateway stops. A batch carries a
number, so one whose answer was lost is sent again and counts once; while Redis is away it waits.
`kill -9` loses what was counted since the last batch, a second's worth at most while Redis answers.
A reply that broke off before its engine said how many tokens it took counts with an estimate.
"""

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from core import keys
from core.auth import KeyCache
from core.errors import Unavailable
from core.records import ApiKey
from core.redis_client import Redis, redis_errors, script
from serving.edge import errors

EVERY_SECONDS = 1.0
_KEEP_MARK_SECONDS = 7 * 86_400
_PATIENCE_SECONDS = 2.0
_AT_ONCE = 400  # counts in one batch
FIELDS: Final = ("requests", "prompt_tokens", "completion_tokens", "refused")
Count = tuple[str, str, str]
"""Day, key id, what."""


class Usage:
    """The counts of one gateway that are not in Redis yet: bounded by keys and days."""

    def __init__(self, redis: Redis, *, keep_days: int) -> None:
        self._redis = redis
        self._keep_seconds = (keep_days + 1) * 86_400
        self._writer = secrets.token_hex(8)
        self._new: dict[Count, int] = {}
        self._batch: dict[Count, int] = {}
        self._number = 0
        self._flushing = asyncio.Lock()

    def answered(self, key_id: str, prompt_tokens: int, completion_tokens: int) -> None:
        """A completion has ended, whichever way."""
        day = today()
        self._add((day, key_id, "requests"), 1)
        self._add((day, key_id, "prompt_tokens"), prompt_tokens)
        self._add((day, key_id, "completion_tokens"), completion_tokens)

    def refused(self, key_id: str) -> None:
        """A limit was in the way."""
        self._add((today(), key_id, "refused"), 1)

    async def run(self) -> None:
        """Add to Redis every second until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.close()

    async def close(self) -> None:
        """Add what there is; without Redis it stays here."""
        try:
            await self.flush()
        except (Unavailable, TimeoutError):
            return

    async def flush(self) -> None:
        """Add what there is to Redis. Raises Unavailable, TimeoutError; then nothing is lost."""
        async with self._flushing:
            while self._batch or self._new:
                if not self._batch:
                    self._begin()
                await self._send()
                self._batch = {}

    def _add(self, count: Count, amount: int) -> None:
        if amount:
            self._new[count] = self._new.get(count, 0) + amount

    def _begin(self) -> None:
        self._number += 1
        for count in list(self._new)[:_AT_ONCE]:
            self._batch[count] = self._new.pop(count)

    async def _send(self) -> None:
        names = [keys.usage_writer(self._writer)]
        args: list[str | bytes | int | float] = [self._number, _KEEP_MARK_SECONDS]
        args.append(self._keep_seconds)
        for (day, key_id, what), amount in self._batch.items():
            names.append(keys.usage(day))
            args += [f"{key_id}:{what}", amount]
        async with asyncio.timeout(_PATIENCE_SECONDS):
            with redis_errors():
                await script(self._redis, "add_usage", names, args)


def today() -> str:
    """The day in UTC, as the counts are kept under."""
    return datetime.now(UTC).date().isoformat()


class Counts(BaseModel):
    """What was used."""

    requests: int = 0
    """Completions that were answered, or broke off."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: int = 0
    """Completions that a limit was in the way of."""


class DayOfKey(Counts):
    """One day, in UTC."""

    date: str


class UsageOfKey(BaseModel):
    """One key: all the days together, and each on which there was something, oldest first."""

    key_id: str
    name: str
    total: Counts
    days: list[DayOfKey]


class UsageReport(BaseModel):
    """What the keys used in so many days, today included."""

    days: int
    keys: list[UsageOfKey]


router = APIRouter(prefix="/v1", tags=["usage"])


@router.get("/usage", responses=errors(401, 403, 422, 503))
async def get_usage(
    request: Request,
    days: Annotated[int, Query(ge=1, le=366, description="Today and the days before it.")] = 30,
) -> UsageReport:
    """What each key used by day: an admin key sees all keys of its tenant, others themselves."""
    state, key = request.app.state, request.state.key
    usage: Usage = state.services.usage
    shown = _shown(key, state.keys)
    try:
        await usage.flush()  # so that what this gateway has answered is in
    except TimeoutError:
        raise Unavailable("Redis does not answer in time; try again") from None
    last = datetime.now(UTC).date()
    dates = [(last - timedelta(days=back)).isoformat() for back in reversed(range(days))]
    by_day = await _read(state.redis, dates, [one.id for one in shown])
    return UsageReport(
        days=days, keys=[_of_key(one, dates, by_day, place) for place, one in enumerate(shown)]
    )


def _shown(key: ApiKey, known: KeyCache) -> list[ApiKey]:
    return known.of_tenant(key.tenant) if "admin" in key.scopes else [key]


async def _read(redis: Redis, dates: list[str], key_ids: list[str]) -> list[list[bytes | None]]:
    """For each day the counts of all keys, one after the other."""
    fields = [f"{key_id}:{what}" for key_id in key_ids for what in FIELDS]
    with redis_errors():
        async with redis.pipeline(transaction=False) as pipe:
            for date in dates:
                pipe.hmget(keys.usage(date), fields)
            found: list[list[bytes | None]] = await pipe.execute()
    return found


def _of_key(
    key: ApiKey, dates: list[str], by_day: list[list[bytes | None]], place: int
) -> UsageOfKey:
    days = []
    for date, found in zip(dates, by_day, strict=True):
        raw = found[place * len(FIELDS) : (place + 1) * len(FIELDS)]
        counts = {what: int(value or 0) for what, value in zip(FIELDS, raw, strict=True)}
        if any(counts.values()):
            days.append(DayOfKey(date=date, **counts))
    total = Counts(**{what: sum(getattr(day, what) for day in days) for what in FIELDS})
    return UsageOfKey(key_id=key.id, name=key.name, total=total, days=days)
