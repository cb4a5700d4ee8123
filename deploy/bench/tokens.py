"""What is left of a real engine's tokens per second when it is asked through the gateway.

vLLM with the default model, 32 clients that stream, direct and through the gateway in turns. Every
answer has the same number of tokens, so tokens per second are answers per second.
"""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvloop

from core.engine.client import EngineClient
from core.engine.launch import EngineSpec, start_engine, stop_engine, wait_until_ready
from core.keyring import Keyring
from core.settings import Settings
from deploy.base_model import base_model_folder
from deploy.bench.client import closed_loop
from deploy.bench.engine import http_request
from deploy.bench.maths import Spread, over_rounds
from deploy.bench.progress import progress
from deploy.bench.targets import folder_in, service, taking_from_inbox

CLIENTS = 32
_TOKENS = 64
_TIMES = 2
_START_SECONDS = 300.0
_STOP_SECONDS = 5.0
_QUESTION = "Tell me about the rivers of France."


def tokens_per_second(
    settings: Settings, *, rounds: int, say: Callable[[str], None]
) -> dict[str, Spread]:
    """`direct`, `gateway`, and their quotient `share`. Raises StartError."""
    model = base_model_folder(settings, say=say, alive=lambda: True)
    with folder_in(settings.state_dir) as folder:
        secrets = Keyring(folder / "secrets")
        spec = EngineSpec(
            model=model,
            socket=folder / "engine.sock",
            served_name="instructloop",
            policy_version="v0000",
            data_token=secrets.token("engine-data.token"),
            control_token=secrets.token("engine-control.token"),
            log=folder / "engine.log",
            max_num_seqs=CLIENTS,
        )
        say("starting vLLM (about a minute)")
        with _engine(spec), service(folder, f"unix:{spec.socket}") as gateway:
            targets = {
                "direct": (str(spec.socket), _request(spec.data_token)),
                "gateway": (gateway.gateway.address, _request(gateway.secret)),
            }
            found = uvloop.run(_measure(targets, gateway.redis_url, rounds))
    shares = [ours / bare for ours, bare in zip(found["gateway"], found["direct"], strict=True)]
    return {name: over_rounds(of) for name, of in {**found, "share": shares}.items()}


@contextmanager
def _engine(spec: EngineSpec) -> Iterator[None]:
    process = start_engine(spec)
    try:
        asyncio.run(_ready(spec, process))
        yield
    finally:
        stop_engine(process, _STOP_SECONDS)


async def _ready(spec: EngineSpec, process: "subprocess.Popen[bytes]") -> None:
    async with EngineClient(
        socket=spec.socket, data_token=spec.data_token, control_token=spec.control_token
    ) as client:
        await wait_until_ready(client, process, timeout=_START_SECONDS, log=spec.log)


async def _measure(
    targets: dict[str, tuple[str, bytes]], redis_url: str, rounds: int
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in targets}
    async with taking_from_inbox(redis_url):
        for address, request in targets.values():  # the first requests compile and fill caches
            await closed_loop(address, request, clients=CLIENTS, seconds=0.0)
        with progress(rounds * len(targets)) as tick:
            for _ in range(rounds):
                for name, (address, request) in targets.items():
                    tick(f"vLLM: {name}")
                    load = await closed_loop(
                        address, request, clients=CLIENTS, seconds=3600.0, times=_TIMES
                    )
                    found[name].append(load.per_second * _TOKENS)
    return found


def _request(secret: str) -> bytes:
    return http_request(
        secret,
        {
            "messages": [{"role": "user", "content": _QUESTION}],
            "max_tokens": _TOKENS,
            "ignore_eos": True,
            "stream": True,
        },
    )
