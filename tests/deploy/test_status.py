"""What `status` says of the next round, and how tables keep names whole."""

from io import StringIO

import pytest
from rich.console import Console

from core.hyperparameters import LearningSettings
from deploy.status import next_round
from deploy.terminal import listing, show

IDLE = {
    "paused": False,
    "worker": True,
    "current": None,
    "new_comparisons": 27,
    "last_round": 1_000_000.0,
    "no_room": None,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"paused": True}, "none while paused"),
        ({"worker": False}, "none without a worker"),
        ({"current": {"id": "r1"}}, "after the one that runs"),
        ({"no_room": "9 MiB are free"}, "when there is room: 9 MiB are free"),
        ({}, "at 300 new comparisons (now 27), or 1970-01-12 14:46 UTC"),
    ],
)
def test_the_next_round_is_said_in_words(change, said):
    learning = LearningSettings(min_new_comparisons=300, interval_seconds=3600)
    assert next_round({**IDLE, **change}, learning).startswith(said)


def test_before_the_first_round_only_comparisons_count():
    found = next_round({**IDLE, "last_round": None}, LearningSettings(min_new_comparisons=300))
    assert found == "at 300 new comparisons (now 27)"


def test_a_name_is_never_cut_however_narrow_the_terminal_is():
    name = "r20261122-221214-cfdc"
    table = listing("run", "reason")
    table.add_row(name, "because of this and that and something else besides " * 3)
    out = StringIO()
    Console(file=out, width=40).print(table)
    assert name in out.getvalue()


def test_a_pipe_gets_rows_in_one_line(capsys):
    table = listing("run", "reason")
    table.add_row("r1", "x" * 120)
    show(table)
    assert "x" * 120 in capsys.readouterr().out
