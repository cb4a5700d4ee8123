"""Which engines there are.

Two kinds: replicas whose agent says every second in Redis what it serves, and fixed URLs of engines
that somebody else runs. `watch` keeps the list; with Redis away the last known list stays, because
engines do not need Redis to answer. Which of them answers is decided in serving/routing.py, how
well each is in serving/health.py. Opens no connection to an engine.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Iterator

from core import keys, metrics
from core.errors import Unavailable
from core.records import Replica
from core.redis_client import Redis, redis_errors
from serving.breaker import Breaker
from serving.engines import Engine
from serving.requests import MODEL, model_not_found
from serving.routing import choose

WATCH_SECONDS = 0.5
_WATCH_PATIENCE_SECONDS = 2.0
_SILENCE_SECONDS = 3.0
EXTERNAL_VERSION = "v0000"


class Replicas:
    """All engines, by name."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}
        self._shown: set[tuple[str, str]] = set()

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines.values())

    def __len__(self) -> int:
        return len(self._engines)

    def add_fixed(self, url: str) -> Engine:
        """An engine that somebody else runs; it takes no traffic before it was probed."""
        engine = Engine(url, url, EXTERNAL_VERSION, "starting", fixed=True)
        self._engines[url] = engine
        return engine

    def pick(
        self, version: str | None, tried: Collection[Engine] = (), near: int | None = None
    ) -> Engine:
        """The engine for a request; `near` is a prompt's point (serving/routing.py).

        Raises Unavailable when none is there, NotFound when those that are ready serve other
        versions than the pinned one.
        """
        now = time.monotonic()
        engine = choose(self._engines.values(), version=version, tried=tried, now=now, near=near)
        if engine is not None:
            return engine
        served = self.versions()
        if served and version is not None and version not in served:
            raise model_not_found(f"{MODEL}@{version}")
        raise Unavailable("no engine is ready: see /readyz", retry_after=1, code="no_engine")

    def versions(self) -> list[str]:
        """The versions that some replica serves now."""
        return sorted({e.version for e in self._engines.values() if e.state == "ready"})

    @property
    def in_flight(self) -> int:
        """Requests that engines are answering now."""
        return sum(engine.in_flight for engine in self._engines.values())

    def can_serve(self) -> bool:
        """Whether a request that came now would find an engine."""
        return choose(self._engines.values(), version=None, tried=(), now=0.0) is not None

    def feedback_off(self) -> list[str]:
        """Why some replies take no feedback."""
        reasons = {e.feedback_off for e in self._engines.values() if e.feedback_off}
        return sorted(reasons)

    def update(self, names: Collection[str], heard: Iterable[Replica], *, now: float) -> None:
        """Take over what agents say.

        Who is not in `names` is gone. Who is, but was not heard, stays as it was for a moment: the
        heartbeats of a Redis that was away have expired, and new ones come within a second.
        """
        engines = {name: engine for name, engine in self._engines.items() if engine.fixed}
        for replica in heard:
            engines[replica.name] = self._heard(replica)
        for name in names:
            silent = self._engines.get(name)
            if name in engines or silent is None:
                continue
            silent.silent_since = silent.silent_since or now
            if now - silent.silent_since <= _SILENCE_SECONDS:
                engines[name] = silent
        self._engines = engines

    def _heard(self, replica: Replica) -> Engine:
        engine = self._engines.get(replica.name)
        now = time.monotonic()
        if engine is None or engine.url != replica.url:
            return Engine(replica.name, replica.url, replica.version, replica.state, well_at=now)
        if replica.state == "ready" != engine.state:  # its agent has just probed it
            engine.breaker, engine.well_at = Breaker(), now
        engine.version, engine.state, engine.silent_since = replica.version, replica.state, None
        return engine

    def show(self) -> None:
        """Set the figures: how many engines are in which state."""
        counts: dict[tuple[str, str], int] = dict.fromkeys(self._shown, 0)
        for engine in self._engines.values():
            label = (engine.version, engine.shown_state)
            counts[label] = counts.get(label, 0) + 1
        for (version, state), count in counts.items():
            metrics.REPLICAS.labels(version, state).set(count)
        self._shown = {label for label, count in counts.items() if count}


async def heartbeats(redis: Redis) -> tuple[list[str], list[Replica]]:
    """The names of all replicas, and what those that are alive said last. Raises Unavailable."""
    with redis_errors():
        names = sorted(name.decode() for name in await redis.smembers(keys.replicas()))
        raw = await redis.mget([keys.replica(name) for name in names]) if names else []
    return names, [Replica.model_validate_json(text) for text in raw if text]


async def watch(redis: Redis, replicas: Replicas) -> None:
    """Keep the list true until cancelled; with Redis away it stays as it was."""
    while True:
        try:
            async with asyncio.timeout(_WATCH_PATIENCE_SECONDS):
                names, heard = await heartbeats(redis)
        except (Unavailable, TimeoutError):
            metrics.REDIS_UP.set(0)
        else:
            metrics.REDIS_UP.set(1)
            replicas.update(names, heard, now=time.monotonic())
        await asyncio.sleep(WATCH_SECONDS)
