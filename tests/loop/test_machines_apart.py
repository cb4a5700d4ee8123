"""Gateway, engine, worker and beat as on machines of their own: one Redis, secrets and policies.

Each process is the command that a container runs, with a state folder that no other process sees.
Engines are reached over TCP. One installation with a tiny model serves all tests, in their order.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import pytest

from core import keys, registry
from core.keyring import Keyring
from core.policy_store import PolicyStore
from core.process import wrapped
from core.records import Replica
from core.redis_client import Redis, connect
from core.settings import PREFIX
from deploy.redis_server import find_redis_server
from learning.rounds.folders import Folders
from learning.rounds.publish import place_version
from tests.conftest import eventually
from tests.serving.test_server import free_port
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
REPLICA, PASSWORD = "pod-7", "apart"
SETTINGS_OF_REDIS = """\
bind 127.0.0.1
requirepass {password}
dir {folder}
port {port}
appendonly yes
appendfsync always
maxmemory-policy noeviction
save ""
"""


@dataclass
class Installation:
    """The folders, the ports, and how a process of it is started."""

    folder: Path
    redis_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    engine_port: int = field(default_factory=free_port)
    admin_key: str = ""

    @property
    def redis_url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.redis_port}/0"

    @property
    def engine_url(self) -> str:
        return f"http://127.0.0.1:{self.engine_port}"

    @property
    def keyring(self) -> Keyring:
        return Keyring(self.folder / "secrets")

    def environment(self) -> dict[str, str]:
        settings = {
            "REDIS_URL": self.redis_url,
            "SECRETS_DIR": str(self.folder / "secrets"),
            "POLICIES_URL": str(self.folder / "policies"),
            "MODEL": str(self.folder / "model"),
            "PROFILE": "cpu-small",
            "LEARNING__ENABLED": "false",
        }
        outside = {n: v for n, v in os.environ.items() if not n.startswith(PREFIX)}
        return outside | {PREFIX + name: value for name, value in settings.items()}

    def command(self, name: str, *arguments: str) -> list[str]:
        state_dir = str(self.folder / f"state-{name}")
        return [sys.executable, "-m", "deploy", name, "--state-dir", state_dir, *arguments]

    def engine_command(self) -> list[str]:
        listen = f"127.0.0.1:{self.engine_port}"
        return self.command("engine", "--listen", listen, "--name", REPLICA)

    @contextmanager
    def running(self, name: str, command: list[str]) -> Iterator[subprocess.Popen]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                wrapped(command), cwd=self.folder, env=self.environment(), stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @contextmanager
    def redis(self) -> Iterator[None]:
        folder = self.folder / "redis"
        folder.mkdir()
        text = SETTINGS_OF_REDIS.format(password=PASSWORD, folder=folder, port=self.redis_port)
        (folder / "redis.conf").write_text(text)
        with self.running("redis", [find_redis_server(), str(folder / "redis.conf")]):
            yield

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""


@pytest.fixture(scope="module")
def apart() -> Iterator[Installation]:
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    here = Installation(folder)
    # the package is found from the working folder of the tests, which is not the processes' own
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    make_tiny_model(folder / "model", seed=0)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(here.redis())
        once = subprocess.run(
            here.command("init"),
            cwd=folder,
            env=here.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert once.returncode == 0, once.stderr
        here.admin_key = (folder / "state-init" / "admin.key").read_text().strip()
        for name in ("engine", "gateway", "worker", "beat"):
            command = here.command(name)
            if name == "engine":
                command = here.engine_command()
            elif name == "gateway":
                command += ["--port", str(here.gateway_port)]
            stack.enter_context(here.running(name, command))
        make_tiny_model(folder / "candidate", seed=1)
        yield here


@asynccontextmanager
async def client(here: Installation):
    headers = {"Authorization": f"Bearer {here.admin_key}"}
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{here.gateway_port}", headers=headers
    ) as http:
        yield http


def asked(words: str, *, stream: bool = False, tokens: int = 8) -> dict:
    return {
        "model": "instructloop",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
        "user": "ada",
    }


async def status_of(http: aiohttp.ClientSession, path: str) -> int:
    try:
        async with http.get(path) as reply:
            return reply.status
    except aiohttp.ClientError:
        return 0


async def until_ready(here: Installation, http: aiohttp.ClientSession) -> None:
    async def ready() -> bool:
        return await status_of(http, "/readyz") == 200

    try:
        await eventually(ready, seconds=120, every=0.2)
    except AssertionError as error:
        raise AssertionError(here.log("engine") + here.log("gateway")) from error


async def complete(http: aiohttp.ClientSession, body: dict) -> tuple[int, str, str]:
    """Status, version and text of one completion."""
    async with http.post("/v1/chat/completions", json=body) as reply:
        return reply.status, reply.headers.get("x-policy-version", ""), await reply.text()


async def test_a_gateway_answers_by_an_engine_elsewhere_and_a_worker_elsewhere_logs_it(apart):
    async with client(apart) as http, connect(apart.redis_url) as redis:
        await until_ready(apart, http)
        said = Replica.model_validate_json(await redis.get(keys.replica(REPLICA)))
        assert (said.url, said.state) == (apart.engine_url, "ready")
        status, version, text = await complete(http, asked("Where is the Seine?"))
        assert (status, version) == (200, "v0000"), text

        async def logged() -> int:
            return await redis.zcard(keys.prompts())

        assert await eventually(logged, seconds=60, every=0.2) == 1
    of_engines = {"run", "policies", "secrets"}
    for name in ("gateway", "beat", "worker"):
        held = {path.name for path in (apart.folder / f"state-{name}").glob("*")}
        assert not held & of_engines, name


async def test_the_engine_s_port_opens_nothing_but_health_and_metrics_without_the_right_token(
    apart,
):
    data = apart.keyring.token("engine-data.token")
    tokens = apart.folder / "state-engine" / "run" / f"{REPLICA}.sock.tokens"
    async with aiohttp.ClientSession(apart.engine_url) as http:
        assert await status_of(http, "/health") == 200
        async with http.get("/metrics") as reply:
            assert "vllm:generation_tokens_total" in await reply.text()
        for path in ("/v1/models", "/version", "/openapi.json", "/instructloop/state"):
            assert await status_of(http, path) == 403, path
        holds = {"Authorization": f"Bearer {data}"}
        for path, expected in (("/v1/completions", 400), ("/collective_rpc", 404), ("/pause", 404)):
            async with http.post(path, json={}, headers=holds) as reply:
                assert reply.status == expected, path
            async with http.post(path, json={}) as reply:
                assert reply.status == 403, path
    assert data in tokens.read_text()
    written = (apart.folder / "redis" / "appendonly.aof").read_bytes()
    assert keys.replica(REPLICA).encode() in written
    assert data.encode() not in written


async def published(here: Installation, redis: Redis) -> str:
    """A second version, made on a machine that keeps it at `policies_url` only."""
    folders = Folders.of(here.folder / "state-trainer")
    version = await registry.next_version(redis)
    first = await registry.card(redis, "v0000")
    token = await registry.acquire_fence(redis)
    taken = {"parent": "v0000", "created_at": registry.timestamp(), "version": version}
    fields = {**first.model_dump(exclude={"weights_sha256", "signature"}), **taken}
    card = place_version(
        folders, here.keyring, model=here.folder / "candidate", fields=fields, owner=token
    )
    store = PolicyStore(folders.policies, str(here.folder / "policies"))
    prefix = store.put(version, token=token)
    shutil.rmtree(folders.state_dir)
    await registry.publish(redis, card, fencing_token=token, prefix=prefix)
    return version


async def streams(http: aiohttp.ClientSession, heard: list[str], over: asyncio.Event) -> None:
    while not over.is_set():
        status, version, text = await complete(http, asked("Tell me", stream=True, tokens=400))
        whole = status == 200 and text.endswith("data: [DONE]\n\n") and 'data: {"error"' not in text
        assert whole, f"{status} {text[-500:]}"
        crossed = ": policy-version v0001" in text
        heard.append(f"{version}>v0001" if crossed else version)


async def test_a_swap_under_streams_drops_none_and_the_weights_come_from_the_store(apart):
    heard: list[str] = []
    async with client(apart) as http, connect(apart.redis_url) as redis:
        version = await published(apart, redis)
        over = asyncio.Event()
        readers = [asyncio.create_task(streams(http, heard, over)) for _ in range(4)]
        await eventually(lambda: len(heard) >= 4, seconds=60)
        async with http.post(f"/v1/policies/{version}/promote", json={"why": "better"}) as reply:
            assert reply.status == 202, await reply.text()
        await eventually(lambda: heard.count(version) >= 4 or any(map(failed, readers)), seconds=60)
        over.set()
        await asyncio.gather(*readers)
    assert set(heard) <= {"v0000", f"v0000>{version}", version}
    assert f"v0000>{version}" in heard
    assert (apart.folder / "state-engine" / "policies" / version).is_dir()


def failed(task: asyncio.Task) -> bool:
    return task.done() and task.exception() is not None


async def test_an_engine_that_is_killed_costs_503_and_comes_back_with_its_version(apart):
    (server,) = vllm_servers(apart)
    async with client(apart) as http:
        server.send_signal(signal.SIGKILL)
        answers = [await complete(http, asked("Are you there?"))]

        async def answered() -> bool:
            answers.append(await complete(http, asked("Are you there?")))
            return answers[-1][0] == 200 and any(status == 503 for status, _, _ in answers)

        await eventually(answered, seconds=90, every=0.1)
    assert {status for status, _, _ in answers} == {200, 503}
    assert answers[-1][1] == "v0001"


def vllm_servers(here: Installation) -> list[psutil.Process]:
    """vLLM's server processes: those that listen on the engine's port."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(here.engine_port) in (process.info["cmdline"] or [])
        and "core.process" not in process.info["cmdline"]
        and "--middleware" in process.info["cmdline"]
    ]
