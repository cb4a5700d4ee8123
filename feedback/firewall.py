"""Who may be gaming the feedback: bursts, raters who are always extreme, raters in lockstep.

Pure: feedback with its speakers in, reasons by feedback id out; holding.py holds these back until
somebody decides, and never deletes. Each test asks two things: is it large (a share that people
do not reach), and could it be chance (a binomial tail below one in a million, over what the other
raters do). A rater who only ever gives thumbs up is common, so thumbs need far more of them.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

from core.records import Answer, Feedback, LabelingTask
from core.setting_groups import FeedbackSettings
from feedback.entries import IMPORT_KEY_ID

EXTREME = "always the same extreme rating"
BURST = "more at once than a person says"
LOCKSTEP = "in lockstep with another rater"
_CHANCE = 1e-6
_ALWAYS = 0.95
_IDENTICAL = 0.98
_AT_LEAST = {"rating": 0.5, "thumb": 0.9}
"""How often an honest rater may give one extreme value, whatever the others do."""
_BURST_SECONDS = 300.0
_MOST_RATERS = 50
"""Raters of one item that are compared with each other."""
_OTHER_PAIRS = 3
"""Pairs of other raters without which nobody knows how much agreement is usual."""
Verdicts = Mapping[str, Mapping[Hashable, Hashable]]
"""By rater and item, what was said."""
Pair = tuple[str, str]
"""Two raters."""


class Word(Protocol):
    """What the tests ask of anything that a rater says: feedback, or an answer to a task."""

    @property
    def id(self) -> str: ...
    @property
    def rater(self) -> str: ...
    @property
    def updated_at(self) -> float: ...
    @property
    def thumb(self) -> str | None: ...
    @property
    def rating(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Labeled:
    """One rater's answer to a labeling task, as one word, however many outputs it is about."""

    id: str
    rater: str
    updated_at: float
    rating: int | None
    """What all of its ratings are; 0 where they differ, which is no extreme."""
    thumb: None = None


def suspects(feedback: Sequence[Feedback], settings: FeedbackSettings) -> dict[str, str]:
    """Reasons to hold feedback back, by its id. Withdrawn words and signals count for nothing."""
    said = [f for f in feedback if not f.withdrawn and f.kind != "signal"]
    extreme = extreme_raters(said, least=settings.suspect_after)
    together = lockstep_raters(verdicts_of(said), least=settings.suspect_after)
    burst = bursts(
        [one for one in said if one.key_id != IMPORT_KEY_ID], per_minute=settings.burst_per_minute
    )  # what ops import comes at once, and nobody said it at that moment
    found: dict[str, str] = {}
    for one in said:
        if one.rater in extreme and one.kind == "rating":
            found[one.id] = EXTREME
        elif one.rater in together:
            found[one.id] = LOCKSTEP
        elif one.id in burst:
            found[one.id] = BURST
    return found


def suspect_answers(
    tasks: Sequence[LabelingTask], settings: FeedbackSettings
) -> dict[tuple[str, str], str]:
    """Reasons to hold answers to labeling tasks back, by task and rater.

    The same tests: an answer is extreme when all of its ratings are, and two raters are in lockstep
    by their whole orders of the tasks that both have done. Tasks whose right order is known are
    left out: there all should agree, and nothing is trained on them.
    """
    words: dict[tuple[str, str], Labeled] = {}
    orders: dict[str, dict[Hashable, Hashable]] = defaultdict(dict)
    for task in tasks:
        for answer in task.answers:
            if answer.ranking and not task.gold:
                name = f"{task.id}:{answer.rater}"
                word = Labeled(name, answer.rater, answer.answered_at, _one_rating(answer))
                words[task.id, answer.rater] = word
                orders[answer.rater][task.id] = answer.ranking
    said = list(words.values())
    extreme = extreme_raters(said, least=settings.suspect_after)
    together = lockstep_raters(orders, least=settings.suspect_after)
    burst = bursts(said, per_minute=settings.burst_per_minute)
    found: dict[tuple[str, str], str] = {}
    for place, word in words.items():
        if word.rater in extreme:
            found[place] = EXTREME
        elif word.rater in together:
            found[place] = LOCKSTEP
        elif word.id in burst:
            found[place] = BURST
    return found


def extreme_raters(feedback: Sequence[Word], *, least: int) -> set[str]:
    """Raters of whose thumbs, or of whose ratings, nearly all are one and the same extreme."""
    return {
        rater
        for scale, extremes in (("thumb", ("up", "down")), ("rating", (1, 7)))
        for rater in _extreme_on(scale, extremes, feedback, least=least)
    }


def bursts(feedback: Sequence[Word], *, per_minute: int) -> set[str]:
    """Ids of what was said within five minutes in which a rater said more than the rate allows."""
    by_rater: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for said in feedback:
        by_rater[said.rater].append((said.updated_at, said.id))
    most = int(per_minute * _BURST_SECONDS / 60)
    found: set[str] = set()
    for moments in by_rater.values():
        moments.sort()
        first = 0
        for last, (at, _) in enumerate(moments):
            while moments[first][0] <= at - _BURST_SECONDS:
                first += 1
            if last - first + 1 > most:
                found.update(name for _, name in moments[first : last + 1])
    return found


def lockstep_raters(verdicts: Verdicts, *, least: int) -> set[str]:
    """Raters who say the same as another about nearly all of at least `least` common items.

    Far beyond what is usual: the median agreement of the pairs without these two. Where raters
    simply agree (the question is easy, or they are simulated) nobody stands out.
    """
    pairs = {pair: n for pair, n in _common(verdicts).items() if n[1] >= least}
    usual = _usual_without({pair: same / common for pair, (same, common) in pairs.items()})
    found: set[str] = set()
    for pair, (same, common) in pairs.items():
        if same < _IDENTICAL * common:
            continue
        others = usual(pair)
        if others is not None and _is_no_chance(same, common, max(others, 0.5)):
            found.update(pair)
    return found


def verdicts_of(feedback: Sequence[Feedback]) -> dict[str, dict[Hashable, Hashable]]:
    """What each rater said of each answer, and in which order they put which answers."""
    verdicts: dict[str, dict[Hashable, Hashable]] = defaultdict(dict)
    for said in sorted(feedback, key=lambda f: f.updated_at):
        if said.kind == "ranking":
            verdicts[said.rater][said.outputs] = said.ranking
        elif said.kind == "rating" and (said.thumb or said.rating):
            verdicts[said.rater][said.outputs] = (said.thumb, said.rating)
    return verdicts


def _one_rating(answer: Answer) -> int | None:
    levels = set(answer.ratings.values())
    return (levels.pop() if len(levels) == 1 else 0) if levels else None


def _extreme_on(
    scale: str, extremes: Sequence[Hashable], feedback: Sequence[Word], *, least: int
) -> set[str]:
    given: dict[str, Counter[Hashable]] = defaultdict(Counter)
    for said in feedback:
        if (value := getattr(said, scale)) is not None:
            given[said.rater][value] += 1
    everybody: Counter[Hashable] = sum(given.values(), Counter())
    found: set[str] = set()
    for rater, counts in given.items():
        value, number = max(((v, counts[v]) for v in extremes), key=lambda pair: pair[1])
        total = counts.total()
        if total < least or number < _ALWAYS * total:
            continue
        others = everybody.total() - total
        usual = (everybody[value] - number) / others if others else 0.0
        if _is_no_chance(number, total, max(usual, _AT_LEAST[scale])):
            found.add(rater)
    return found


def _common(verdicts: Verdicts) -> dict[Pair, tuple[int, int]]:
    """Of each pair of raters: about how many items they said the same, and how many they share."""
    raters_of: dict[Hashable, list[str]] = defaultdict(list)
    for rater in sorted(verdicts):
        for item in verdicts[rater]:
            raters_of[item].append(rater)
    same: Counter[Pair] = Counter()
    common: Counter[Pair] = Counter()
    for item, raters in raters_of.items():
        for pair in combinations(raters[:_MOST_RATERS], 2):
            common[pair] += 1
            same[pair] += verdicts[pair[0]][item] == verdicts[pair[1]][item]
    return {pair: (same[pair], number) for pair, number in common.items()}


def _usual_without(rates: Mapping[Pair, float]) -> Callable[[Pair], float | None]:
    """The median rate of the pairs that share no rater with a pair; None where there are too few.

    Counted in sorted lists: to go through all pairs for each would let a few hundred raters who
    agree hold a round up for hours.
    """
    everybody = sorted(rates.values())
    by_rater: dict[str, list[float]] = defaultdict(list)
    for pair, rate in sorted(rates.items(), key=lambda item: item[1]):
        for rater in pair:
            by_rater[rater].append(rate)

    def median_without(pair: Pair) -> float | None:
        mine, theirs = (by_rater[rater] for rater in pair)
        size = len(everybody) - len(mine) - len(theirs) + 1  # this pair is in both
        if size < _OTHER_PAIRS:
            return None

        def at_most(rate: float) -> int:
            both = bisect_right(mine, rate) + bisect_right(theirs, rate)
            return bisect_right(everybody, rate) - both + (rates[pair] <= rate)

        middle = ((size - 1) // 2, size // 2)
        return sum(everybody[bisect_right(everybody, n, key=at_most)] for n in middle) / 2

    return median_without


def _is_no_chance(hits: int, of: int, usual: float) -> bool:
    """Whether so many hits at the usual rate come less than once in a million times."""
    from scipy.special import bdtrc  # gateways import this module and never come here

    return float(bdtrc(hits - 1, of, min(usual, 1.0))) < _CHANCE
