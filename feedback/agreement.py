"""How far raters agree: pairs of answers that two of them order the same way, and alpha.

Pure: verdicts in, figures out. Pairwise agreement is the paper's (section 3.4): of the pairs of
answers that two raters have both ordered, ties left out, the share that they ordered alike.
Krippendorff's alpha of the ratings (ordinal, 1 to 7) is the library's, which is under the GPL-3 and
installed beside us, never copied. Those under the MIT licence were looked at: simpledorff and
disagree want pandas and have no ordinal metric or no release in years, irrCAC pins an old SciPy.
raters.py collects verdicts and shows the figures.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations

LEVELS = tuple(range(1, 8))
Pair = tuple[str, str]
Order = dict[str, tuple[bool, float]]
"""Of one pair of answers: by rater, whether the first is better, and when that was said."""
Ratings = dict[str, tuple[int, float]]
"""Of one answer: by rater, the rating, and when it was given."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rater said of some answers: ranks (1 is best) and ratings by the answer's name."""

    rater: str
    at: float
    """Seconds since 1970."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    ratings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    hits: int = 0
    of: int = 0

    @property
    def value(self) -> float | None:
        """None where there is nothing to say."""
        return self.hits / self.of if self.of else None

    def __add__(self, other: "Share") -> "Share":
        return Share(self.hits + other.hits, self.of + other.of)


def pairwise(verdicts: Iterable[Verdict]) -> Share:
    """Of all pairs of answers and all pairs of raters who ordered them: how many agree."""
    return sum((_among(order) for order in _orders(verdicts).values()), Share())


def by_rater(verdicts: Iterable[Verdict]) -> dict[str, Share]:
    """The same for each rater against all others."""
    shares: dict[str, Share] = defaultdict(Share)
    for order in _orders(verdicts).values():
        sides = Counter(first for first, _ in order.values())
        for rater, (first, _) in order.items():
            shares[rater] += Share(sides[first] - 1, len(order) - 1)
    return {rater: share for rater, share in shares.items() if share.of}


def by_week(verdicts: Iterable[Verdict]) -> dict[str, Share]:
    """The same by ISO week (`2026-W07`), in which the last of the raters ordered the pair."""
    shares: dict[str, Share] = defaultdict(Share)
    for order in _orders(verdicts).values():
        shares[week_of(max(at for _, at in order.values()))] += _among(order)
    return {week: shares[week] for week in sorted(shares) if shares[week].of}


def week_of(at: float) -> str:
    """The ISO week of a moment, in UTC."""
    year, week, _ = datetime.fromtimestamp(at, UTC).isocalendar()
    return f"{year}-W{week:02d}"


def alpha(verdicts: Iterable[Verdict]) -> float | None:
    """Krippendorff's alpha of the ratings, ordinal. None without two raters of one answer.

    Also None where all who can be compared gave the same rating: then alpha has no value.
    """
    return _alpha_of(_rated(verdicts).values())


def alpha_by_rater(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The same over the answers that each rater has rated, where it has a value."""
    of_rater: dict[str, list[Ratings]] = defaultdict(list)
    for given in _rated(verdicts).values():
        for rater in given:
            of_rater[rater].append(given)
    found = {rater: _alpha_of(units) for rater, units in of_rater.items()}
    return {rater: value for rater, value in found.items() if value is not None}


def alpha_by_week(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The same by the ISO week in which an answer got its last rating, where it has a value."""
    of_week: dict[str, list[Ratings]] = defaultdict(list)
    for given in _rated(verdicts).values():
        if len(given) > 1:
            of_week[week_of(max(at for _, at in given.values()))].append(given)
    found = {week: _alpha_of(units) for week, units in of_week.items()}
    return {week: value for week, value in found.items() if value is not None}


def accuracy(gold: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> Share:
    """Of the pairs that the right order does not tie, how many a rater ordered so."""
    right, given = _ranks(gold), _ranks(said)
    pairs = [(a, b) for a, b in combinations(sorted(right), 2) if right[a] != right[b]]
    known = [(a, b) for a, b in pairs if a in given and b in given]
    hits = sum(
        given[a] != given[b] and (given[a] < given[b]) == (right[a] < right[b]) for a, b in known
    )
    return Share(hits, len(known))


def _ranks(ranking: Sequence[Sequence[str]]) -> dict[str, int]:
    return {name: rank for rank, tie in enumerate(ranking, 1) for name in tie}


def _orders(verdicts: Iterable[Verdict]) -> dict[Pair, Order]:
    """Of each pair of answers who ordered them how; a rater's latest word counts, a tie is none."""
    orders: dict[Pair, Order] = defaultdict(dict)
    for verdict in sorted(verdicts, key=lambda v: v.at):
        for a, b in combinations(sorted(verdict.ranks), 2):
            if verdict.ranks[a] == verdict.ranks[b]:
                orders[a, b].pop(verdict.rater, None)
            else:
                orders[a, b][verdict.rater] = (verdict.ranks[a] < verdict.ranks[b], verdict.at)
    return {pair: order for pair, order in orders.items() if order}


def _rated(verdicts: Iterable[Verdict]) -> dict[str, Ratings]:
    """By answer; a rater's latest rating counts."""
    rated: dict[str, Ratings] = defaultdict(dict)
    for verdict in sorted(verdicts, key=lambda v: v.at):
        for answer, rating in verdict.ratings.items():
            rated[answer][verdict.rater] = (rating, verdict.at)
    return dict(sorted(rated.items()))


def _alpha_of(units: Iterable[Ratings]) -> float | None:
    shared = [[rating for rating, _ in given.values()] for given in units if len(given) > 1]
    if len({rating for given in shared for rating in given}) < 2:
        return None
    import krippendorff  # with numpy: some 20 MB that a gateway needs only when asked

    counts = [[given.count(level) for level in LEVELS] for given in shared]
    return float(
        krippendorff.alpha(
            value_counts=counts, value_domain=list(LEVELS), level_of_measurement="ordinal"
        )
    )


def _among(order: Order) -> Share:
    """Pairs of raters who said something of one pair of answers, and those who said the same."""
    first = sum(is_first for is_first, _ in order.values())
    other = len(order) - first
    return Share(_pairs(first) + _pairs(other), _pairs(len(order)))


def _pairs(count: int) -> int:
    return count * (count - 1) // 2
