"""Which feedback a snapshot trains on, by kind: train split only, and no held-out rater's."""

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from feedback.tables import SCHEMAS
from learning.rounds.trained_on import feedback_trained_on


def said(name, *, split="train", heldout=False, **more):
    return {"feedback_id": name, "split": split, "heldout_rater": heldout, **more}


@pytest.fixture
def snapshot(tmp_path):
    tables = {
        "rankings": [
            said("fb-rank", group_id="token-1"),
            said("fb-demo", group_id="token-1"),
            said("task-1", group_id="task-1"),
            said("task-1", group_id="task-1"),  # a second rater's answer
            said("task-2", group_id="task-2", heldout=True),
            said("fb-tested", group_id="token-2", split="validation"),
        ],
        "ratings": [said("fb-thumb"), said("task-1"), said("fb-late", split="test")],
        "demonstrations": [said("fb-demo"), said("fb-judge", heldout=True)],
    }
    for name, rows in tables.items():
        table = pa.Table.from_pylist(rows, schema=SCHEMAS[name])
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    return tmp_path


def test_each_id_that_trains_is_named_once_with_its_kind(snapshot):
    assert feedback_trained_on(snapshot) == {
        "fb-demo": "demonstration",
        "fb-rank": "ranking",
        "fb-thumb": "rating",
        "task-1": "labeling",
    }
