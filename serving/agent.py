"""The engine agent: one vLLM engine, kept alive and kept on the version that the registry wants.

Level-triggered: every second it compares what it serves with the target, and acts. A missed
message, a restart, a late replica, a lost Redis all heal the same way. A replica is `ready` only
when it was probed on the version it should serve.
"""

import asyncio
import logging
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core import keys, registry
from core.engine.client import EngineClient
from core.engine.launch import EngineSpec, start_engine, stop_engine, wait_until_ready
from core.engine.progress import Progress
from core.errors import CorruptVersion, EngineError, NotFound, StartError, Unavailable
from core.keyring import Keyring
from core.metrics import SWAP_PAUSE_SECONDS, SWAPS
from core.records import Replica
from core.redis_client import Redis, connect, redis_errors, redis_url
from core.settings import Settings
from core.versions import verify
from serving.swap import Loadable, SwapFailed, differing_parameters, swap

log = logging.getLogger(__name__)
TICK_SECONDS = 0.5
HEARTBEAT_SECONDS = 1.0
PROGRESS_SECONDS = 5.0
HEARTBEAT_EXPIRES_SECONDS = 5
FAREWELL_SECONDS = 0.8
"""How long an engine that is told to stop still answers: gateways look every half second."""
SWAP_LEASE_SECONDS = 120
LONGEST_RESTART_DELAY_SECONDS = 30.0
State = Literal["starting", "ready", "swapping", "failed", "draining"]


@dataclass(slots=True)
class Agent:
    """What the agent knows of its engine between two looks."""

    name: str
    settings: Settings
    keyring: Keyring
    redis: Redis
    socket: Path
    serving: str = ""
    """The version in the engine; empty while none is proven."""
    state: State = "starting"
    detail: str = ""
    probed_at: float | None = None
    process: "subprocess.Popen[bytes] | None" = None
    client: EngineClient | None = None
    failures: int = 0
    progress: Progress = field(default_factory=Progress)
    progress_at: float = 0.0
    """When to look for progress again."""
    refused: set[str] = field(default_factory=set)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def run_agent(settings: Settings, *, number: int) -> None:
    """Run one engine until SIGTERM."""
    asyncio.run(_main(settings, number))


async def _main(settings: Settings, number: int) -> None:
    sockets = settings.state_dir.resolve() / "run"
    sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with connect(redis_url(settings)) as redis:
        agent = Agent(
            name=f"engine-{number}",
            settings=settings,
            keyring=Keyring(settings.state_dir / "secrets"),
            redis=redis,
            socket=sockets / f"engine-{number}.sock",
        )
        loop = asyncio.get_running_loop()
        for number_of_signal in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number_of_signal, agent.stopping.set)
        heartbeats = asyncio.create_task(_heartbeats(agent))
        try:
            while not agent.stopping.is_set():
                await _look(agent)
                await _pause(agent, TICK_SECONDS)
        finally:
            agent.state = "draining"
            await _say_state(agent)
            await asyncio.sleep(FAREWELL_SECONDS)
            heartbeats.cancel()
            await _stop_engine(agent)
            await _forget(agent)


async def _look(agent: Agent) -> None:
    """Compare what is with what should be, and take one step."""
    try:
        with redis_errors():
            wanted = await registry.target(agent.redis)
        await _step(agent, wanted)
    except Unavailable:
        return  # what serves goes on serving; the next look may know more


async def _step(agent: Agent, wanted: str | None) -> None:
    """Start, swap, or end an engine that hangs. Raises Unavailable (no Redis)."""
    if agent.process is None or agent.process.poll() is not None:
        await _start(agent, wanted)
    elif wanted and wanted != agent.serving and wanted not in agent.refused:
        await _swap(agent, wanted)
    elif await _is_stuck(agent):
        log.error("the engine has work and generates nothing: it is started again")
        agent.state, agent.detail = "failed", "the engine hung"
        await _say_state(agent)
        await _stop_engine(agent)


async def _is_stuck(agent: Agent) -> bool:
    """Whether the engine has shown no progress for too long, though it was asked."""
    now = time.monotonic()
    if agent.client is None or not agent.serving or now < agent.progress_at:
        return False
    agent.progress_at = now + PROGRESS_SECONDS
    done: float | None = None
    in_flight = 0
    try:
        done = await agent.client.tokens()
        in_flight = await agent.client.in_flight()
    except EngineError as error:
        log.warning("the engine does not answer: %s", error.message)
    still = agent.progress.stuck_for(tokens=done, in_flight=in_flight, now=now)
    return still > agent.settings.engine.hang_seconds


async def _start(agent: Agent, wanted: str | None) -> None:
    """Start the engine on the wanted version, or on the last good one if that is broken."""
    if agent.process is not None:
        log.error("the engine ended with exit code %s", agent.process.returncode)
        await _stop_engine(agent)
    if agent.failures:
        delay = min(2.0 ** (agent.failures - 1), LONGEST_RESTART_DELAY_SECONDS)
        await _pause(agent, delay)
    agent.state, agent.detail, agent.serving = "starting", "", ""
    if wanted is None:
        agent.detail = "no policy is registered yet"
        return
    try:
        loadable = await _loadable(agent, wanted, like=None)
        await _launch(agent, loadable)
    except CorruptVersion as error:
        await _refuse(agent, wanted, error.message)
        with redis_errors():
            await registry.rollback(agent.redis, who=agent.name, why=error.message, expected=wanted)
    except (EngineError, StartError) as error:
        agent.failures += 1
        agent.state, agent.detail = "failed", error.message
        log.error("the engine did not start: %s", error.message)
        await _stop_engine(agent)


async def _launch(agent: Agent, loadable: Loadable) -> None:
    """Start vLLM, wait for it, prove that it holds these weights, and be ready."""
    engine = agent.settings.engine
    spec = EngineSpec(
        model=loadable.folder,
        socket=agent.socket,
        served_name="instructloop",
        policy_version=loadable.version,
        data_token=agent.keyring.token("engine-data.token"),
        control_token=agent.keyring.token("engine-control.token"),
        log=agent.settings.state_dir / "logs" / f"vllm-{agent.name}.log",
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_gib=engine.kv_cache_gib,
        logprobs="raw",
    )
    agent.process = start_engine(spec)
    agent.client = EngineClient(
        socket=agent.socket, data_token=spec.data_token, control_token=spec.control_token
    )
    await agent.client.__aenter__()
    agent.detail = f"loading {loadable.version}"
    await wait_until_ready(agent.client, agent.process, timeout=engine.start_timeout_seconds)
    live = await agent.client.checksums()
    if differing_parameters(live, loadable.checksums):
        raise CorruptVersion(f"{loadable.version}: the engine holds other weights than its card")
    await agent.client.probe()
    await _attest(agent, loadable.version, live)
    agent.serving, agent.state, agent.detail, agent.failures = loadable.version, "ready", "", 0
    log.info("serving %s", agent.serving)


async def _swap(agent: Agent, wanted: str) -> None:
    """Take a promoted version into the running engine, one replica at a time."""
    assert agent.client is not None
    with redis_errors():
        if not await agent.redis.set(keys.swap_lease(), agent.name, nx=True, ex=SWAP_LEASE_SECONDS):
            return
    try:
        old = await _loadable(agent, agent.serving, like=None, check=False)
        new = await _loadable(agent, wanted, like=old.folder)
        agent.state, agent.detail = "swapping", f"{agent.serving} to {wanted}"
        await _say_state(agent)
        result = await swap(
            agent.client, new=new, old=old, drain_seconds=agent.settings.engine.drain_seconds
        )
        SWAPS.labels(outcome="done").inc()
        SWAP_PAUSE_SECONDS.observe(result.pause_seconds)
        agent.serving, agent.state, agent.detail = wanted, "ready", ""
        await _attest(agent, wanted, result.checksums)
        log.info("swapped to %s, paused for %.3f s", wanted, result.pause_seconds)
    except (CorruptVersion, NotFound) as error:
        SWAPS.labels(outcome="refused").inc()
        await _refuse(agent, wanted, error.message)
    except SwapFailed as error:
        SWAPS.labels(outcome="restored" if error.restored else "restarted").inc()
        await _refuse(agent, wanted, error.message)
        if not error.restored:
            await _stop_engine(agent)
    finally:
        agent.state = "ready" if agent.serving and agent.process else agent.state
        await _release_lease(agent)
        await _say_state(agent)


async def _refuse(agent: Agent, version: str, why: str) -> None:
    """Quarantine a version, and point everybody back if it is the target."""
    log.error("refused %s: %s", version, why)
    agent.refused.add(version)
    agent.detail = why
    try:
        with redis_errors():
            await registry.quarantine(agent.redis, version, why=why)
            if agent.serving and await registry.target(agent.redis) == version:
                await registry.rollback(agent.redis, who=agent.name, why=why, expected=version)
    except Unavailable as error:
        log.error("could not record that: %s", error.message)


async def _loadable(
    agent: Agent, version: str, *, like: Path | None, check: bool = True
) -> Loadable:
    """A version's folder and expected checksums; verified in a thread of this process."""
    folder = agent.settings.state_dir / "policies" / version
    with redis_errors():
        card = await registry.card(agent.redis, version)
        expected = await agent.redis.hgetall(keys.policy_checksums(version))
    if check:
        await asyncio.to_thread(
            verify, folder, card, like=like, public_key=agent.keyring.public_key()
        )
    checksums = {name.decode(): value.decode() for name, value in expected.items()}
    return Loadable(version=version, folder=folder, checksums=checksums or None)


async def _attest(agent: Agent, version: str, checksums: dict[str, str]) -> None:
    """Keep what the first engine computed for a version, and say that this one was probed."""
    agent.probed_at = time.time()
    try:
        with redis_errors():
            if not await agent.redis.exists(keys.policy_checksums(version)):
                await agent.redis.hset(keys.policy_checksums(version), mapping=checksums)
            await registry.record(agent.redis, "probed", version=version, replica=agent.name)
    except Unavailable as error:
        log.warning("the probe of %s was not recorded: %s", version, error.message)


async def _heartbeats(agent: Agent) -> None:
    while True:
        await _say_state(agent)
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def _say_state(agent: Agent) -> None:
    replica = Replica(
        name=agent.name,
        url=f"unix:{agent.socket}",
        version=agent.serving,
        state=agent.state,
        detail=agent.detail,
        seen_at=time.time(),
        probed_at=agent.probed_at,
    )
    try:
        with redis_errors():
            pipeline = agent.redis.pipeline()
            pipeline.sadd(keys.replicas(), agent.name)
            pipeline.set(
                keys.replica(agent.name), replica.model_dump_json(), ex=HEARTBEAT_EXPIRES_SECONDS
            )
            await pipeline.execute()
    except Unavailable as error:
        log.warning("no heartbeat: %s", error.message)


async def _forget(agent: Agent) -> None:
    try:
        with redis_errors():
            await agent.redis.srem(keys.replicas(), agent.name)
            await agent.redis.delete(keys.replica(agent.name))
    except Unavailable:
        pass  # the heartbeat expires by itself


async def _release_lease(agent: Agent) -> None:
    try:
        with redis_errors():
            if await agent.redis.get(keys.swap_lease()) == agent.name.encode():
                await agent.redis.delete(keys.swap_lease())
    except Unavailable:
        pass  # the lease expires by itself


async def _stop_engine(agent: Agent) -> None:
    client, process = agent.client, agent.process
    agent.client = agent.process = None
    agent.serving, agent.progress = "", Progress()
    if client is not None:
        await client.__aexit__(None, None, None)
    if process is not None:
        await asyncio.to_thread(stop_engine, process, agent.settings.gateway.shutdown_seconds)


async def _pause(agent: Agent, seconds: float) -> None:
    """Sleep, but wake up to stop."""
    try:
        await asyncio.wait_for(agent.stopping.wait(), timeout=seconds)
    except TimeoutError:
        return
