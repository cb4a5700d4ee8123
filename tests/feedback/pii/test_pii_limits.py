"""What the filter costs at worst: time on hostile text, memory over many prompts, no network."""

import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.bench.pii import cpu_ms_per_prompt
from feedback.pii.record import FIRST_TIER, Plan
from feedback.pii.rules import PLACEHOLDER
from feedback.pii.worker import PiiFailed, PiiWorker

ROOT = Path(__file__).resolve().parents[3]
UNITS = (
    "(", "<", '"', "a", "A", "1", "a.", "a@", "1 ", '"\n"', "password=", "eyJ", "ab_",
    "-----BEGIN PRIVATE KEY-----",
)  # fmt: skip
HINTS = " and canary.hunter2@mail.example.org at dot tel +1 (2) password= iban card born passport"
"""What makes every rule look at the window that it ends."""
SECONDS = 10.0
"""A second of CPU for each 20 KB of 200 KB; the time on the clock is the filter's own affair."""


@pytest.fixture(scope="module")
def worker():
    worker = PiiWorker()
    worker.start()
    yield worker
    worker.close()


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_200_kb_of_anything_takes_a_second_per_20_kb_and_the_child_lives(
    worker: PiiWorker, unit: str
) -> None:
    worker.start()
    before, child = worker.pid, psutil.Process(worker.pid)
    text = (unit * 200_000)[:200_000] + HINTS
    began = sum(child.cpu_times()[:2])
    done = worker.filter_record([text], deadline_seconds=200)
    assert "hunter2" not in done.texts[0]
    assert len(PLACEHOLDER.sub("", done.texts[0])) <= len(text)
    assert worker.pid == before
    assert sum(child.cpu_times()[:2]) - began < SECONDS


def test_a_record_with_very_many_texts_is_bound_by_the_same_time(worker: PiiWorker) -> None:
    with pytest.raises(PiiFailed) as failure:
        worker.filter_record(["Ask Ottoline Vex at 5 Oak Road."] * 20_000, deadline_seconds=0.3)
    assert failure.value.reason in ("DeadlinePassed", "deadline", "died")


@pytest.mark.slow
def test_memory_does_not_grow_with_new_words(worker: PiiWorker) -> None:
    """Some pages at first, then nothing: a child lives for 10,000 records and may grow 20 MB."""
    draw = random.Random(3)

    def prompt() -> str:
        words = ["".join(draw.choices("abcdefghijklmnoprstu", k=9)) for _ in range(12)]
        return f"We met {words[0].title()} and then " + " of the ".join(words[1:])

    worker.start()
    process = psutil.Process(worker.pid)
    sizes = [process.memory_info().rss]
    for _ in range(800):
        worker.filter_record([prompt()], deadline_seconds=200)
    sizes.append(process.memory_info().rss)
    assert sizes[1] - sizes[0] < 20 * 1024 * 1024


def test_nothing_is_asked_of_the_network() -> None:
    """An audit hook ends the process at the first look-up or connection, at start and run."""
    program = (
        "import os, sys\n"
        "def hook(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto',\n"
        "                 'socket.gethostbyname', 'urllib.Request', 'subprocess.Popen'):\n"
        "        os._exit(9)\n"
        "sys.addaudithook(hook)\n"
        "from feedback.pii.record import Plan, filter_record\n"
        "text = 'Ottoline Vex, ann@mail.example.org, 5 Oak Road, https://a.example/x'\n"
        "done = filter_record([text], deadline_seconds=20, plan=Plan(second_tier=True))\n"
        "assert 'PERSON_1' in done.texts[0] and 'EMAIL_1' in done.texts[0]\n"
        "print('filtered')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "filtered\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "milliseconds"), [(FIRST_TIER, 20.0), (Plan(True), 40.0)])
def test_a_prompt_costs_about_what_was_measured(plan: Plan, milliseconds: float) -> None:
    """CPU time; twice what it takes on a busy machine, so that only a real change shows."""
    assert cpu_ms_per_prompt(prompts=60, plan=plan) < milliseconds
