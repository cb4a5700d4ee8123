"""lm-eval as a child process: what it is asked, and what becomes of what it writes."""

import json
from importlib import util
from pathlib import Path

import pytest

from learning.evaluation import regression_lm_eval
from learning.evaluation.regression_lm_eval import read_samples, task_marks
from learning.training.stage import NotEnoughData

PLAYED = """
import json, pathlib, sys
told = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if told["--tasks"] == "missing":
    sys.exit("KeyError: missing")
out = pathlib.Path(told["--output_path"]) / "a__model"
out.mkdir(parents=True)
model = told["--model_args"].partition(",")[0].removeprefix("pretrained=")
for task in told["--tasks"].split(","):
    rows = [{"doc_id": i, "filter": "none", "acc": float(model != f"/m/{i}")} for i in range(3)]
    path = out / f"samples_{task}_2026-01-02T03-04-05.678901.jsonl"
    path.write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""
"""Writes what lm-eval 0.4.13 writes with `--log_samples`. The real one needs packages and data that
a test cannot count on."""


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(PLAYED)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.syspath_prepend(str(package.parent))


def test_tasks_are_answered_item_by_item(tmp_path: Path, played: None) -> None:
    marked = task_marks(Path("/m/1"), ["arc_easy", "sums"], limit=3, out=tmp_path / "out")
    assert marked == {"arc_easy": [True, False, True], "sums": [True, False, True]}
    again = task_marks(Path("/m/7"), ["sums"], limit=3, out=tmp_path / "out")
    assert again == {"sums": [True] * 3}


def test_a_task_that_cannot_be_run_is_not_enough_data_and_says_why(
    tmp_path: Path, played: None
) -> None:
    with pytest.raises(NotEnoughData, match="could not run missing: KeyError: missing"):
        task_marks(tmp_path, ["missing"], limit=2, out=tmp_path / "out")


def test_without_lm_eval_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression_lm_eval, "find_spec", lambda name: util.find_spec("no_" + name))
    with pytest.raises(NotEnoughData, match="pip install lm-eval"):
        task_marks(tmp_path, ["hellaswag"], limit=2, out=tmp_path / "out")


def test_of_several_filters_the_first_counts_and_items_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "samples_sums"
    rows = [
        {"doc_id": 1, "filter": "strict", "exact_match": 0.0},
        {"doc_id": 0, "filter": "strict", "exact_match": 1.0},
        {"doc_id": 0, "filter": "loose", "exact_match": 0.0},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_samples(path) == [True, False]
    path.write_text(json.dumps({"doc_id": 0, "filter": "none", "bleu": 3.0}))
    with pytest.raises(NotEnoughData, match="neither acc nor exact_match"):
        read_samples(path)
