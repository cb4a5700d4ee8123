"""Who may have a completion now: the limits of its key and of its end user. In memory alone.

`Admission.admit` looks at every limit that applies, takes from all of them or from none, and gives
a `Grant` that is settled once, however the reply ends. Tokens are estimated when a request comes
and corrected when its reply has ended. The arithmetic is in serving/limits.py; what other gateways
let in comes from Redis beside the requests (serving/limit_leases.py), never during one.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

from core import keys, metrics
from core.errors import RateLimited
from core.keyring import Keyring
from core.records import ApiKey, KeyLimits
from core.setting_groups import LimitSettings
from serving.limits import Bucket, Kind, Places, Standing, headers_of, whole_seconds

MOST_METERS = 20_000
_MOST_PLANS = 10_000
_SWEPT_AT_ONCE = 1000
_KINDS: Final[tuple[Kind, ...]] = ("requests", "tokens", "concurrency")
_FIELDS = ("requests_per_minute", "tokens_per_minute", "concurrency")
_UNITS = {
    "requests": "requests a minute",
    "tokens": "tokens a minute",
    "concurrency": "completions at one time",
}
_NEVER_SECONDS = 60  # a wait for those who do not read that waiting is no use
AnyMeter = Bucket | Places
Limits = tuple[tuple[Kind, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The limits of a key, and of each of its end users; only those that there are."""

    key: Limits
    user: Limits


def plan_of(settings: LimitSettings, own: KeyLimits | None) -> Plan:
    """What a key says of itself counts more than the settings; 0 is no limit."""

    def chosen(prefix: str) -> Limits:
        found = []
        for kind, name in zip(_KINDS, _FIELDS, strict=True):
            given = None if own is None else getattr(own, prefix + name)
            limit = getattr(settings, prefix + name) if given is None else given
            if limit:
                found.append((kind, limit))
        return tuple(found)

    return Plan(chosen(""), chosen("user_"))


class Grant:
    """What one completion took of its limits."""

    __slots__ = ("_admission", "_taken", "estimate")

    def __init__(
        self, admission: "Admission", taken: list[tuple[AnyMeter, float]], estimate: int
    ) -> None:
        self._admission = admission
        self._taken = taken
        self.estimate = estimate
        """Tokens that were taken at admission."""

    def settle(self, tokens: float) -> None:
        """The reply has ended and took so many tokens in truth; more than once is once."""
        if self._taken:
            now = self._admission.clock()
            for meter, cost in self._taken:
                meter.settle(cost, tokens, now)
                self._admission.leased[meter.name] = meter
            self._taken = []

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left, as OpenAI says it; nothing without a limit."""
        if not self._taken:
            return []
        buckets = [meter for meter, _ in self._taken if isinstance(meter, Bucket)]
        return headers_of(buckets, self._admission.clock())


class Admission:
    """All limits that were used lately, as this gateway knows them."""

    def __init__(
        self,
        settings: LimitSettings,
        keyring: Keyring,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._keyring = keyring
        self.clock = clock
        self.standing = Standing()
        self.leased: dict[str, AnyMeter] = {}
        """By name, those that Redis has to hear of."""
        self._meters: OrderedDict[tuple[str, str | None, Kind], AnyMeter] = OrderedDict()
        self._plans: dict[str, tuple[ApiKey, Plan]] = {}
        self._serials = count()

    @property
    def expected_tokens(self) -> int:
        """What an answer counts as that may be of any length."""
        return self._settings.expected_tokens

    def __len__(self) -> int:
        return len(self._meters)

    def admit(self, key: ApiKey, user: str, tokens: int, *, asked_for: bool = True) -> Grant:
        """Let a completion in that may take so many tokens.

        `asked_for` says that the request named a number itself; otherwise a guess of ours is never
        the reason why it is refused for good. Raises RateLimited, which says which limit of whom.
        """
        plan = self.plan(key)
        if not plan.key and not plan.user:
            return Grant(self, [], tokens)
        now = self.clock()
        needed: list[tuple[AnyMeter, float]] = []
        for whose, (kind, limit) in _all(plan):
            meter = self._meter(key.id, user if whose == "user" else None, kind, limit, now)
            cost = 1.0
            if kind == "tokens":
                cost = float(tokens if asked_for else min(tokens, limit))
            self.leased[meter.name] = meter
            if not meter.fits(cost, now, self.standing):
                raise self._refusal(key, whose, meter, cost, now)
            needed.append((meter, cost))
        for meter, cost in needed:
            meter.take(cost, now)
        return Grant(self, needed, tokens)

    def plan(self, key: ApiKey) -> Plan:
        """The limits of a key."""
        known = self._plans.get(key.id)
        if known is not None and known[0] is key:
            return known[1]
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        plan = plan_of(self._settings, key.limits)
        self._plans[key.id] = key, plan
        return plan

    def sweep(self) -> None:
        """Forget what is as good as new, longest unused first."""
        now = self.clock()
        for _ in range(min(len(self._meters), _SWEPT_AT_ONCE)):
            place, meter = next(iter(self._meters.items()))
            if meter.open:
                self._meters.move_to_end(place)
                continue
            if not meter.can_go(now, self.standing) and len(self._meters) <= MOST_METERS:
                return
            self._forget(place)

    def _meter(self, key_id: str, user: str | None, kind: Kind, limit: int, now: float) -> AnyMeter:
        place = key_id, user, kind
        meter = self._meters.get(place)
        if meter is None:
            subject = key_id
            if user is not None:
                subject += ":" + self._keyring.hashed(key_id, "limit", user)
            made = Places if kind == "concurrency" else Bucket
            meter = made(keys.limit(subject, kind), kind, limit, now)
            meter.serial = next(self._serials)
            self._meters[place] = meter
            if len(self._meters) > MOST_METERS:
                self.sweep()
        else:
            self._meters.move_to_end(place)
            meter.limit = limit
        return meter

    def _forget(self, place: tuple[str, str | None, Kind]) -> None:
        meter = self._meters.pop(place)
        self.leased.pop(meter.name, None)

    def _refusal(
        self, key: ApiKey, whose: str, meter: AnyMeter, cost: float, now: float
    ) -> RateLimited:
        metrics.RATE_LIMITED.labels(f"{whose}_{meter.kind}").inc()
        of = f"key {key.id}" if whose == "key" else f"this end user of key {key.id}"
        headers = headers_of([meter], now) if isinstance(meter, Bucket) else []
        if cost > meter.limit:
            wait = _NEVER_SECONDS
            why = f"this request may take {cost:.0f}: ask for fewer with `max_tokens`"
            headers.append((b"x-should-retry", b"false"))
        else:
            meter.refuse(cost, now)
            wait = whole_seconds(meter.wait(cost, now))
            why = f"try again in {wait} s"
        error = RateLimited(
            f"the limit of {of} is reached, {meter.limit} {_UNITS[meter.kind]}; {why}",
            retry_after=wait,
            code="rate_limit_exceeded",
        )
        error.headers = headers
        return error


def _all(plan: Plan) -> Iterator[tuple[str, tuple[Kind, int]]]:
    for limit in plan.key:
        yield "key", limit
    for limit in plan.user:
        yield "user", limit
