"""The Celery app: a tick every second, and the two things it starts.

The only module that imports Celery. Run state lives in Redis, not in messages: tasks carry no
arguments, are acknowledged before they run, and look for themselves what there is to do, so a
message that comes twice, late or never changes nothing. A worker is one process whose tasks are
threads; all that computes is in child processes. It never imports torch.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.apps import worker as celery_worker
from celery.beat import Scheduler, SchedulingError
from celery.signals import setup_logging, worker_shutting_down
from kombu.connection import Connection

from core import keys, logs, metrics, traces
from core.errors import InstructLoopError, Unprocessable
from core.keyring import Keyring
from core.redis_client import Redis, connect, redis_errors, redis_url
from core.schema import refuse_other
from core.settings import Settings
from core.start import refuse_foreign_data
from feedback.pii.record import Plan
from feedback.pii.worker import PiiWorker
from learning.canary import watch as canary_watch
from learning.evaluation.regression_suites import read_suites
from learning.rounds.folders import Folders
from learning.rounds.ingesting import drain_inbox
from learning.rounds.runner import advance
from learning.rounds.work import Work
from learning.worker.broker import (
    broker_address,
    broker_url,
    check_broker,
    tls_options,
    transport_options,
)
from learning.worker.sampling_tasks import fill_stock
from learning.worker.ticking import due_tasks
from learning.worker.webhooks import send_what_is_due

CONTROL, LEARNING = "control", "learning"
_QUEUES = {"tick": CONTROL, "ingest": CONTROL, "sample_tasks": CONTROL, "watch_canary": CONTROL}
_QUEUES |= {"send_webhooks": CONTROL, "run_stage": LEARNING}
_TICK_SECONDS = 1.0
_EXPIRES_SECONDS = 5.0
_INGEST_SECONDS = 60.0
_MOST_WAITING = 10
"""Messages in a queue beyond which nobody is there to read them: no more are added."""
_THREADS = 4
"""A stage, an ingest, and ticks beside them."""

log = logging.getLogger(__name__)


class PatientConnection(Connection):
    """Looks for a broker that is away every two seconds; kombu's pauses grow to thirty."""

    def _ensure_connection(
        self, errback: Any = None, max_retries: int | None = None, *_pauses: float, **options: Any
    ) -> Any:
        options |= {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 2.0}
        retry: Any = super()._ensure_connection  # kombu has no types here
        return retry(errback, max_retries, **options)


class Messages(AMQP):  # type: ignore[misc]  # Celery has no types
    """How this app talks to its broker."""

    Connection = PatientConnection


app = Celery("instructloop", amqp=Messages, set_as_current=False)
_stopping = threading.Event()
_pii = PiiWorker()
_settings: list[Settings] = []


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings. Raises StartError for a broker that cannot be one."""
    return {
        "broker_url": broker_url(settings),
        "broker_transport_options": {
            "global_keyprefix": f"{keys.PREFIX}broker:",
            **transport_options(settings),
        },
        **tls_options(settings),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_publish_retry": False,  # the next tick is the retry
        "task_acks_late": False,
        "task_default_queue": CONTROL,
        "task_routes": {name: {"queue": queue} for name, queue in _QUEUES.items()},
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": True,  # none is acknowledged late
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "beat_schedule": {
            "tick": {
                "task": "tick",
                "schedule": _TICK_SECONDS,
                "options": {"expires": _EXPIRES_SECONDS},
            }
        },
    }


class BoundedScheduler(Scheduler):  # type: ignore[misc]  # Celery has no types
    """Beat without a file of its own, which adds no ticks to a queue that nobody empties."""

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if waiting_messages(CONTROL) < _MOST_WAITING:
                return super().apply_async(entry, *args, **kwargs)
        except (*app.connection().connection_errors, SchedulingError) as error:
            log.warning("the broker does not answer: %s", error)
        return None


def waiting_messages(queue: str) -> int:
    """How many messages wait in a queue."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        return int(channel._size(queue))  # the only way that takes an empty queue for what it is


# --- tasks ----------------------------------------------------------------------------------


def _tick() -> None:
    """Start what is due."""
    for name in _run(lambda work: due_tasks(work.redis, work.settings)) or []:
        if waiting_messages(_QUEUES[name]) < _MOST_WAITING:
            app.send_task(name, expires=_EXPIRES_SECONDS)


def _ingest() -> None:
    """Turn what waits in the inbox into records."""
    _run(
        lambda work: drain_inbox(
            work.redis, work.keyring, work.settings, _pii, seconds=_INGEST_SECONDS
        )
    )


def _sample_tasks() -> None:
    """Fill the stock of labeling tasks up a little."""
    _run(lambda work: fill_stock(work, _pii))


def _watch_canary() -> None:
    """Judge the canary by what users say, and end it where that is enough."""
    _run(lambda work: canary_watch.look(work.redis, work.settings))


def _send_webhooks() -> None:
    """Tell others what happened."""
    _run(lambda work: send_what_is_due(work.redis, work.keyring, work.settings))


def _run_stage() -> None:
    """Go on with the current run, as far as it goes without waiting."""
    while _run(advance) == "moved" and not _stopping.is_set():
        pass


tick = app.task(name="tick")(_tick)
ingest = app.task(name="ingest")(_ingest)
run_stage = app.task(name="run_stage")(_run_stage)
sample_tasks = app.task(name="sample_tasks")(_sample_tasks)
watch_canary = app.task(name="watch_canary")(_watch_canary)
send_webhooks = app.task(name="send_webhooks")(_send_webhooks)


def _run(act: Callable[[Work], Awaitable[Any]]) -> Any:
    """The edge between Celery's threads and asyncio. What a later tick repairs is only logged."""
    try:
        return asyncio.run(_with_work(_settings[0], act))
    except InstructLoopError as error:
        log.warning("%s: %s", type(error).__name__, error.message)
        return None


async def _with_work(settings: Settings, act: Callable[[Work], Awaitable[Any]]) -> Any:
    url = redis_url(settings)
    async with connect(url) as redis:
        with redis_errors():
            await refuse_other(redis)  # one that did not answer at the start
        return await act(_work(settings, redis, url))


def _work(settings: Settings, redis: Redis, url: str) -> Work:
    return Work(
        redis=redis,
        redis_url=url,
        settings=settings,
        keyring=Keyring(settings.secrets),
        folders=Folders.of(settings.state_dir),
        stopping=_stopping.is_set,
    )


# --- processes ------------------------------------------------------------------------------


def run_worker(settings: Settings) -> None:
    """Be a worker until SIGTERM: then the stage checkpoints and leaves. Raises StartError."""
    _configure(settings, "worker")
    _look_at_suites(settings)
    worker_shutting_down.connect(_stop, weak=False)
    celery_worker.safe_say = lambda *_: None  # it writes plain words into our log
    try:
        app.worker_main(
            ["--quiet", "worker", "--pool=threads", f"--concurrency={_THREADS}"]
            + [f"--queues={CONTROL},{LEARNING}", f"--loglevel={settings.log_level}"]
            + ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        )
    finally:
        _pii.close()
        traces.close()


def _look_at_suites(settings: Settings) -> None:
    """Say now what stops every round. The worker goes on: it keeps the log, too."""
    try:
        read_suites(settings.learning.gate.suites)
    except Unprocessable as error:
        log.error("no round can begin: %s", error.message)


def run_beat(settings: Settings) -> None:
    """Be the clock until SIGTERM. Raises StartError."""
    _configure(settings, "beat")
    app.Beat(scheduler_cls=BoundedScheduler, loglevel=settings.log_level, quiet=True).run()


def _configure(settings: Settings, process: str) -> None:
    logs.set_up(process, level=settings.log_level, form=settings.log_format)
    refuse_foreign_data(settings)
    _settings[:] = [settings]
    _pii.use(Plan(recognizers=settings.log.pii_recognizers))
    app.conf.update(configuration(settings))
    asyncio.run(check_broker(broker_address(settings)))
    setup_logging.connect(_keep_our_logging, weak=False)
    traces.set_up(process, settings)
    metrics.show(settings.metrics_port, host=settings.metrics_host)
    log.info("%s starts", process)


def _keep_our_logging(**_: Any) -> None:
    """That somebody listens is what keeps Celery from configuring logging itself."""


def _stop(**_: Any) -> None:
    _stopping.set()
