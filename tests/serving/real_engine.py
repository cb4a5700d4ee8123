"""A real vLLM for tests: how it is described, started and stopped, and how a gateway reaches it."""

import asyncio
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from core.engine.client import EngineClient
from core.engine.launch import EngineSpec, start_engine, stop_engine, wait_until_ready
from core.keyring import Keyring


def engine_spec(folder: Path, model: Path, *, version: str, name: str = "e") -> EngineSpec:
    """An engine whose socket, log and secrets are in the folder."""
    keyring = Keyring(folder / "secrets")
    return EngineSpec(
        model=model,
        socket=folder / f"{name}.sock",
        served_name="instructloop",
        policy_version=version,
        data_token=keyring.token("engine-data.token"),
        control_token=keyring.token("engine-control.token"),
        log=folder / f"{name}.log",
        max_num_seqs=8,
    )


@contextmanager
def running_engine(spec: EngineSpec) -> Iterator[subprocess.Popen[bytes]]:
    """The engine's process, from when it answers until the block ends."""
    process = start_engine(spec)

    async def ready() -> None:
        async with control(spec) as client:
            await wait_until_ready(client, process, timeout=240, log=spec.log)

    try:
        with ThreadPoolExecutor() as beside:  # a test's own loop may run in this thread
            beside.submit(lambda: asyncio.run(ready())).result()
        yield process
    finally:
        stop_engine(process, 20)


def control(spec: EngineSpec) -> EngineClient:
    """A client with both tokens."""
    return EngineClient(
        socket=spec.socket, data_token=spec.data_token, control_token=spec.control_token
    )


def share_data_token(spec: EngineSpec, state_dir: Path) -> None:
    """Let a gateway with this state folder talk to the engine."""
    secrets = state_dir / "secrets"
    secrets.mkdir(mode=0o700, exist_ok=True)
    (secrets / "engine-data.token").touch(mode=0o600)
    (secrets / "engine-data.token").write_text(spec.data_token)
