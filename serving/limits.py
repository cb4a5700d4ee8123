"""The arithmetic of limits: what one gateway may let in of a budget that all gateways share. Pure.

A budget of L a minute is a bucket that holds L and fills at L/60 a second, kept in Redis. A gateway
holds a slice of it, spends from the slice without asking, and says every 100 ms what it spent
(serving/limit_leases.py, core/lua/lease_limits.lua). A bucket that it has not used for a while it
gives back; the next use starts on credit, at most one slice, which the next report pays for. So
all gateways together let in at most L + t * L/60 in t seconds, and one slice for each gateway more;
a reply of Redis that is lost may cost one slice besides.
Concurrency is alike, but a place comes back when its completion ends. Without Redis a gateway goes
on alone, with `ALONE` of its share. Times are seconds on one monotonic clock, and are handed in.
"""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["requests", "tokens", "concurrency"]
HEADERS = ("limit", "remaining", "reset")
"""Of OpenAI's `x-ratelimit-*`, each for requests and for tokens."""
ALONE = 0.5
"""How much of its share a gateway lets in that hears nothing of the others."""
IDLE_SECONDS = 2.0
"""A slice that was not used for so long goes back."""
FORGET_SECONDS = 60.0
"""Alone, a bucket that was not used for so long is full again, and is forgotten."""
SHOW_SECONDS = 1.0
"""Who has completions open says so this often, to be counted."""
WANT_SECONDS = 3.0
"""How long a refused request counts as one that may come again."""
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Standing:
    """How this gateway stands to the others."""

    gateways: int = 1
    alone: bool = False
    """Redis is away."""

    @property
    def share(self) -> float:
        """The part of a budget that this gateway may count on by itself."""
        return (ALONE if self.alone else 1.0) / self.gateways


class Meter:
    """What is known here of one budget of one subject."""

    __slots__ = (
        *("credit", "kind", "leased", "limit", "name", "open"),
        *("sent_at", "serial", "used_at", "want", "wanted_at"),
    )

    def __init__(self, name: str, kind: Kind, limit: int, now: float) -> None:
        self.name = name
        """The key of Redis that the budget is under."""
        self.kind: Kind = kind
        self.limit = limit
        self.credit = 0.0
        """What may be spent without asking."""
        self.leased = False
        self.open = 0
        """Completions that are not settled."""
        self.serial = 0
        """Tells it from one of the same name that was forgotten."""
        self.want = 0.0
        """The cost of the last request that was refused."""
        self.wanted_at = self.used_at = self.sent_at = now

    def refuse(self, cost: float, now: float) -> None:
        """Remember what was asked for, so that the next slice has room for it."""
        self.want, self.wanted_at = cost, now

    def wanted(self, now: float) -> float:
        """What a slice should hold at least."""
        return self.want if now - self.wanted_at < WANT_SECONDS else 0.0

    def is_idle(self, now: float) -> bool:
        """Whether the slice should go back."""
        return now - max(self.used_at, self.wanted_at) >= IDLE_SECONDS


class Bucket(Meter):
    """A budget by the minute: requests, or tokens."""

    __slots__ = ("_pool", "_pool_at", "acknowledged", "spent")

    def __init__(self, name: str, kind: Kind, limit: int, now: float) -> None:
        super().__init__(name, kind, limit, now)
        self.spent = 0.0
        """All that was ever spent here, less what came back."""
        self.acknowledged = 0.0
        """How much of `spent` Redis knows for certain."""
        self._pool, self._pool_at = float(limit), now

    @property
    def rate(self) -> float:
        """What comes back in a second."""
        return self.limit / 60

    def pool(self, now: float) -> float:
        """What all gateways together have left, as far as is known; below 0 is debt."""
        return min(float(self.limit), self._pool + self.rate * (now - self._pool_at))

    def fits(self, cost: float, now: float, standing: Standing) -> bool:
        """Whether so much may be spent now."""
        if not self.leased:
            slice_ = max(self.limit * standing.share, min(cost, self.limit))
            self.credit = min(slice_, self.pool(now))
            self.leased, self.sent_at = True, now
        return cost <= self.credit + _ROUNDING

    def take(self, cost: float, now: float) -> None:
        """Spend it."""
        self._spend(cost)
        self.open += 1
        self.want, self.used_at = 0.0, now

    def settle(self, cost: float, tokens: float, now: float) -> None:
        """The completion that cost so much has ended, with so many tokens in truth."""
        self.open -= 1
        if self.kind == "tokens":
            self._spend(tokens - cost)
            self.used_at = now

    def _spend(self, amount: float) -> None:
        self.spent += amount
        self.credit -= amount
        self._pool -= amount

    def report(self, now: float) -> tuple[float, float, float]:
        """For Redis: all that was spent, how much of it is known there, the least for a slice."""
        return self.spent, self.acknowledged, self.wanted(now)

    def renew(self, sent: float, granted: float, pool: float, now: float) -> None:
        """A new slice for the report that said `sent`; what was spent since comes off it."""
        since = self.spent - sent
        self.acknowledged = sent
        self.credit = granted - since
        self._pool, self._pool_at = pool - since, now

    def go_alone(self, seconds: float, now: float, standing: Standing) -> None:
        """Redis was away for the last seconds: fill up by our own, stricter."""
        most = max(self.limit * standing.share, self.wanted(now))
        self.credit = min(most, self.credit + self.rate * standing.share * seconds)

    def is_due(self, now: float) -> bool:
        """Whether there is something to report."""
        return self.spent != self.acknowledged or self.wanted(now) > 0

    def can_go(self, now: float, standing: Standing) -> bool:
        """Whether forgetting it changes nothing."""
        if self.open:
            return False
        if standing.alone and now - self.used_at >= FORGET_SECONDS:
            return True
        return not self.leased and self.pool(now) >= self.limit

    def wait(self, cost: float, now: float) -> float:
        """Seconds until so much should be there."""
        return max(0.0, cost - self.pool(now)) / self.rate


class Places(Meter):
    """A budget of completions at one time."""

    __slots__ = ()

    def fits(self, cost: float, now: float, standing: Standing) -> bool:
        """Whether one more may begin."""
        if not self.leased:
            self.credit = max(1.0, self.limit * standing.share)
            self.leased, self.sent_at = True, now
        return self.open + cost <= self.credit + _ROUNDING

    def take(self, cost: float, now: float) -> None:
        """One more has begun."""
        self.open += 1
        self.want, self.used_at = 0.0, now

    def settle(self, cost: float, tokens: float, now: float) -> None:
        """One has ended."""
        self.open -= 1
        self.used_at = now

    def report(self, now: float) -> tuple[float, float, float]:
        """For Redis: how many are open, nothing, how many more there should be room for."""
        return float(self.open), 0.0, self.wanted(now)

    def renew(self, sent: float, granted: float, pool: float, now: float) -> None:
        """So many may be open here until the next report."""
        self.credit = granted

    def go_alone(self, seconds: float, now: float, standing: Standing) -> None:
        """Redis is away: a smaller number, but one at least."""
        self.credit = max(1.0, self.limit * standing.share)

    def is_due(self, now: float) -> bool:
        """Whether there is something to report."""
        changed = self.used_at >= self.sent_at or self.wanted(now) > 0
        return changed or (self.open > 0 and now - self.sent_at >= SHOW_SECONDS)

    def is_idle(self, now: float) -> bool:
        """Whether all places should go back."""
        return self.open == 0 and super().is_idle(now)

    def can_go(self, now: float, standing: Standing) -> bool:
        """Whether forgetting it changes nothing."""
        return self.open == 0 and (not self.leased or (standing.alone and self.is_idle(now)))

    def wait(self, cost: float, now: float) -> float:
        """Nobody knows when a completion ends."""
        return 1.0


def estimated_tokens(prompt_chars: int, choices: int, most: int | None, default: int) -> int:
    """What a completion may cost before it is known: four characters of a prompt are a token."""
    return -(-prompt_chars // 4) + choices * (default if most is None else most)


def whole_seconds(seconds: float) -> int:
    """For `Retry-After`."""
    return max(1, math.ceil(seconds))


def duration(seconds: float) -> str:
    """A time as OpenAI's headers have it: `12ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def headers_of(buckets: list[Bucket], now: float) -> list[tuple[bytes, bytes]]:
    """OpenAI's `x-ratelimit-*` headers; of two budgets of a kind the one with less left."""
    said: list[tuple[bytes, bytes]] = []
    for kind in ("requests", "tokens"):
        of_kind = [(bucket.pool(now), bucket) for bucket in buckets if bucket.kind == kind]
        if not of_kind:
            continue
        left, bucket = of_kind[0] if len(of_kind) == 1 else min(of_kind, key=lambda one: one[0])
        reset = duration((bucket.limit - left) / bucket.rate)
        said += (
            (b"x-ratelimit-limit-%b" % kind.encode(), b"%d" % bucket.limit),
            (b"x-ratelimit-remaining-%b" % kind.encode(), b"%d" % max(0, int(left + _ROUNDING))),
            (b"x-ratelimit-reset-%b" % kind.encode(), reset.encode()),
        )
    return said
