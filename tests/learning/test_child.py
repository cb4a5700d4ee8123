"""A stage's process: what it sees of ours, who may start it, and that it goes when it must."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learning.rounds.child import (
    Progress,
    command_line,
    last_line,
    numbers,
    read_progress,
    read_refusal,
    scrubbed_environment,
    start_child,
)
from tests.conftest import eventually
from tests.learning.loop_rig import is_alive

SLEEPER = "{python} -c 'import time; time.sleep(600)' {folder}"
OUTSIDE = {
    "PATH": "/bin",
    "HOME": "/home/x",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "7",
    "CUDA_VISIBLE_DEVICES": "0",
    "INSTRUCTLOOP_REDIS_URL": "redis://:secret@host",
    "INSTRUCTLOOP_ENGINE_TOKENS": "/somewhere",
    "VLLM_API_KEY": "secret",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "HF_TOKEN": "secret",
}


def start(folder, launcher=SLEEPER):
    return start_child(
        "learning.reward_model.train",
        folder,
        launcher=launcher,
        environment=scrubbed_environment(os.environ, threads=1),
        idle_priority=False,
    )


def test_the_environment_is_an_allowlist_without_secrets():
    seen = scrubbed_environment(OUTSIDE, threads=0)
    assert "secret" not in str(seen)
    assert not [name for name in seen if name.startswith("INSTRUCTLOOP_")]
    assert seen["LC_ALL"] == "C.UTF-8"
    assert (seen["OMP_NUM_THREADS"], seen["GOMP_SPINCOUNT"]) == ("7", "2000")
    assert seen["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_threads_of_the_settings_win_over_the_environment():
    assert scrubbed_environment(OUTSIDE, threads=3)["OMP_NUM_THREADS"] == "3"


def test_the_command_is_this_python_or_the_template_of_a_cluster(state_dir):
    local = command_line("local", "learning.evaluation.evaluate", state_dir)
    assert local == [sys.executable, "-m", "learning.evaluation.evaluate", str(state_dir)]
    template = "srun --label 'a b' torchrun -m {module} {folder}"
    assert command_line(template, "learning.evaluation.evaluate", state_dir) == [
        *(
            "srun",
            "--label",
            "a b",
            "torchrun",
            "-m",
            "learning.evaluation.evaluate",
            str(state_dir),
        )
    ]


def test_two_children_never_have_one_folder(state_dir):
    first = start(state_dir)
    assert start(state_dir) is None
    first.close()
    second = start(state_dir)
    assert second is not None
    second.close()


async def test_the_folder_stays_taken_while_the_child_of_a_dead_starter_lives(state_dir):
    """The lock is the child's own: closing ours, as a kill would, does not free it."""
    child = start(state_dir)
    await eventually(lambda: is_alive(child.process.pid))
    child.lock.close()
    assert start(state_dir) is None
    child.kill()
    again = start(state_dir)
    assert again is not None
    again.close()


async def test_a_child_dies_with_the_process_that_started_it(state_dir):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from learning.rounds.child import start_child\n"
        f"c = start_child('x', Path({str(state_dir)!r}), launcher={SLEEPER!r}, environment={{}},"
        "  idle_priority=False)\n"
        "print(c.process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    ready = [sys.executable, "-c", "import time; time.sleep(600)", str(state_dir), ""]
    # until then the child is still the wrapper, which asks the kernel for it
    await eventually(lambda: Path(f"/proc/{pid}/cmdline").read_text().split("\0") == ready)
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    await eventually(lambda: not is_alive(pid))
    assert not is_alive(pid)


async def test_killing_takes_along_what_the_child_started(state_dir):
    family = "{python} -c 'import subprocess, sys; subprocess.Popen(["
    family += '"sleep", "600"]); print("up", flush=True); import time; time.sleep(600)\' {folder}'
    child = start(state_dir, family)
    await eventually(lambda: "up" in (state_dir / "log").read_text())
    group = child.process.pid
    child.kill()
    assert child.exit_code == -signal.SIGKILL

    def nobody_left():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    await eventually(nobody_left)
    child.close()


async def test_asking_to_stop_is_sigterm_and_closing_kills_who_does_not_listen(state_dir):
    deaf = "{python} -c 'import signal, time; signal.signal(15, signal.SIG_IGN);"
    deaf += ' print("deaf", flush=True); time.sleep(600)\' {folder}'
    child = start(state_dir, deaf)
    await eventually(lambda: "deaf" in (state_dir / "log").read_text())
    child.ask_to_stop()
    time.sleep(0.1)
    assert child.exit_code is None
    child.close()
    assert child.exit_code == -signal.SIGKILL


def test_progress_refusal_and_log_are_read_even_when_they_are_not_there_yet(state_dir):
    assert read_progress(state_dir) == Progress()
    assert read_refusal(state_dir) == "it did not say why"
    (state_dir / "progress.json").write_text(
        json.dumps({"fraction": 0.25, "message": "half", "figures": {"kl": 1.5, "note": "x"}})
    )
    (state_dir / "log").write_text("first\nlast words\n\n")
    assert read_progress(state_dir) == Progress(0.25, "half", (("kl", 1.5),))
    assert last_line(state_dir) == "last words"


def test_numbers_are_flattened_one_level_and_what_is_no_finite_number_is_left_out():
    figures = {"a": 1, "b": {"c": 0.5, "d": "x"}, "e": [1, 2], "f": None, "g": float("nan")}
    assert numbers(figures) == {"a": 1.0, "b.c": 0.5}


def test_only_the_end_of_a_long_log_is_read(state_dir):
    (state_dir / "log").write_text("x" * 100_000 + "\nthe end")
    assert last_line(state_dir) == "the end"


@pytest.mark.parametrize("content", ["", "{", "not json"])
def test_half_a_progress_file_counts_as_none(state_dir, content):
    (state_dir / "progress.json").write_text(content)
    assert read_progress(state_dir) == Progress()
