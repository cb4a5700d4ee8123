"""Whether the engine that was started for a canary is there, as one who judges the canary sees it.

Until it first serves, users of both sides get the live version. What they say then is of neither:
that a candidate is no worse than itself would be shown by an engine that never came. So a canary
counts from the moment in which its engine serves, and ends if that does not come or is over for
long. Reads heartbeats; starts nothing (deploy/canary_engine.py does).
"""

from dataclasses import dataclass

from core import canary as canaries
from core import keys
from core.canary import SECOND_ENGINE, Canary
from core.redis_client import Redis

HEARD_SECONDS = 2.0
"""After so long every gateway has heard of an engine that serves."""


@dataclass(frozen=True, slots=True)
class Presence:
    """Times in seconds since 1970."""

    served_from: float | None = None
    """Since when users have been answered by it; None before."""
    absent_from: float | None = None
    """When it was first missed, without a look since that found it; None while it serves."""
    detail: str = ""
    """What it says itself."""

    @property
    def fields(self) -> dict[str, str]:
        """As it is kept beside the evidence."""
        times = {"served_from": self.served_from, "absent_from": self.absent_from}
        return {name: "" if at is None else repr(at) for name, at in times.items()}

    def missing_for(self, patience: float, *, now: float) -> str:
        """Why the canary must end: its engine has not served for so many seconds; else empty."""
        if self.absent_from is None or now - self.absent_from <= patience:
            return ""
        what = "did not come up" if self.served_from is None else "was away"
        said = f": {self.detail}" if self.detail else ""
        return f"the second engine of the canary {what} for {now - self.absent_from:.0f} s{said}"


async def presence(redis: Redis, canary: Canary, *, now: float) -> Presence:
    """What is known of the canary's own engine by now."""
    said = [of for of in await canaries.heard(redis) if of.name == SECOND_ENGINE]
    kept = await redis.hmget(keys.canary_units(), ["served_from", "absent_from"])
    since, missed = (float(raw) if raw else None for raw in kept)
    if any(canaries.serves(replica, canary.candidate) for replica in said):
        since, missed = since or now + HEARD_SECONDS, None
    else:  # counted from a look, so that a night in which nothing ran is no absence
        missed = missed or now
    return Presence(since, missed, said[0].detail if said else "")
