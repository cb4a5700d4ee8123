"""`up` runs a second engine for a canary's length: real processes, a real Redis."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from core import canary, keys, loop, registry
from core.canary import SECOND_ENGINE, Canary, Release
from core.records import Replica
from core.redis_client import connect
from core.settings import Settings
from deploy import canary_engine
from deploy.canary_engine import (
    Watch,
    available_bytes,
    is_needed,
    may_have,
    resident_bytes,
    second_engine_fits,
)
from deploy.supervisor import Child, Supervisor
from tests.conftest import eventually
from tests.core.test_canary import replica
from tests.core.test_registry import publish

GIB = 1 << 30
WAITS = [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.mark.parametrize(
    ("available", "engine", "share", "fits"),
    [
        (8 * GIB, 6 * GIB, 0.25, True),
        (8 * GIB, 6 * GIB + 1, 0.25, False),
        (8 * GIB, 8 * GIB, 0.0, True),
        (8 * GIB, 0, 0.25, False),  # nobody knows how large it would be
        (-1, 1, 0.25, False),  # over its container's limit
    ],
)
def test_it_fits_if_the_reserve_stays_free(available, engine, share, fits):
    assert second_engine_fits(available, engine, share) is fits


def test_it_is_for_one_engine_of_our_own_on_a_cpu(state_dir, monkeypatch):
    settings = Settings(state_dir=state_dir)
    for is_cpu in (True, False):
        monkeypatch.setattr(canary_engine, "is_cpu_build", lambda is_cpu=is_cpu: is_cpu)
        assert may_have(settings) is is_cpu
    monkeypatch.setattr(canary_engine, "is_cpu_build", lambda: True)
    for changed in (
        {"canary": {"second_engine": "never"}},
        {"engine": {"count": 2}},
        {"engine": {"urls": ("http://elsewhere",)}},
    ):
        assert not may_have(Settings(state_dir=state_dir, **changed))


def release(state: str, target: str, *, second_engine: bool = True) -> Release:
    on = Canary(
        candidate="v0001",
        parent="v0000",
        share=0.5,
        salt="s",
        mode="split",
        started_at=0.0,
        state=state,
        second_engine=second_engine,
    )
    return Release(target=target, canary=on)


@pytest.mark.parametrize(
    ("state", "target", "first", "runs", "needed"),
    [
        ("running", "v0000", ("ready", "v0000"), False, True),
        ("running", "v0000", ("ready", "v0000"), True, True),
        ("stopped", "v0000", ("ready", "v0000"), True, False),
        ("stopped", "v0000", ("starting", ""), True, True),  # nobody else would answer
        ("stopped", "v0000", ("starting", ""), False, False),
        ("promoted", "v0001", ("ready", "v0000"), True, True),
        ("promoted", "v0001", ("swapping", "v0000"), True, True),
        ("promoted", "v0001", ("ready", "v0001"), True, False),
    ],
)
def test_it_is_needed_for_the_canary_and_until_another_took_over(
    state, target, first, runs, needed
):
    own = Replica(
        name=SECOND_ENGINE, url="unix:/c", version=target, state="ready", detail="", seen_at=0.0
    )
    other = own.model_copy(update={"name": "engine-0", "state": first[0], "version": first[1]})
    assert is_needed(release(state, target), [own, other], runs=runs) is needed


def test_a_canary_over_several_replicas_needs_none():
    assert not is_needed(release("running", "v0000", second_engine=False), [], runs=False)


def test_a_container_that_has_less_than_its_machine_counts(tmp_path):
    machine = available_bytes(tmp_path / "none")
    assert machine > 0
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) > 0
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300\n")
    assert available_bytes(tmp_path) == 1300


def test_what_a_process_started_counts_for_it():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        alone = resident_bytes(os.getpid())
        assert alone > 1 << 20
        process.stdin.close()
        process.wait(20)
    assert resident_bytes(process.pid) == 0


# --- with processes -------------------------------------------------------------------------


@pytest.fixture
async def service(redis, state_dir, tmp_path, monkeypatch):
    """A supervisor with stand-ins for an engine and a gateway, and a worker that is alive."""
    monkeypatch.setattr(canary_engine, "own_command", lambda *arguments: WAITS)
    monkeypatch.setattr(canary_engine, "available_bytes", lambda: 64 * GIB)
    await publish(redis, "v0000", "v0001")
    await registry.promote(redis, "v0000", who="test", why="first")
    await loop.heartbeat(redis)
    await replica(redis, "engine-0")
    said: list[str] = []
    supervisor = Supervisor(say=said.append)
    for name in ("engine-0", "gateway"):
        supervisor.start(Child(name, WAITS, tmp_path / f"{name}.log", stop_seconds=5.0))
    watch = Watch(supervisor, Settings(state_dir=state_dir), tmp_path / "canary.log")
    yield supervisor, watch, said
    supervisor.stop()


def names(supervisor) -> list[str]:
    return [child.name for child in supervisor.children]


async def begin(redis, watch) -> Canary:
    await watch.look(redis)
    return await canary.start(redis, "v0001", share=0.5, who="test", why="to see")


async def gone(supervisor) -> None:
    def left() -> bool:
        supervisor.tend()
        return SECOND_ENGINE not in names(supervisor)

    await eventually(left)


async def test_it_runs_from_the_first_look_to_the_end_of_the_canary(redis, service):
    supervisor, watch, said = service
    begun = await begin(redis, watch)
    assert begun.second_engine
    assert names(supervisor) == ["engine-0", "gateway"]
    for _ in range(2):
        await watch.look(redis)
        assert names(supervisor) == ["engine-0", SECOND_ENGINE, "gateway"]
    own = supervisor.children[1].process
    await canary.stop(redis, who="test", why="enough")
    await watch.look(redis)
    await gone(supervisor)
    assert own.returncode == -signal.SIGTERM
    assert said == [f"starting {SECOND_ENGINE} for a canary", f"{SECOND_ENGINE} has left"]


async def test_after_a_promotion_it_stays_until_the_first_engine_has_swapped(redis, service):
    supervisor, watch, _ = service
    begun = await begin(redis, watch)
    await watch.look(redis)
    await canary.end(redis, begun, "promoted", who="test", why="good")
    await watch.look(redis)
    assert not supervisor.children[1].retire_by
    await replica(redis, "engine-0", version="v0001")
    await watch.look(redis)
    await gone(supervisor)
    assert names(supervisor) == ["engine-0", "gateway"]


async def test_one_that_is_killed_is_started_again_while_the_canary_is_on(redis, service):
    supervisor, watch, _ = service
    await begin(redis, watch)
    await watch.look(redis)
    first = supervisor.children[1].process
    first.kill()
    first.wait()

    def again() -> bool:
        supervisor.tend()
        return supervisor.children[1].alive

    await eventually(again)
    assert supervisor.children[1].process.pid != first.pid


async def test_another_supervisor_finds_the_canary_on_and_starts_it(redis, service, tmp_path):
    supervisor, watch, _ = service
    await begin(redis, watch)
    later = Watch(supervisor, Settings(), tmp_path / "canary.log")
    await later.look(redis)
    assert SECOND_ENGINE in names(supervisor)


async def test_without_room_or_a_ready_engine_none_is_offered(redis, service, monkeypatch):
    _, watch, _ = service
    monkeypatch.setattr(canary_engine, "MEASURE_SECONDS", 0.0)
    await watch.look(redis)
    assert await redis.exists(keys.canary_room())
    await replica(redis, "engine-0", state="starting")
    await watch.look(redis)
    assert not await redis.exists(keys.canary_room())
    await replica(redis, "engine-0")
    monkeypatch.setattr(canary_engine, "available_bytes", lambda: GIB)
    await watch.look(redis)
    assert not await redis.exists(keys.canary_room())


async def test_a_child_that_does_not_leave_in_its_time_is_killed(tmp_path):
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)\n"
    log = tmp_path / "deaf.log"
    supervisor = Supervisor(say=lambda line: None)
    command = [sys.executable, "-c", deaf + "while True: signal.pause()"]
    supervisor.start(Child(SECOND_ENGINE, command, log, stop_seconds=0.2))
    child = supervisor.children[0]
    await eventually(lambda: "deaf" in log.read_text())
    supervisor.retire(child)
    await gone(supervisor)
    assert child.process.returncode == -signal.SIGKILL


def test_looks_go_on_when_redis_was_away(redis_server, state_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(canary_engine, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(canary_engine, "own_command", lambda *arguments: WAITS)

    async def begin() -> None:
        async with connect(redis_server.url) as redis:
            await publish(redis, "v0000", "v0001")
            await registry.promote(redis, "v0000", who="test", why="first")
            await loop.heartbeat(redis)
            await redis.set(keys.canary_room(), "1")
            await canary.start(redis, "v0001", share=0.5, who="test", why="to see")

    supervisor = Supervisor(say=lambda line: None)
    settings = Settings(state_dir=state_dir, redis_url=redis_server.url)
    try:
        with canary_engine.canary_engine(supervisor, settings, tmp_path) as look:
            look()
            redis_server.kill()
            look()
            assert names(supervisor) == []
            redis_server.start()
            asyncio.run(begin())
            look()
            assert names(supervisor) == [SECOND_ENGINE]
    finally:
        supervisor.stop()
