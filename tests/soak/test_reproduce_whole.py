"""The paper in miniature from start to table on a random model, killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from deploy.document import ROOT
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
PROGRAM = """
import sys
from pathlib import Path
from core.settings import load_settings
from deploy.reproduce.plan import Wanted
from deploy.reproduce.run import reproduce
model, out = map(Path, sys.argv[1:])
settings = load_settings(state_dir=out, model=str(model))
wanted = Wanted(size="little", seeds=(0,))
reproduce(wanted, settings, out=out, say=lambda line: print(line, flush=True))
"""


def start(model, out):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(model), str(out)],
        cwd=ROOT,
        env={**os.environ, "INSTRUCTLOOP_LEARNING__ROLLOUT_ENGINE": "transformers"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_reproduction_that_is_killed_and_stopped_goes_on_to_its_table(tmp_path):
    model, out = make_tiny_model(tmp_path / "model"), tmp_path / "out"
    first = start(model, out)
    until(out / "seed-0" / "ppo" / "progress.json", first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = start(model, out)
    until(out / "seed-0" / "ppo-ptx" / "progress.json", second)
    second.send_signal(signal.SIGTERM)
    said, _ = second.communicate()
    assert "/sft" not in said
    assert second.returncode != 0
    third = start(model, out)
    said, _ = third.communicate()
    assert third.returncode == 0
    assert "/ppo:" not in said
    report = json.loads((out / "report.json").read_text())
    assert {one["verdict"] for one in report["controls"]} == {"too few"}
    assert report["gate"]["still"][0]["verdict"] != "pass"
    assert {one["verdict"] for one in report["claims"]} == {"too few"}
    assert (out / "learning.png").stat().st_size > 10_000


def until(path, process):
    deadline = time.monotonic() + 900
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
