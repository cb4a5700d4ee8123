"""Slices of the limits, leased from Redis beside the requests.

Every 100 ms this says what the gateway spent and takes new slices, all in one script for up to
hundred limits (core/lua/lease_limits.lua). While Redis is away or slow, no request notices: the
gateway goes on alone, stricter, and what it let in meanwhile is told afterwards. Knows Redis and
when; how much is for serving/limits.py, whose limits for serving/admission.py.
"""

import asyncio
import random
import secrets
from contextlib import suppress
from itertools import islice

from core import keys
from core.errors import Unavailable
from core.redis_client import Redis, redis_errors, script
from serving.admission import Admission, AnyMeter
from serving.limits import Bucket, Standing

EVERY_SECONDS = 0.1
ALONE_AFTER_SECONDS = 1.0
_PATIENCE_SECONDS = 2.0
_SHOW_SECONDS = 1.0
_AT_ONCE = 100
_GIVE_BACK = -1.0


class Leases:
    """The slices of one gateway."""

    def __init__(self, redis: Redis, admission: Admission) -> None:
        self._redis = redis
        self._admission = admission
        self._name = secrets.token_hex(8)
        self._heard_at = self._filled_at = admission.clock() - _SHOW_SECONDS

    async def run(self) -> None:
        """Report and renew until cancelled."""
        while True:
            await self.tick()
            # not in step with other gateways, so that none is always first at what flows back
            await asyncio.sleep(EVERY_SECONDS * random.uniform(0.8, 1.2))

    async def tick(self) -> None:
        """Once around: report what there is, renew, forget what is idle."""
        admission, now = self._admission, self._admission.clock()
        due = [meter for meter in admission.leased.values() if _is_due(meter, now)]
        if due or now - self._heard_at >= _SHOW_SECONDS:
            try:
                with suppress(Unavailable, TimeoutError):
                    await self._renew(due, now)
            finally:  # whatever the reason is, nobody answered
                if self._heard_at < now:
                    self._alone()
        admission.sweep()

    async def close(self) -> None:
        """Give all slices back; without Redis the others take them after seconds."""
        meters = list(self._admission.leased.values())
        try:
            for start in range(0, len(meters), _AT_ONCE):
                await self._exchange(meters[start : start + _AT_ONCE], give_back=True)
        except (Unavailable, TimeoutError):
            return

    async def _renew(self, due: list[AnyMeter], now: float) -> None:
        given_back = [meter for meter in due if meter.is_idle(now)]
        renewed = [meter for meter in due if not meter.is_idle(now)]
        for meters, give_back in ((renewed, False), (given_back, True)):
            todo = iter(meters)
            while part := list(islice(todo, _AT_ONCE)):
                await self._exchange(part, give_back=give_back)
        if not due:
            await self._exchange([], give_back=False)

    async def _exchange(self, meters: list[AnyMeter], *, give_back: bool) -> None:
        """One report, one answer. Raises Unavailable, TimeoutError."""
        asked_at = self._admission.clock()
        names, said = [keys.limit_gateways()], []
        args: list[str | bytes | int | float] = [self._name, 0]
        for meter in meters:
            spent, before, wanted = meter.report(asked_at)
            fill = meter.rate / 1000 if isinstance(meter, Bucket) else 0
            meter.sent_at = asked_at
            names.append(meter.name)
            said.append(spent)
            want = _GIVE_BACK if give_back else wanted
            args += [meter.serial, meter.limit, fill, spent, before, want]
        async with asyncio.timeout(_PATIENCE_SECONDS):
            with redis_errors():
                answer = await script(self._redis, "lease_limits", names, args)
        now = self._admission.clock()
        self._heard_at = self._filled_at = now
        self._admission.standing = Standing(gateways=max(1, int(answer[0])))
        for place, (meter, sent) in enumerate(zip(meters, said, strict=True)):
            granted, pool = float(answer[1 + 2 * place]), float(answer[2 + 2 * place])
            meter.renew(sent, granted, pool, now)
            meter.leased = not give_back or meter.report(now)[0] != sent
            if not meter.leased:
                self._admission.leased.pop(meter.name, None)

    def _alone(self) -> None:
        """Redis did not answer: after a while fill up by ourselves."""
        now = self._admission.clock()
        if now - self._heard_at < ALONE_AFTER_SECONDS:
            return
        standing = self._admission.standing
        if not standing.alone:
            standing = self._admission.standing = Standing(standing.gateways, alone=True)
            self._filled_at = self._heard_at
        for meter in self._admission.leased.values():
            meter.go_alone(now - self._filled_at, now, standing)
        self._filled_at = now


def _is_due(meter: AnyMeter, now: float) -> bool:
    return meter.is_due(now) or meter.is_idle(now)
