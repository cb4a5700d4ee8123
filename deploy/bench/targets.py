"""What is measured, as processes of their own: the engine, a pass-through, LiteLLM, the gateway.

Each is one worker in front of the same engine on a port of this machine. The gateway runs as it
does in production, with keys, limits and its log, on a Redis that syncs every write. Everything is
gone when the `with` block ends. Knows how to start them; deploy/bench/figures.py asks them.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from core import keys
from core.auth import create_key
from core.errors import StartError, Unavailable
from core.process import wrapped
from core.records import ApiKey, KeyLimits, Replica, Scope
from core.redis_client import Redis, connect, local_redis_url, redis_errors
from core.settings import PREFIX
from deploy.redis_server import redis_command

DIRECT, PASS_THROUGH, LITELLM, GATEWAY = "direct", "pass-through", "litellm", "gateway"
PEERS = Path(__file__).resolve().parents[2] / ".venv-peers"
_START_SECONDS = 120.0
_TRIM_SECONDS = 0.25
_ENGINE = "bench"


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers completions; `pid` is its process, where there is one of ours."""

    name: str
    address: str
    """HOST:PORT, or the path of a socket."""
    pid: int

    def processor_seconds(self) -> float:
        """Processor time that it has used so far, its own and the kernel's for it."""
        *_, after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")
        user, system = after_name.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Its memory now, page by page: the kernel's running count is only about right."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


@dataclass(frozen=True, slots=True)
class Service:
    """A gateway with its Redis, in front of an engine, and a key for it."""

    gateway: Target
    redis_url: str
    secret: str


@contextmanager
def folder_in(state_dir: Path) -> Iterator[Path]:
    """A folder for one measurement, on the disk that the service would use."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=state_dir.resolve()) as folder:
        yield Path(folder)


@contextmanager
def instant_engine() -> Iterator[Target]:
    """The engine that answers at once."""
    port = free_port()
    with child("engine", str(port)) as process:
        yield listening(DIRECT, port, process)


@contextmanager
def pass_through(engine: Target) -> Iterator[Target]:
    """What Starlette and aiohttp cost: neither keys nor log."""
    port = free_port()
    with child("bare", engine.address, str(port)) as process:
        yield listening(PASS_THROUGH, port, process)


@contextmanager
def service(folder: Path, engine_url: str, *, redis_url: str | None = None) -> Iterator[Service]:
    """A gateway with `folder` as its state, in front of an engine.

    Raises StartError, also when the Redis that was given is not empty.
    """
    with ExitStack() as stack:
        if redis_url is None:
            url = stack.enter_context(_redis(folder))
            _, secret = asyncio.run(prepare(url, engine_url))
        else:
            url = redis_url
            _, secret = asyncio.run(prepare(url, engine_url))
            stack.callback(lambda: asyncio.run(_leave_empty(url)))
        port = free_port()
        process = stack.enter_context(child("gateway", str(folder), url, str(port)))
        yield Service(listening(GATEWAY, port, process), url, secret)


def litellm_missing() -> str | None:
    """Why LiteLLM cannot be measured; None if it can."""
    if (PEERS / "bin" / "litellm").exists():
        return None
    return "LiteLLM is not installed here (deploy/install.sh peers does it): measuring without it"


@contextmanager
def litellm(engine: Target, secret: str, folder: Path) -> Iterator[Target]:
    """LiteLLM's proxy with one worker and a master key, without a database or a log."""
    port = free_port()
    model = {
        "model": "openai/instructloop",
        "api_base": f"http://{engine.address}/v1",
        "api_key": "none",
    }
    config = folder / "litellm.yaml"  # JSON is YAML
    settings = {
        "model_list": [{"model_name": "instructloop", "litellm_params": model}],
        "general_settings": {"master_key": secret},
        "litellm_settings": {"telemetry": False},
    }
    config.write_text(json.dumps(settings))
    command = [str(PEERS / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    environment = {name: value for name, value in os.environ.items() if PREFIX not in name}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with (folder / "litellm.log").open("ab") as log:
        process = subprocess.Popen(
            wrapped([*command, "--port", str(port), "--num_workers", "1"]),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
        )
    try:
        yield listening(LITELLM, port, process)
    finally:
        end_process(process)


@asynccontextmanager
async def taking_from_inbox(redis_url: str) -> AsyncIterator[None]:
    """Keep the inbox short, as ingest does, which is not what is measured here."""
    async with connect(redis_url) as redis:
        taking = asyncio.create_task(_take(redis))
        try:
            yield
        finally:
            taking.cancel()


async def _take(redis: Redis) -> None:
    while True:
        await redis.xtrim(keys.inbox(), maxlen=0)
        await asyncio.sleep(_TRIM_SECONDS)


async def prepare(
    url: str,
    engine_url: str,
    *,
    scopes: Sequence[Scope] = ("complete",),
    limits: KeyLimits | None = None,
) -> tuple[ApiKey, str]:
    """Announce the engine and make a key with its secret, once Redis answers."""
    async with connect(url) as redis:
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                with redis_errors():
                    await redis.ping()
                break
            except Unavailable:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.05)
        if await redis.dbsize():
            raise StartError("this Redis holds data: give an empty one, or none")
        replica = Replica(
            name=_ENGINE, url=engine_url, version="v0000", state="ready", seen_at=time.time()
        )
        await redis.sadd(keys.replicas(), replica.name)
        await redis.set(keys.replica(replica.name), replica.model_dump_json())
        return await create_key(redis, name="bench", tenant="bench", scopes=scopes, limits=limits)


async def _leave_empty(url: str) -> None:
    """Remove what a measurement wrote: it began with nothing."""
    async with connect(url) as redis:
        async for name in redis.scan_iter(match=f"{keys.PREFIX}*"):
            await redis.unlink(name)


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(
            wrapped(redis_command(folder, "bench")), stdout=log, stdin=subprocess.DEVNULL
        )
    try:
        yield local_redis_url(folder, "bench")
    finally:
        end_process(process)


@contextmanager
def child(role: str, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "deploy.bench.child", role, *arguments]
    process = subprocess.Popen(wrapped(command), stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        end_process(process)


def end_process(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listening(name: str, port: int, process: "subprocess.Popen[bytes]") -> Target:
    """The target, once it takes connections. Raises StartError."""
    until = time.monotonic() + _START_SECONDS
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > until:
            raise StartError(f"{name} did not start: the lines above, or its log, say why")
        time.sleep(0.05)
    return Target(name, f"127.0.0.1:{port}", process.pid)


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
