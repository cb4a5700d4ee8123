"""Which feedback in a snapshot trains: the ids that a version's lineage names, with their kinds.

Reads the tables of a snapshot as learning/reward_model/dataset.py does, and only their columns of
names. Next: core/lineage.py puts them into the card.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

_COLUMNS = ["feedback_id", "split", "heldout_rater"]


def feedback_trained_on(snapshot: Path) -> dict[str, str]:
    """Ids of the feedback that training reads (train split, not held-out raters'), sorted.

    By id its kind: `ranking`, `rating`, `demonstration`, or `labeling` for a task, by whose id all
    answers to it go. A demonstration of a logged prompt is also a ranking, and counts once.
    """
    kinds: dict[str, str] = {}
    for row in _rows(snapshot, "ratings"):
        kinds[row["feedback_id"]] = "rating"
    for row in _rows(snapshot, "rankings", "group_id"):
        own_group = row["group_id"] == row["feedback_id"]
        kinds[row["feedback_id"]] = "labeling" if own_group else "ranking"
    for row in _rows(snapshot, "demonstrations"):
        kinds[row["feedback_id"]] = "demonstration"
    return dict(sorted(kinds.items()))


def _rows(snapshot: Path, name: str, *more: str) -> list[dict[str, Any]]:
    rows = parquet.read_table(snapshot / f"{name}.parquet", columns=[*_COLUMNS, *more]).to_pylist()
    return [row for row in rows if row["split"] == "train" and not row["heldout_rater"]]
