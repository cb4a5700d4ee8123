"""How much one rater may say in a round: the largest share of the training comparisons.

Weights of ranking rows are lowered, nothing is dropped. Pure; called by snapshot.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from feedback.rows import RankingRow


def capped(rows: Sequence[RankingRow], share_cap: float) -> list[RankingRow]:
    """The rows, with training rows of a rater above the cap's share weighing less."""
    given: Counter[str] = Counter()
    for row in rows:
        if _trains(row):
            given[row.said.rater] += row.comparisons
    level = cap_level(list(given.values()), share_cap)
    return [
        replace(row, weight=level / given[row.said.rater])
        if _trains(row) and given[row.said.rater] > level
        else row
        for row in rows
    ]


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


def _trains(row: RankingRow) -> bool:
    return row.said.split == "train" and not row.said.heldout_rater
