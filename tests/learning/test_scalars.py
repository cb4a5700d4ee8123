"""TensorBoard reads back what a stage wrote."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from learning.training.scalars import Scalars
from learning.training.stage import Stage
from tests.learning.event_files import read_scalars


def test_tensorboard_reads_every_number_at_its_step(tmp_path: Path) -> None:
    stage = Stage(folder=tmp_path, inputs={})
    stage.scalars(1, {"loss": 2.5, "note": "words", "validation": {"accuracy": 0.75, "pairs": 28}})
    stage.scalars(2, {"loss": 1.25, "missing": None})
    assert read_scalars(tmp_path / "tensorboard") == {
        "loss": [(1, 2.5), (2, 1.25)],
        "validation/accuracy": [(1, 0.75)],
        "validation/pairs": [(1, 28.0)],
    }


def test_what_is_taken_up_again_hides_the_steps_that_are_made_again(tmp_path: Path) -> None:
    first = Scalars(tmp_path)
    for step in (1, 2, 3):
        first.add(step, {"loss": 10.0 * step})
        first.add(step, {"loss": 7.0}, part="raters-1")
    second = Scalars(tmp_path / "elsewhere")
    second.add(2, {"loss": 1.0})
    (written,) = (tmp_path / "elsewhere").iterdir()
    written.rename(tmp_path / f"{written.name}.later")  # files are read in the order of their names
    assert read_scalars(tmp_path)["loss"] == [(1, 10.0), (2, 1.0)]
    assert read_scalars(tmp_path / "raters-1")["loss"] == [(1, 7.0), (2, 7.0), (3, 7.0)]


def test_a_killed_process_has_lost_no_step(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from learning.training.scalars import Scalars\n"
        "Scalars(Path(sys.argv[1])).add(4, {'reward': 0.5})\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert read_scalars(tmp_path) == {"reward": [(4, 0.5)]}


def test_of_several_processes_the_first_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "RANK", "1")
    Stage(folder=tmp_path, inputs={}).scalars(1, {"loss": 1.0})
    assert not (tmp_path / "tensorboard").exists()


def test_what_pytorchs_own_writer_writes_is_read_the_same_way(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "torch")) as writer:
        writer.add_scalar("loss", 2.5, 3)
    Scalars(tmp_path / "ours").add(3, {"loss": 2.5})
    assert read_scalars(tmp_path / "ours") == read_scalars(tmp_path / "torch")
