"""Children are real processes: they die, come back with a growing delay, and stop in order."""

import os
import signal
import subprocess
import sys
import time

import pytest

from deploy.supervisor import Child, Supervisor, ending, next_delay

RUNS_UNTIL_TOLD = "import signal; signal.pause()"
IGNORES_SIGTERM = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n"
    "while True: signal.pause()"
)


def child(tmp_path, name: str, code: str, stop_seconds: float = 10.0) -> Child:
    return Child(
        name=name,
        command=[sys.executable, "-c", code],
        log=tmp_path / f"{name}.log",
        stop_seconds=stop_seconds,
    )


@pytest.fixture
def said():
    return []


def wait_until(condition, seconds: float = 15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_that_dies_is_started_again_and_the_reason_is_said(tmp_path, said):
    supervisor = Supervisor(say=said.append)
    one = child(tmp_path, "one", RUNS_UNTIL_TOLD)
    supervisor.start(one)
    first = one.process.pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not one.alive)
    wait_until(lambda: (supervisor.tend(), one.alive)[1])
    assert one.process.pid != first
    assert one.restarts == 1
    assert "signal 9" in said[0]
    assert "one.log" in said[0]
    supervisor.stop()


def test_the_delay_doubles_to_a_bound_and_a_long_life_forgives():
    delays, delay = [], 0.0
    for _ in range(7):
        delay = next_delay(delay, lived=0.5)
        delays.append(delay)
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert next_delay(30.0, lived=61.0) == 1.0


def test_children_stop_last_started_first(tmp_path, said):
    supervisor = Supervisor(say=said.append)
    for name in ("redis", "gateway", "beat"):
        supervisor.start(child(tmp_path, name, RUNS_UNTIL_TOLD))
    supervisor.stop()
    assert said == ["stopping beat", "stopping gateway", "stopping redis"]
    assert not any(one.alive for one in supervisor.children)


def test_a_child_that_does_not_stop_in_its_time_is_killed(tmp_path, said):
    supervisor = Supervisor(say=said.append)
    stubborn = child(tmp_path, "stubborn", IGNORES_SIGTERM, stop_seconds=1.0)
    supervisor.start(stubborn)
    wait_until(lambda: "deaf" in stubborn.log.read_text())
    supervisor.stop()
    assert stubborn.process.returncode == -signal.SIGKILL
    assert not stubborn.alive


def test_children_die_with_a_supervisor_that_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    code = f"""
import time
from pathlib import Path
from deploy.supervisor import Child, Supervisor
supervisor = Supervisor(say=print)
log = Path({str(tmp_path)!r}) / "log"
one = Child(name="one", command=["sleep", "600"], log=log, stop_seconds=1)
supervisor.start(one)
while open(f"/proc/{{one.process.pid}}/cmdline", "rb").read() != b"sleep\\x00600\\x00":
    time.sleep(0.01)
Path({str(pid_file)!r}).write_text(str(one.process.pid))
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: _gone(pid))
    assert _gone(pid)


def _gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}") or _zombie(pid)


def _zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_endings_are_said_in_words():
    assert ending(-9) == "signal 9"
    assert ending(3) == "exit code 3"
    assert ending(None) == "it did not start"
