"""The second engine of a canary on a machine with one: started, kept alive and sent away by `up`.

By looking, as everything here: each second the canary in Redis is compared with the processes. So
`up` that is killed takes the engine with it and starts it again if the canary is still on, and an
engine of users never depends on the one that is on trial. Whoever begins a canary may be anywhere;
that there is room here is said by a key that expires. Judges nothing: learning/canary/presence.py
ends a canary whose engine does not come.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from core import canary, keys
from core.canary import SECOND_ENGINE, Release
from core.engine.launch import is_cpu_build
from core.errors import Unavailable
from core.records import Replica
from core.redis_client import Redis, connect, redis_errors, redis_url
from core.settings import Settings
from deploy.supervisor import Child, Supervisor, own_command

LOOK_SECONDS = 1.0
MEASURE_SECONDS = 5.0
ROOM_EXPIRES_SECONDS = 15
RESERVE_SHARE = 0.25
"""Of the free memory, for what learning and caches take while two engines run."""
STOP_SECONDS = 160.0
"""Replies end first (serving/agent.py), then vLLM does."""
_PATIENCE_SECONDS = 2.0
_FIRST_ENGINE = "engine-0"
_CGROUP = Path("/sys/fs/cgroup")


def second_engine_fits(available_bytes: int, engine_bytes: int, share_of_reserve: float) -> bool:
    """Whether an engine of this size leaves this share of what is available now."""
    return 0 < engine_bytes <= available_bytes * (1.0 - share_of_reserve)


def may_have(settings: Settings) -> bool:
    """Whether this `up` ever runs a second engine: never beside several, others' or on a GPU.

    vLLM takes its share of a GPU's memory when it starts, so that no second one would fit.
    """
    engine, wanted = settings.engine, settings.canary.second_engine == "auto"
    return wanted and engine.count == 1 and not engine.urls and is_cpu_build()


def is_needed(release: Release, heard: Iterable[Replica], *, runs: bool) -> bool:
    """Whether the second engine should run: for a canary, and then until another took over.

    After a promotion it has the live version first, and stays while no other is ready with it.
    """
    on = release.split
    if on is not None and on.second_engine:
        return True
    others = [replica for replica in heard if replica.name != SECOND_ENGINE]
    return runs and not any((of.state, of.version) == ("ready", release.target) for of in others)


@contextmanager
def canary_engine(
    supervisor: Supervisor, settings: Settings, logs: Path
) -> Iterator[Callable[[], None]]:
    """Gives what `up` calls often, from the thread that lives as long as its children."""
    if not may_have(settings):
        yield lambda: None
        return
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        redis = runner.run(stack.enter_async_context(connect(redis_url(settings), timeout=1.0)))
        watch = Watch(supervisor, settings, logs / f"{SECOND_ENGINE}.log")
        try:
            yield lambda: watch.look_when_due(runner, redis)
        finally:
            runner.run(stack.aclose())


class Watch:
    """When was looked last, and how."""

    def __init__(self, supervisor: Supervisor, settings: Settings, log: Path) -> None:
        self._supervisor, self._settings, self._log = supervisor, settings, log
        self._look_at = self._measure_at = 0.0

    def look_when_due(self, runner: asyncio.Runner, redis: Redis) -> None:
        """Look once a second; with Redis away all stays as it is."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        with suppress(Unavailable, TimeoutError):
            runner.run(self.look(redis))

    async def look(self, redis: Redis) -> None:
        """Start the engine, send it away, or say whether there is room. Raises Unavailable."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            with redis_errors():
                release, heard = await canary.read(redis), await canary.heard(redis)
                child = self._child()
                if is_needed(release, heard, runs=child is not None):
                    if child is None:
                        self._start()
                elif child is not None:
                    self._supervisor.retire(child)
                await self._tell_room(redis, heard)

    def _child(self) -> Child | None:
        return next((of for of in self._supervisor.children if of.name == SECOND_ENGINE), None)

    def _start(self) -> None:
        self._supervisor.say(f"starting {SECOND_ENGINE} for a canary")
        child = Child(
            name=SECOND_ENGINE,
            command=own_command("engine", "--canary"),
            log=self._log,
            stop_seconds=STOP_SECONDS,
        )
        self._supervisor.start(child, before="gateway")

    async def _tell_room(self, redis: Redis, heard: Iterable[Replica]) -> None:
        """Renew the key while an engine is ready that shows how much another would take."""
        if time.monotonic() < self._measure_at:
            return
        self._measure_at = time.monotonic() + MEASURE_SECONDS
        ready = any((of.name, of.state) == (_FIRST_ENGINE, "ready") for of in heard)
        if ready and (self._child() is not None or self._fits()):
            await redis.set(keys.canary_room(), "1", ex=ROOM_EXPIRES_SECONDS)
        else:
            await redis.delete(keys.canary_room())

    def _fits(self) -> bool:
        first = next((of for of in self._supervisor.children if of.name == _FIRST_ENGINE), None)
        if first is None or first.process is None:
            return False
        caches = self._settings.engine.kv_cache_gib << 30  # it may not have touched all yet
        size = resident_bytes(first.process.pid)
        return second_engine_fits(available_bytes(), size and size + caches, RESERVE_SHARE)


def resident_bytes(pid: int) -> int:
    """Memory of a process and all it started; pages that they share count for each. 0: gone."""
    try:
        root = psutil.Process(pid)
        return sum(of.memory_info().rss for of in (root, *root.children(recursive=True)))
    except psutil.Error:  # one ended meanwhile: the next look counts again
        return 0


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Memory that could be taken now, of the machine or of this container, whichever is less."""
    machine = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return machine
    figures = dict(line.split(maxsplit=1) for line in lines)
    return min(machine, limit - used + int(figures.get("inactive_file", 0)))
