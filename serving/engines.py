"""One engine as the gateway sees it: where it is, what it serves, how well it is.

Changed by heartbeats (serving/replicas.py), replies (serving/relay.py) and probes
(serving/health.py). Opens no connection and chooses nothing.
"""

import asyncio
import hashlib
import logging
import random
import time
from dataclasses import dataclass, field

from core import metrics
from serving.breaker import Breaker
from serving.requests import MODEL

log = logging.getLogger(__name__)
_AVOID_SECONDS = 1.0  # after a failure others are asked first for so long


@dataclass(slots=True, eq=False)
class Engine:
    """Equal only to itself. Times are on the monotonic clock."""

    name: str
    url: str
    """`http://host:port` or `unix:PATH`."""
    version: str
    state: str
    model: str = MODEL
    """The name under which the engine knows its model."""
    fixed: bool = False
    is_vllm: bool = True
    feedback_off: str | None = None
    """Why replies of this engine take no feedback: it gives them ids of its own."""
    in_flight: int = 0
    avoid_until: float = 0.0
    silent_since: float | None = None
    well_at: float = float("-inf")
    """When it last gave a sign of life."""
    breaker: Breaker = field(default_factory=Breaker)
    replies: set[asyncio.Timeout] = field(default_factory=set)
    """The patience of each request that it is answering."""
    jitter: float = field(default_factory=lambda: random.uniform(0.8, 1.2))
    """Stretches the time between probes, so that gateways do not probe in step."""
    point: int = field(init=False)
    """Its place among all engines: the same in every gateway."""

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.name.encode(), digest_size=8).digest()
        self.point = int.from_bytes(digest)

    @property
    def shown_state(self) -> str:
        """Its state, or `unhealthy` while the breaker is open though its agent sees no trouble."""
        serves = self.state in ("ready", "swapping")
        return "unhealthy" if serves and not self.breaker.closed else self.state

    def answered(self) -> None:
        """It answered a request."""
        self.well_at = time.monotonic()
        self.breaker.answered()

    def avoid(self) -> None:
        """It has no time, or not what was asked for: ask others first for a while."""
        self.avoid_until = time.monotonic() + _AVOID_SECONDS

    def failed(self) -> None:
        """It did not answer, or with an error of its own."""
        self.avoid()
        if self.breaker.failed(time.monotonic()):
            metrics.BREAKER_OPENS.labels("requests").inc()
            log.warning("engine %s fails: it is asked no more until a probe succeeds", self.name)

    def proved(self) -> None:
        """A probe succeeded."""
        if not self.breaker.closed:
            log.info("engine %s is well again", self.name)
        self.breaker.close()
        self.well_at, self.avoid_until = time.monotonic(), 0.0

    def disproved(self, why: str) -> None:
        """A probe failed."""
        if self.breaker.open(time.monotonic(), jitter=self.jitter):
            metrics.BREAKER_OPENS.labels("probe").inc()
            log.warning("engine %s failed a probe: %s", self.name, why)

    def abandon(self) -> None:
        """It hangs: what waits for it waits no longer, and can ask another."""
        now = asyncio.get_running_loop().time()
        for patience in self.replies:
            if not patience.expired():
                patience.reschedule(now)
