"""The frame of a stage: what it leaves behind when it fails, and what it finds when it goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from learning.policy.samples import write_samples
from learning.rounds.child import last_line
from learning.rounds.decisions import describe_exit
from learning.training.stage import EXIT_FAILED, FAILURE, SAMPLES

DIVERGES = """
from learning.training.stage import run

def main(stage):
    raise FloatingPointError("the gradient's norm is nan; the step was not taken")

run(main)
"""
SHOWS = """
import sys
from learning.training.stage import SAMPLES, run

def main(stage):
    with (stage.partial / SAMPLES).open("a") as file:
        file.write(sys.argv[2])
    (stage.partial / "half.bin").write_bytes(b"half")
    stage.checkpoint.write_text("{}")
    sys.exit(75)

run(main)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run-1" / "reward_model"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"log_format": "json"}))
    return folder


def start(program: str, folder: Path, *words: str) -> int:
    with (folder / "log").open("ab") as log:
        return subprocess.run(
            [sys.executable, "-c", program, str(folder), *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


def test_a_training_whose_numbers_are_no_numbers_says_so_to_people(folder: Path) -> None:
    code = start(DIVERGES, folder)
    assert code == EXIT_FAILED
    reason = "the training diverged: the gradient's norm is nan; the step was not taken"
    assert json.loads((folder / FAILURE).read_text()) == {"reason": reason}
    assert reason in describe_exit(code, last_line=last_line(folder))


def test_samples_of_before_a_checkpoint_stay(folder: Path) -> None:
    start(SHOWS, folder, "first ")
    (folder / "out.partial" / "model").mkdir()
    start(SHOWS, folder, "second ")
    assert (folder / "out.partial" / SAMPLES).read_text() == "first second "
    names = sorted(path.name for path in (folder / "out.partial").iterdir())
    assert names == ["half.bin", SAMPLES]


def test_without_a_checkpoint_nothing_of_an_earlier_attempt_stays(folder: Path) -> None:
    start(SHOWS, folder, "first ")
    (folder / "checkpoint").unlink()
    start(SHOWS, folder, "second ")
    assert (folder / "out.partial" / SAMPLES).read_text() == "second "


def test_lines_of_later_iterations_go_when_one_is_written_again(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 2):
        write_samples(tmp_path, [{"iteration": iteration, "text": text} for text in "ab"])
    read = [json.loads(line) for line in (tmp_path / SAMPLES).read_text().splitlines()]
    assert [row["iteration"] for row in read] == [1, 1, 2, 2]
    assert [path.name for path in tmp_path.iterdir()] == [SAMPLES]
