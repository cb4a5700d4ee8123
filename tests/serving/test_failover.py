"""One of two engine processes is killed under load: only the streams that were in it are lost."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.serving.conftest import announce, running_gateway
from tests.serving.load import Load, load_on
from tests.serving.real_engine import engine_spec, running_engine, share_data_token

CLIENTS = 32
FIRST, SECOND = "v000a", "v000b"


@contextmanager
def engine_process(socket: Path, version: str):
    """An engine double in a process of its own."""
    arguments = [sys.executable, "-m", "tests.serving.engine_double", str(socket), version]
    process = subprocess.Popen(arguments)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def answers(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    writer.close()
    return True


async def test_one_of_two_engines_killed_under_load_loses_only_the_streams_that_were_in_it(
    gateway_settings, redis, state_dir
):
    a, b = state_dir / "a.sock", state_dir / "b.sock"
    with ExitStack() as processes:
        doomed = processes.enter_context(engine_process(a, FIRST))
        processes.enter_context(engine_process(b, SECOND))
        await eventually(lambda: answers(a), seconds=30)
        await eventually(lambda: answers(b), seconds=30)
        await announce(redis, f"unix:{a}", name="a", version=FIRST)
        await announce(redis, f"unix:{b}", name="b", version=SECOND)
        async with (
            running_gateway(gateway_settings, redis) as gateway,
            load_on(gateway, clients=CLIENTS) as load,
        ):
            await eventually(lambda: load.answered_by(FIRST) > 20 < load.answered_by(SECOND))
            await eventually(lambda: load.streaming_from(FIRST))
            doomed.kill()
            asked_before = set(map(id, load.outcomes))
            seen, other = load.answered_by(FIRST), load.answered_by(SECOND)
            await eventually(lambda: load.answered_by(SECOND) > other + 2 * CLIENTS)
            # its agent would start it again; its heartbeat never ended here
            processes.enter_context(engine_process(a, FIRST))
            await eventually(lambda: load.answered_by(FIRST) > seen + CLIENTS, seconds=30)
    lost = [said for said in load.outcomes if not said.whole]
    assert all(said.stream and said.engine == FIRST for said in lost)
    assert all("broke off" in (said.error or "") for said in lost)
    assert {id(said) for said in lost} <= asked_before
    assert 0 < len(lost) <= CLIENTS // 2
    assert len(load.outcomes) > 5 * CLIENTS


def under_way(load: Load) -> set[int]:
    """The requests that have no end yet."""
    return {id(said) for said in load.outcomes if not said.whole and not said.error}


@pytest.mark.slow
async def test_a_vllm_that_hangs_and_comes_back_and_is_killed_under_load_costs_only_its_streams(
    vllm, redis, gateway_settings, state_dir
):
    spec = engine_spec(vllm.socket.parent, vllm.model, name="f", version="v0001")
    share_data_token(vllm, state_dir)
    often = {"probe_interval_seconds": 0.5, "probe_timeout_seconds": 3.0}
    group = gateway_settings.gateway.model_copy(update=often)
    settings = gateway_settings.model_copy(update={"gateway": group})
    answer = {"max_tokens": 12, "extra_body": {"ignore_eos": True}}
    with running_engine(spec) as doomed:
        await announce(redis, f"unix:{vllm.socket}", name="a", version="v0000")
        await announce(redis, f"unix:{spec.socket}", name="b", version="v0001")
        async with running_gateway(settings, redis) as gateway:
            (second,) = [e for e in gateway.app.state.services.replicas if e.name == "b"]
            async with load_on(gateway, clients=CLIENTS, **answer) as load:

                async def both_answer() -> None:
                    a, b = load.answered_by("v0000"), load.answered_by("v0001")
                    await eventually(lambda: load.answered_by("v0000") > a + 8, seconds=60)
                    await eventually(lambda: load.answered_by("v0001") > b + 8, seconds=60)
                    await eventually(lambda: load.streaming_from("v0001"))

                await both_answer()
                os.killpg(doomed.pid, signal.SIGSTOP)
                excused = under_way(load)
                await eventually(lambda: not second.breaker.closed, seconds=30)
                others = load.answered_by("v0000")
                await eventually(lambda: load.answered_by("v0000") > others + CLIENTS, seconds=60)
                os.killpg(doomed.pid, signal.SIGCONT)
                await eventually(lambda: second.breaker.closed, seconds=30)
                await both_answer()
                os.killpg(doomed.pid, signal.SIGKILL)
                excused |= under_way(load)
                others = load.answered_by("v0000")
                await eventually(lambda: load.answered_by("v0000") > others + CLIENTS, seconds=60)
            lost = [said for said in load.outcomes if not said.whole]
            assert {id(said) for said in lost} <= excused
            assert all(said.stream and said.engine == "v0001" for said in lost)
            assert all(said.error for said in lost)
            assert lost
