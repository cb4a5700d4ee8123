"""Which engines there are.

Two kinds: replicas whose agent says every second in Redis what it serves, and fixed URLs of engines
that somebody else runs. `watch` keeps the list; with Redis away the last known list stays, because
engines do not need Redis to answer. Which of them answers is decided in serving/routing.py, how
well each is in serving/health.py. Opens no connection to an engine.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

from core import canary, keys, metrics
from core.canary import Release
from core.errors import Unavailable
from core.records import Replica
from core.redis_client import Redis, redis_errors
from serving.breaker import Breaker
from serving.engines import Engine
from serving.requests import MODEL, model_not_found
from serving.routing import ANY, Wish, choose, wish_for

WATCH_SECONDS = 0.5
_FRESH_SECONDS = 3.0
_REMEMBERED_SECONDS = 60.0
"""With Redis away for so long, users are split no more: nobody knows what came of the canary."""
_WATCH_PATIENCE_SECONDS = 2.0
_SILENCE_SECONDS = 3.0
EXTERNAL_VERSION = "v0000"


class Replicas:
    """All engines, by name."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}
        self._shown: set[tuple[str, str]] = set()
        self._release, self._release_at = Release(), float("-inf")
        self._doubted = False

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

    def wish(self, pinned: str | None, user: Callable[[], str]) -> Wish:
        """Which versions may answer; `user` gives the keyed hash, where it is needed."""
        if pinned is not None:
            return Wish((pinned,), pinned=True)
        silence = time.monotonic() - self._release_at
        if self._release.canary is None or silence > _REMEMBERED_SECONDS:
            return ANY
        split, cohort = self._release.split, None
        if split is not None:
            cohort = canary.cohort_of(user(), split.salt, split.share)
        fresh = silence <= _FRESH_SECONDS and not self._doubted
        return wish_for(self._release, cohort, fresh=fresh, now=time.time())

    def find(self, wish: Wish, tried: Collection[Engine] = (), near: int | None = None) -> Engine:
        """The engine for a wish: of its first version, or of the next.

        Raises Unavailable, and NotFound for a pinned version that nobody serves.
        """
        if wish.pinned or wish == ANY:
            return self.pick(wish.versions[0], tried, near)
        if wish.shunned:
            others = [e for e in self._engines.values() if e.version == wish.shunned]
            with suppress(Unavailable):
                return self.pick(None, [*tried, *others], near)
            return self.pick(None, tried, near)
        now, engines = time.monotonic(), self._engines.values()
        for version in wish.versions:
            engine = choose(engines, version=version, tried=tried, now=now, near=near)
            if engine is not None:
                if wish.candidate and version != wish.candidate:
                    metrics.CANARY_FALLBACKS.inc()
                return engine
        raise Unavailable("no engine of the live version is ready: see /readyz", code="no_engine")

    def follow(self, release: Release) -> None:
        """Take over what should serve whom."""
        self._release, self._release_at = release, time.monotonic()
        self._doubted = False

    def doubt(self) -> None:
        """An engine has swapped unheard: what is known is old until the next look at Redis."""
        self._doubted = True

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
    names, heard, _ = await _look(redis)
    return names, heard


async def refresh(redis: Redis, replicas: Replicas, *, now: float) -> None:
    """Take over what agents say and what should serve whom. Raises Unavailable."""
    names, heard, release = await _look(redis)
    replicas.update(names, heard, now=now)
    replicas.follow(release)


async def _look(redis: Redis) -> tuple[list[str], list[Replica], Release]:
    with redis_errors():
        names = sorted(name.decode() for name in await redis.smembers(keys.replicas()))
        wanted = [keys.target(), keys.canary(), *(keys.replica(name) for name in names)]
        target, on, *raw = await redis.mget(wanted)
    heard = [Replica.model_validate_json(text) for text in raw if text]
    return names, heard, canary.parsed(target, on)


async def watch(redis: Redis, replicas: Replicas) -> None:
    """Keep the list true until cancelled; with Redis away it stays as it was."""
    while True:
        try:
            async with asyncio.timeout(_WATCH_PATIENCE_SECONDS):
                await refresh(redis, replicas, now=time.monotonic())
        except (Unavailable, TimeoutError):
            metrics.REDIS_UP.set(0)
        else:
            metrics.REDIS_UP.set(1)
        await asyncio.sleep(WATCH_SECONDS)
