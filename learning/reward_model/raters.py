"""Raters apart from each other: groups to leave out in turn, and how far each can be relied on.

Pure: rankings in, groups and weights out. The trainings with a group left out are in
learning/reward_model/folds.py; who is held out from training altogether, the snapshot says.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from learning.reward_model.dataset import RankedGroup, Ranking

PRIOR_PAIRS = 20.0
"""A rater's agreement starts as the mean of all, worth so many pairs."""
LEAST_WEIGHT = 0.1
"""Of a rater who agrees with others no more often than chance."""


def volumes(ranked: Iterable[RankedGroup]) -> Counter[str]:
    """Untied pairs that each rater gave; held-out raters are not counted."""
    given: Counter[str] = Counter()
    for group in ranked:
        for ranking in group.by(heldout=False):
            given[ranking.rater] += ranking.num_pairs
    return given


def rater_groups(given: Mapping[str, int], count: int) -> list[frozenset[str]]:
    """Raters in `count` groups of similar volume, none empty: fewer where there are fewer raters.

    The largest first, each to the group that has least so far. Equal input gives equal groups.
    """
    groups: list[set[str]] = [set() for _ in range(min(count, len(given)))]
    sizes = [0] * len(groups)
    for rater, volume in sorted(given.items(), key=lambda item: (-item[1], item[0])):
        least = min(range(len(groups)), key=lambda number: (sizes[number], len(groups[number])))
        groups[least].add(rater)
        sizes[least] += volume
    return [frozenset(group) for group in groups]


def without(ranked: Iterable[RankedGroup], raters: Collection[str]) -> list[RankedGroup]:
    """The groups without what these raters said, and without prompts of which nothing is left."""
    left = [
        replace(g, rankings=tuple(r for r in g.rankings if r.rater not in raters)) for g in ranked
    ]
    return [group for group in left if group.rankings]


def as_heldout(ranked: Iterable[RankedGroup], raters: Collection[str]) -> list[RankedGroup]:
    """The groups with only these raters as held out; words of those who are anyway are gone."""
    return [
        replace(
            group,
            rankings=tuple(
                replace(ranking, heldout_rater=ranking.rater in raters)
                for ranking in group.by(heldout=False)
            ),
        )
        for group in ranked
        if group.by(heldout=False)
    ]


def reliability(ranked: Iterable[RankedGroup]) -> dict[str, float]:
    """How much each rater's word is worth, by agreement with others: from LEAST_WEIGHT to 1.

    The agreement is the share of pairs that another rater ordered too, and alike, drawn towards
    the mean of all raters by PRIOR_PAIRS; of that what is above chance counts, 2 a - 1. Raters who
    share no pair with anybody are as good as the mean. Without any shared pair all weigh 1.
    """
    alike: defaultdict[str, float] = defaultdict(float)
    shared: Counter[str] = Counter()
    raters: set[str] = set()
    for group in ranked:
        raters |= {ranking.rater for ranking in group.rankings}
        for one, other in combinations(group.rankings, 2):
            if one.rater != other.rater:
                same, both = _agreement(one, other)
                for rater in (one.rater, other.rater):
                    alike[rater] += same
                    shared[rater] += both
    pairs = sum(shared.values())
    if not pairs:
        return dict.fromkeys(sorted(raters), 1.0)
    mean = sum(alike.values()) / pairs
    shrunk = {
        rater: (alike[rater] + PRIOR_PAIRS * mean) / (shared[rater] + PRIOR_PAIRS)
        for rater in sorted(raters)
    }
    return {rater: max(2.0 * share - 1.0, LEAST_WEIGHT) for rater, share in shrunk.items()}


def weighted(ranked: Sequence[RankedGroup], weights: Mapping[str, float]) -> list[RankedGroup]:
    """The groups with every ranking's weight times that of its rater, 1 where there is none."""
    return [
        replace(
            group,
            rankings=tuple(
                replace(r, weight=r.weight * weights.get(r.rater, 1.0)) for r in group.rankings
            ),
        )
        for group in ranked
    ]


def _agreement(one: Ranking, other: Ranking) -> tuple[float, int]:
    """Of the pairs that both order, how many they order alike, and how many there are."""
    theirs = dict(zip(other.answers, other.ranks, strict=True))
    mine = {a: r for a, r in zip(one.answers, one.ranks, strict=True) if a in theirs}
    same, both = 0, 0
    for a, b in combinations(mine, 2):
        if mine[a] != mine[b] and theirs[a] != theirs[b]:
            both += 1
            same += (mine[a] < mine[b]) == (theirs[a] < theirs[b])
    return float(same), both
