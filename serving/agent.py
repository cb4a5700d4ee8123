"""The engine agent: one vLLM engine, kept alive and kept on the version that the registry wants.

Level-triggered: twice a second it compares what it serves with the target, and acts. A missed
message, a restart, a late replica, a lost Redis all heal the same way. A replica is `ready` only
when it was probed on the version it serves.

A version is refused for all only if a fault speaks of the version: its files, its checksums, NaN.
If the engine fails, dies or does not answer, the same version is tried again, later each time;
after three times this replica gives it up, which is an alarm, and serves the last good one.
"""

import asyncio
import logging
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from core import canary, keys, logs, metrics, traces
from core.engine import figures
from core.engine.launch import (
    EngineSpec,
    client_of,
    start_engine,
    stop_engine,
    wait_until_ready,
)
from core.engine.progress import Progress
from core.errors import (
    CorruptVersion,
    EngineError,
    NotFinite,
    NotFound,
    StartError,
    Unavailable,
)
from core.keyring import Keyring
from core.metrics import SWAP_PAUSE_SECONDS, SWAPS
from core.redis_client import connect, redis_errors, redis_url
from core.settings import Settings
from core.start import refuse_foreign_data
from serving import agent_copies, agent_records, agent_tokens, attest
from serving.agent_copies import NotFetched
from serving.agent_start import prepared
from serving.agent_state import MAX_ATTEMPTS, Agent
from serving.swap import Loadable, SwapFailed, SwapResult, differing_parameters, swap

log = logging.getLogger(__name__)
TICK_SECONDS = 0.5
PROGRESS_SECONDS = 5.0
FAREWELL_SECONDS = 0.8
"""How long an engine that is told to stop still answers: gateways look every half second."""
LEAVING_SECONDS = 120.0
"""How long replies of a canary's own engine may take when the canary is over."""
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0


def run_agent(settings: Settings, *, name: str) -> None:
    """Run one engine until SIGTERM: the replica of this name. Raises StartError."""
    level, form = settings.log_level, settings.log_format
    logs.set_up("engine", level=level, form=form, replica=name)
    traces.set_up("engine", settings)
    refuse_foreign_data(settings)
    metrics.show(settings.metrics_port, host=settings.metrics_host)
    with prepared(settings, name) as sockets:
        asyncio.run(_main(settings, name, sockets / f"{name}.sock"))
    traces.close()


async def _main(settings: Settings, name: str, socket: Path) -> None:
    async with connect(redis_url(settings)) as redis:
        agent = Agent(
            name=name,
            settings=settings,
            keyring=Keyring(settings.secrets),
            redis=redis,
            socket=socket,
        )
        loop = asyncio.get_running_loop()
        for number_of_signal in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number_of_signal, agent.stopping.set)
        await live(agent)


async def live(agent: Agent) -> None:
    """Look and act until it is told to stop; then end the engine. Raises StartError."""
    await agent_records.claim(agent)
    heartbeats = asyncio.create_task(agent_records.heartbeats(agent))
    renewing = asyncio.create_task(agent_tokens.renew(agent))
    try:
        while not agent.stopping.is_set():
            await _look(agent)
            await _pause(agent, TICK_SECONDS)
    finally:
        agent.state = "draining"
        await agent_records.say_state(agent)
        await asyncio.sleep(FAREWELL_SECONDS)
        await _finish_replies(agent)
        heartbeats.cancel()
        renewing.cancel()
        await _stop_engine(agent)
        await agent_records.forget(agent)
    if agent.superseded:
        raise StartError(f"another engine called {agent.name} has taken over")


async def _finish_replies(agent: Agent) -> None:
    """An engine that leaves a service which goes on ends its replies first, however long."""
    seconds = 0.0
    if agent.name == canary.SECOND_ENGINE:
        seconds = LEAVING_SECONDS
    elif agent.listen is not None:
        seconds = agent.settings.gateway.shutdown_seconds
    if seconds and agent.client is not None:
        with suppress(EngineError):  # one that does not answer has none
            await agent.client.drain(seconds)


async def _look(agent: Agent) -> None:
    """Compare what is with what should be, and take one step."""
    try:
        await agent_records.tell_condemned(agent)
        with redis_errors():
            wanted = await canary.wanted_version(agent.redis, agent.name)
        if wanted != agent.wanted:
            agent.wanted, agent.not_before = wanted, 0.0
            agent.attempts.clear()
        await _step(agent, wanted)
    except Unavailable:
        return  # what serves goes on serving; the next look may know more


async def _step(agent: Agent, wanted: str | None) -> None:
    """Start, swap, or end an engine that hangs or is not what it was. Raises Unavailable."""
    if agent.process is None or agent.process.poll() is not None:
        await _start(agent, wanted)
    elif wanted and wanted != agent.serving and agent.may_try(wanted, now=time.monotonic()):
        await _swap(agent, wanted)
    elif await _is_stuck(agent):
        await _take_out(agent, "the engine hung")
    elif why := await attest.fault(agent):
        await _take_out(agent, why)


async def _take_out(agent: Agent, why: str) -> None:
    """End an engine that must not go on; the next look starts it from its version's folder."""
    log.error("%s is started again: %s", agent.name, why)
    agent.state, agent.detail = "failed", why
    await agent_records.say_state(agent)
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
    """Start the engine on the wanted version, or on the last good one. Raises Unavailable."""
    if agent.process is not None:
        log.error("the engine ended with exit code %s", agent.process.returncode)
        await _stop_engine(agent)
    agent.state = "starting"
    await agent_records.say_state(agent)
    if agent.failures:
        await _pause(agent, _delay(agent.failures))
    agent.detail = ""
    version = await _best_to_start(agent, wanted)
    if version is None:
        agent.detail = "there is no policy that it could load"
    if version is None or agent.stopping.is_set():
        return
    try:
        await _launch(agent, await agent_copies.loadable(agent, version, like=None))
        return
    except (CorruptVersion, NotFinite) as error:
        await agent_records.condemn(agent, version, error.message)
    except NotFetched as error:
        agent.failures += 1
        agent.state = "failed"
        _could_not_fetch(agent, version, error)
    except (EngineError, StartError, NotFound) as error:
        log.error("the engine did not start: %s", error.message)
        agent.failures += 1
        agent.state, agent.detail = "failed", error.message
        _count_failure(agent, version)
    await agent_records.say_state(agent)
    await _stop_engine(agent)


async def _best_to_start(agent: Agent, wanted: str | None) -> str | None:
    """The wanted version; after three failures the last good one has its three, and so on.

    One that could not be brought here comes after those that failed so less often.
    """
    with redis_errors():
        before = await agent.redis.lrange(keys.target_history(), 0, MAX_ATTEMPTS)
        bad = {*await agent.redis.hkeys(keys.quarantined())}
        bad |= {*await agent.redis.hkeys(keys.collected())}
    versions = [wanted] if wanted else []
    versions += [raw.decode() for raw in before]
    fit = [of for of in versions if of not in agent.refused and of.encode() not in bad]
    tried = {of: agent.attempts.get(of, 0) // MAX_ATTEMPTS for of in fit}
    return min(fit, key=lambda of: (agent.unfetched.get(of, 0), tried[of]), default=None)


def _could_not_fetch(agent: Agent, version: str, error: NotFetched) -> None:
    """Say so, and ask again later, as long as it is wanted."""
    SWAPS.labels(outcome="not_fetched").inc()
    log.error("%s", error.message)
    agent.detail = error.message
    agent.unfetched[version] = agent.unfetched.get(version, 0) + 1
    agent.not_before = time.monotonic() + _delay(agent.unfetched[version])


def _count_failure(agent: Agent, version: str) -> None:
    """The engine failed with a version, which says nothing of the version."""
    if agent.failed_with(version):
        SWAPS.labels(outcome="gave_up").inc()
        log.error("%s gives up %s: %s", agent.name, version, agent.detail)


def _delay(failures: int) -> float:
    return min(FIRST_RETRY_SECONDS * 2.0 ** (failures - 1), LONGEST_RETRY_SECONDS)


async def _launch(agent: Agent, loadable: Loadable) -> None:
    """Start vLLM, wait for it, prove that it holds these weights, and be ready."""
    engine = agent.settings.engine
    spec = EngineSpec(
        model=loadable.folder,
        socket=agent.socket,
        served_name="instructloop",
        policy_version=loadable.version,
        data_token=agent_tokens.present(agent),
        more_data_tokens=agent_tokens.accepted(agent),
        control_token=agent.control_token,
        log=agent.settings.state_dir / "logs" / f"vllm-{agent.name}.log",
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_gib=engine.kv_cache_gib,
        logprobs="raw",
        listen=agent.listen,
        traces_url=traces.traces_url(agent.settings),
    )
    agent.process = start_engine(spec)
    agent.client = client_of(spec)
    agent.client.on_metrics = partial(figures.show, replica=agent.name)
    await agent.client.__aenter__()
    agent.detail = f"loading {loadable.version}"
    await wait_until_ready(agent.client, agent.process, timeout=engine.start_timeout_seconds)
    live = await agent.client.checksums()
    if differing_parameters(live, loadable.checksums):
        raise CorruptVersion(f"{loadable.version}: the engine holds other weights than its card")
    await agent.client.probe()
    await _serves(agent, loadable.version, live)
    agent.failures = 0
    log.info("serving %s", agent.serving)


async def _serves(agent: Agent, version: str, checksums: dict[str, str]) -> None:
    """The engine proved to hold a version."""
    agent.serving, agent.checksums = version, checksums
    agent.state, agent.detail, agent.attest_at = "ready", "", 0.0
    await agent_records.loaded(agent, version, checksums)
    await agent_copies.trim(agent)


async def _swap(agent: Agent, wanted: str) -> None:
    """Take a promoted version into the running engine, one replica at a time."""
    async with agent_records.turn_to_swap(agent) as is_ours:
        if is_ours:
            await attest.end(agent)
            try:
                await _swap_in_turn(agent, wanted)
            finally:
                if agent.state == "swapping":
                    agent.state = "ready"
                await agent_records.say_state(agent)


async def _swap_in_turn(agent: Agent, wanted: str) -> None:
    """Raises Unavailable before anything was done."""
    assert agent.client is not None
    folder = agent.settings.state_dir / "policies" / agent.serving
    old = Loadable(agent.serving, folder, agent.checksums or None)
    try:
        new = await agent_copies.loadable(agent, wanted, like=folder)
        agent.state, agent.detail = "swapping", f"{agent.serving} to {wanted}"
        await agent_records.say_state(agent)
        with logs.bound(version=wanted), traces.span("swap", replica=agent.name, version=wanted):
            result = await swap(
                agent.client, new=new, old=old, drain_seconds=agent.settings.engine.drain_seconds
            )
    except CorruptVersion as error:
        SWAPS.labels(outcome="refused").inc()
        await agent_records.condemn(agent, wanted, error.message)
    except NotFetched as error:
        _could_not_fetch(agent, wanted, error)
    except (NotFound, EngineError) as error:
        agent.detail = error.message
        _count_failure(agent, wanted)
        agent.not_before = time.monotonic() + _delay(agent.attempts[wanted])
    except SwapFailed as error:
        await _after_failure(agent, wanted, error)
    else:
        await _after_swap(agent, wanted, result)


async def _after_swap(agent: Agent, version: str, result: SwapResult) -> None:
    SWAPS.labels(outcome="done").inc()
    SWAP_PAUSE_SECONDS.observe(result.pause_seconds)
    await _serves(agent, version, result.checksums)
    log.info("swapped to %s, paused for %.3f s", version, result.pause_seconds)


async def _after_failure(agent: Agent, version: str, failure: SwapFailed) -> None:
    """Refuse the version, or try it again later; end an engine that does not serve any more."""
    agent.detail = failure.message
    if failure.blames_version:
        SWAPS.labels(outcome="refused").inc()
        await agent_records.condemn(agent, version, failure.message)
    else:
        log.error("the engine failed: %s", failure.message)
        SWAPS.labels(outcome="restored" if failure.restored else "restarted").inc()
        _count_failure(agent, version)
        agent.not_before = time.monotonic() + _delay(agent.attempts[version])
    if not failure.restored:
        await _take_out(agent, failure.message)


async def _stop_engine(agent: Agent) -> None:
    await attest.end(agent)
    client, process = agent.client, agent.process
    agent.client = agent.process = None
    figures.forget(agent.name)
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
