"""PPO-ptx by two real processes: as one alone does it, and taken up by one."""

import json
import os
import subprocess
import sys

import pytest

from tests.learning.many_policy import play
from tests.learning.many_processes import assert_same_weights
from tests.learning.ppo_loop import write_models

LORA = {"lora_rank": 4, "learning_rate": 0.03}
SAME = {"reward": 2e-2, "value_loss": 3e-2, "ptx_loss": 1e-2, "grad_norm": 5e-2, "entropy": 1e-2}
"""Relative, by figure: the models are bf16, and rows are other ones."""


def told(folder):
    return json.loads((folder / "told.json").read_text())


def assert_same(expected, found):
    for one, other in zip(expected["history"], found["history"], strict=True):
        for figure, relative in SAME.items():
            assert other[figure] == pytest.approx(one[figure], rel=relative, abs=1e-2), figure
        assert other["kl_per_token"] == pytest.approx(one["kl_per_token"], abs=0.05)
        assert other["first_ratio_error"] == one["first_ratio_error"] == 0.0
    assert found["ptx_coef"] == pytest.approx(expected["ptx_coef"], rel=0.05)
    assert found["text_loss"] == pytest.approx(expected["text_loss"], rel=1e-2)
    assert found["changed"] == pytest.approx(expected["changed"], abs=0.1)
    assert found["loads"] == expected["loads"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, LORA], ids=["weights", "adapters"])
def test_two_processes_are_one_and_one_takes_up_their_checkpoint(tmp_path, changes):
    write_models(tmp_path / "models")
    folders = [tmp_path / name for name in ("alone", "two", "after")]
    for folder in folders:
        folder.mkdir()
    alone, two, after = folders
    (two / "changes.json").write_text(json.dumps(changes))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "learning.training.torchrun",
            "2",
            "tests.learning.many_policy",
            two,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    play(alone, **changes)
    assert (told(alone)["processes"], told(two)["processes"]) == (1, 2)
    assert_same(told(alone), told(two))
    before = str(tmp_path / "models" / "policy")
    assert_same_weights(alone / "model", two / "model", before=before)

    (two / "kept").rename(after / "kept")
    play(after, resume=two / "midway", **changes)
    assert_same_weights(alone / "model", after / "model", before=before)
