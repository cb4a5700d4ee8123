"""How much one rater may say in a round: the largest share of what trains, kind by kind.

Weights of rows are lowered, nothing is dropped. Among few raters a cap below an equal share would
punish everybody, so nobody is cut below twice that: alone or as one of two a rater is free, as one
of six may give a third, and from 2 / cap raters on the cap is what the setting says. Rankings
count by their untied pairs, ratings and demonstrations by their number. Pure; called by dataset.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from feedback.rows import DemonstrationRow, RankingRow, RatingRow

EQUAL_SHARES = 2.0
"""So many equal shares a rater may always give."""
Row = TypeVar("Row", RankingRow, RatingRow, DemonstrationRow)


def capped(rows: Sequence[Row], share_cap: float) -> list[Row]:
    """The rows, with training rows of a rater above the cap's share weighing less."""
    given: Counter[str] = Counter()
    for row in rows:
        if _trains(row):
            given[row.said.rater] += _size(row)
    spoken = [said for said in given.values() if said]
    level = cap_level(spoken, cap_among(len(spoken), share_cap))
    return [
        replace(row, weight=level / given[row.said.rater])
        if _trains(row) and given[row.said.rater] > level
        else row
        for row in rows
    ]


def cap_among(raters: int, share_cap: float) -> float:
    """The share that one of so many raters may give: the cap, or twice an equal share."""
    return min(1.0, max(share_cap, EQUAL_SHARES / raters)) if raters else 1.0


def cap_level(given: Sequence[int], share_cap: float) -> float:
    """The most comparisons that one rater may count for.

    The largest L with L <= share_cap * sum(min(given, L)). With fewer raters than 1 / share_cap
    there is none; then all count for as much as the one who said least, which is the best a cap
    can do.
    """
    ordered = sorted(given)
    below = 0.0
    for position, least in enumerate(ordered):
        above = len(ordered) - position  # raters who would be cut to the level
        slack = 1.0 - share_cap * above
        if slack > 0.0 and (level := share_cap * below / slack) < least:
            return max(level, float(ordered[0]))
        below += least
    return float(ordered[-1]) if ordered else 0.0


def _size(row: RankingRow | RatingRow | DemonstrationRow) -> int:
    return row.comparisons if isinstance(row, RankingRow) else 1


def _trains(row: RankingRow | RatingRow | DemonstrationRow) -> bool:
    return row.said.split == "train" and not row.said.heldout_rater
