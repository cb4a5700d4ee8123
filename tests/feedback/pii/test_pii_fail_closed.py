"""Whatever goes wrong with the filter, nothing raw is left anywhere, and what was said is not lost.

Everything that an ingest touches lives in one folder here: Redis with its append-only file, keys,
logs. After each failure all of it is searched for what was planted.
"""

import asyncio
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from core import keys
from core.keyring import Keyring
from core.redis_client import connect
from core.setting_groups import LogSettings
from core.settings import Settings
from feedback import intake, store
from feedback.ingest import ingest_batch, retry_quarantine
from feedback.pii import worker as worker_module
from feedback.pii.record import Plan
from feedback.pii.worker import PiiFailed, PiiWorker
from feedback.schemas import DemonstrationRequest, FeedbackRequest
from feedback.sealing import seal_texts
from tests.feedback.factory import api_key, completion_id, entry, put
from tests.feedback.pii.canaries import canaries, probes
from tests.feedback.pii.stores import everything, left
from tests.feedback.pii.test_pii_worker import broken_model

PLANTED = canaries(24, seed=7)
NAMED = "Ottoline Vexworthy-Canary said it. "
"""A sentence with a name, so that the model is asked."""
BROKEN = "tests.feedback.pii.own_recognizers:Broken"
SEARCHED = [*(probe for canary in PLANTED for probe in probes(canary)), "VexworthyCanary"]


class World:
    """A prompt, a comment and a demonstration, all with planted items, wait for ingest."""

    def __init__(self, redis, settings: Settings) -> None:
        self.redis, self.settings = redis, settings
        self.keyring = Keyring(settings.state_dir / "secrets")

    async def fill(self) -> None:
        cid = completion_id(self.keyring)
        one = entry(self.keyring, prompt=NAMED + " ".join(PLANTED[:8]), id=cid,
                    answers=(" ".join(PLANTED[8:12]),), metadata={"k": PLANTED[12]})  # fmt: skip
        await put(self.redis, self.keyring, one)
        who = intake.speaker(api_key(), "r", keyring=self.keyring, settings=self.settings.feedback)
        texts = {"comment": NAMED + " ".join(PLANTED[13:18])}
        said = intake.rating(
            FeedbackRequest(completion_id=cid, comment="x"), who, keyring=self.keyring,
            sealed=seal_texts(texts, self.keyring), now=1.0,
        )  # fmt: skip
        await store.record(self.redis, said, reply="{}")
        texts = {"text": NAMED + " ".join(PLANTED[18:])}
        shown = intake.demonstration(
            DemonstrationRequest(completion_id=cid, text="x"), who, keyring=self.keyring,
            sealed=seal_texts(texts, self.keyring), now=1.0,
        )  # fmt: skip
        await store.record(self.redis, shown, reply="{}")

    async def ingest(self, pii: PiiWorker) -> None:
        """Several rounds, as a worker does them; a filter that does not start ends each."""
        for _ in range(4):
            with suppress(PiiFailed):
                await ingest_batch(
                    self.redis, self.keyring, self.settings, pii, limit=10, retry_after_seconds=0
                )

    async def sealed(self) -> int:
        """How much still waits: the prompt, the comment and the demonstration."""
        waiting = await self.redis.xlen(keys.inbox()) + await self.redis.scard(keys.feedback_text())
        return int(waiting + await self.redis.hlen(keys.quarantine()))


@pytest.fixture
async def world(redis_server):
    log = LogSettings(max_deliveries=2, pii_seconds=0.5)
    settings = Settings(state_dir=redis_server.state_dir, redis_url=redis_server.url, log=log)
    async with connect(redis_server.url) as redis:
        world = World(redis, settings)
        await world.fill()
        yield world


class Dying(PiiWorker):
    """Its child is killed at each record, a moment after it was sent."""

    def filter_record(self, texts, *, deadline_seconds):
        self.start()
        os.kill(self.pid, signal.SIGSTOP)
        os.kill(self.pid, signal.SIGKILL)
        return super().filter_record(texts, deadline_seconds=deadline_seconds)

    def _ready(self) -> None:
        """No new child in place of the killed one: this record has to meet its death."""
        if self._process is None:
            super()._ready()


def raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PiiWorker:
    source = (
        "class M:\n  def memory_zone(self): raise RuntimeError('no')\ndef load(exclude): return M()"
    )
    monkeypatch.setattr(worker_module, "_ROOT", broken_model(tmp_path, source))
    return PiiWorker()


def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PiiWorker:
    source = (
        "import time\nclass M:\n  def memory_zone(self): time.sleep(99)\n"
        "def load(exclude): return M()"
    )
    monkeypatch.setattr(worker_module, "_ROOT", broken_model(tmp_path, source))
    return PiiWorker()


def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PiiWorker:
    source = "def load(exclude): return open('/proc/1/mem/model', 'rb')"
    monkeypatch.setattr(worker_module, "_ROOT", broken_model(tmp_path, source))
    return PiiWorker()


def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PiiWorker:
    return Dying()


def with_a_broken_recognizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PiiWorker:
    return PiiWorker(Plan(recognizers=(BROKEN,)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "failing", [killed, raising, hanging, unreadable, with_a_broken_recognizer]
)
async def test_nothing_raw_is_left_and_nothing_said_is_lost(
    world: World, failing, tmp_path, monkeypatch, caplog, capfd
) -> None:
    caplog.set_level(logging.DEBUG)
    with monkeypatch.context() as patch:
        pii = failing(tmp_path, patch)
        try:
            await world.ingest(pii)
        finally:
            await asyncio.to_thread(pii.close)
    assert await world.sealed() == 3
    folder = world.settings.state_dir
    stores = await everything(world.redis, folder, caplog.text, *capfd.readouterr())
    assert left(SEARCHED, stores) == {}
    assert [p for p in folder.rglob("core*") if p.is_file()] == []
    assert await recovered(world) == 0
    stores = await everything(world.redis, folder, caplog.text, *capfd.readouterr())
    assert left(SEARCHED, stores) == {}


async def recovered(world: World) -> int:
    """What still waits after a filter that works, an hour later."""
    log = world.settings.log.model_copy(update={"pii_seconds": 20.0})
    world.settings = world.settings.model_copy(update={"log": log})
    pii = PiiWorker()
    try:
        await world.ingest(pii)
        await retry_quarantine(world.redis, world.keyring, world.settings, pii, limit=10, now=4e9)
    finally:
        await asyncio.to_thread(pii.close)
    said = await store.get_all(world.redis)
    assert all(feedback.text and "PERSON_1" in str(feedback.text) for feedback in said)
    return await world.sealed()
