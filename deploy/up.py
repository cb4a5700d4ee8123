"""`instructloop up`: the whole service on this machine, in the foreground.

Starts Redis (unless one is given), makes the first policy, then the gateway, the engines, the
worker and beat, and tends them until it is told to stop.
"""

import asyncio
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from core.auth import create_key, digest_of, list_keys
from core.errors import StartError, Unavailable
from core.keyring import Keyring
from core.logs import set_up
from core.redis_check import check_redis, spare_replicas
from core.redis_client import Redis, connect, redis_errors, redis_url
from core.schema import check_folder
from core.settings import PREFIX, Settings
from deploy.base_model import base_model_folder
from deploy.canary_engine import canary_engine
from deploy.migrate import folder_forward, redis_forward
from deploy.preflight import lock_state_dir, preflight
from deploy.redis_server import redis_command
from deploy.supervisor import Child, Supervisor, own_command
from learning.rounds.publish import publish_base
from learning.worker.broker import broker_address

POLL_SECONDS = 0.2
READY_TIMEOUT_SECONDS = 600
REDIS_TIMEOUT_SECONDS = 20
WORKER_STOP_SECONDS = 60
"""A stage checkpoints when it is told to stop, which takes seconds."""


def up(settings: Settings, *, learning: bool, say: Callable[[str], None]) -> None:
    """Run until SIGTERM or Ctrl-C. Raises StartError when the service cannot start.

    Without learning, or with engines into which nothing is swapped, workers keep the log alone.
    """
    _refuse_ports_of_engines(settings)
    if settings.redis_url is not None:
        broker_address(settings)  # what cannot be one is refused here, and not in each worker
    settings = without_rounds(settings) if settings.engine.urls or not learning else settings
    lock = lock_state_dir(settings.state_dir)
    folder_forward(settings.state_dir, say=say)
    check_folder(settings.state_dir)
    preflight(settings)
    logs = settings.state_dir / "logs"
    logs.mkdir(exist_ok=True)
    say = _log_too(settings, logs / "up.log", say)
    _hand_down(settings)
    supervisor = Supervisor(say=say)
    supervisor.handle_signals()
    try:
        _start_all(supervisor, settings, logs)
        _wait_until_ready(supervisor, settings)
        with canary_engine(supervisor, settings, logs) as look:
            while not supervisor.stopping:
                supervisor.tend()
                look()
                time.sleep(POLL_SECONDS)
    finally:
        supervisor.stop()
        say("stopped; nothing is running any more")
        lock.close()


def _log_too(settings: Settings, path: Path, say: Callable[[str], None]) -> Callable[[str], None]:
    """What people are told here, as a line of a log of our own, too."""
    set_up("up", level=settings.log_level, form=settings.log_format, path=path)
    log = logging.getLogger(__name__)

    def both(line: str) -> None:
        say(line)
        log.info(line)

    return both


def _refuse_ports_of_engines(settings: Settings) -> None:
    """Engines of `up` are on this machine: they have sockets, and names by number."""
    engine = settings.engine
    for name in ("listen", "advertise", "name"):
        if getattr(engine, name) is not None:
            raise StartError(
                f"engine.{name} is for `instructloop engine`, one process on a machine of its own: "
                f"unset {PREFIX}ENGINE__{name.upper()} to run `up`"
            )


def without_rounds(settings: Settings) -> Settings:
    """The settings of a service that learns only when somebody asks for it."""
    learning = settings.learning.model_copy(update={"enabled": False})
    return settings.model_copy(update={"learning": learning})


def _start_all(supervisor: Supervisor, settings: Settings, logs: Path) -> None:
    gateway, say = settings.gateway, supervisor.say
    if settings.redis_url is None:
        say("starting Redis")
        supervisor.start(_redis_child(settings, logs))
    asyncio.run(_wait_for_redis(supervisor, settings))
    admin_key_file = asyncio.run(ensure_admin_key(settings))
    say(f"URL:       http://{gateway.host}:{gateway.port}")
    say(f"admin key: {admin_key_file}")
    if not settings.engine.urls:
        _make_first_policy(supervisor, settings)
        for number in range(settings.engine.count):
            _start_own(supervisor, logs, f"engine-{number}", "engine", "--number", str(number))
    else:
        asyncio.run(publish_first_policy(settings, None))
    leaving = gateway.leave_seconds + gateway.shutdown_seconds + 10
    _start_own(supervisor, logs, "gateway", "gateway", stop_seconds=leaving)
    _start_own(supervisor, logs, "worker", "worker", stop_seconds=WORKER_STOP_SECONDS)
    _start_own(supervisor, logs, "beat", "beat")


def _make_first_policy(supervisor: Supervisor, settings: Settings) -> None:
    folder = base_model_folder(settings, say=supervisor.say, alive=lambda: not supervisor.stopping)
    if not supervisor.stopping:
        asyncio.run(publish_first_policy(settings, folder))


async def publish_first_policy(settings: Settings, folder: Path | None) -> str:
    """Register v0000, unless it is; `folder` is its model, None where others serve it."""
    async with connect(redis_url(settings)) as redis:
        return (await publish_base(redis, settings, folder)).version


def _start_own(
    supervisor: Supervisor, logs: Path, name: str, *arguments: str, stop_seconds: float = 30.0
) -> None:
    supervisor.start(
        Child(
            name=name,
            command=own_command(*arguments),
            log=logs / f"{name}.log",
            stop_seconds=stop_seconds,
        )
    )


def _redis_child(settings: Settings, logs: Path) -> Child:
    password = Keyring(settings.state_dir / "secrets").token("redis.password")
    return Child(
        name="redis",
        command=redis_command(settings.state_dir, password),
        log=logs / "redis.log",
        stop_seconds=30,
    )


async def _wait_for_redis(supervisor: Supervisor, settings: Settings) -> None:
    """Return once Redis answers, has this release's schema, and was looked at."""
    deadline = time.monotonic() + REDIS_TIMEOUT_SECONDS
    async with connect(redis_url(settings)) as redis:
        while not await _answers(redis):
            own = settings.redis_url is None
            if own and not supervisor.children[0].alive:
                raise StartError(f"Redis did not start: see {supervisor.children[0].log}")
            if not own or supervisor.stopping or time.monotonic() > deadline:
                break  # the check below says why
            await asyncio.sleep(0.05)
        else:
            with redis_errors():
                await redis_forward(redis, say=supervisor.say, begin=lambda _, __: lambda ___: None)
        for warning in [*await check_redis(redis), await spare_replicas(redis)]:
            if warning:
                supervisor.say(f"warning: {warning}")


async def _answers(redis: Redis) -> bool:
    try:
        with redis_errors():
            return bool(await redis.ping())
    except Unavailable:
        return False


async def ensure_admin_key(settings: Settings) -> Path:
    """The file with a key that works: made at the first start, or when Redis forgot it."""
    path = settings.state_dir / "admin.key"
    async with connect(redis_url(settings)) as redis:
        known = {key.digest for key in await list_keys(redis) if key.revoked_at is None}
        if path.exists() and digest_of(path.read_text().strip()) in known:
            return path
        _, secret = await create_key(
            redis, name="admin", tenant="default", scopes=("admin",), who="start"
        )
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secret + "\n")
    return path


def _wait_until_ready(supervisor: Supervisor, settings: Settings) -> None:
    """Say what is missing until `/readyz` says that nothing is."""
    began, said = time.monotonic(), ""
    url = f"http://{settings.gateway.host}:{settings.gateway.port}/readyz"
    while not supervisor.stopping:
        supervisor.tend()
        ready, missing = _readiness(url)
        if ready:
            supervisor.say(f"ready after {time.monotonic() - began:.0f} s")
            return
        if missing != said:
            supervisor.say(f"waiting for {missing}")
            said = missing
        if time.monotonic() - began > READY_TIMEOUT_SECONDS:
            raise StartError(f"not ready after {READY_TIMEOUT_SECONDS} s, missing: {missing}")
        time.sleep(POLL_SECONDS)


def _readiness(url: str) -> tuple[bool, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200, ""
    except urllib.error.HTTPError as error:
        missing = json.loads(error.read() or b"{}").get("missing", [])
        return False, ", ".join(missing) or f"the gateway (status {error.code})"
    except OSError:
        return False, "the gateway"


def _hand_down(settings: Settings) -> None:
    """Children read the same settings: what the command line changed goes into the environment."""
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    changed["state_dir"] = str(settings.state_dir.resolve())
    changed["profile"] = settings.profile
    metrics = settings.state_dir.resolve() / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)
    metrics.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    for name, value in changed.items():
        os.environ[PREFIX + name.upper()] = value if isinstance(value, str) else json.dumps(value)
