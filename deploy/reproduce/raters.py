"""People of a reproduction: raters whose word trains, and held-out raters of another taste.

All share one main taste, a judge of deploy/simulate/judges.py. Each training rater leans a little
to a second taste, some for and some against; held-out raters lean to a third one, which nobody who
trained anything has. So a policy that learned what the training raters share should please both,
and one that learned their quirks only the first. Pure: scores are in units of how much the base
model's answers differ. Knows no model and no file.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from deploy.simulate.judges import BUILT_IN, EMPTY, Judge, load_judge
from deploy.simulate.raters import rank, rater_names

RATERS = 6
HELDOUT_RATERS = 4
NOISE = 0.25
"""Standard deviation of a rater's error, in the same units as the taste."""
TRAINING_LEANINGS = (-0.3, -0.2, -0.1, 0.1, 0.2, 0.3)
HELDOUT_LEANINGS = (0.4, 0.5, 0.6, 0.7)
_MAD_TO_SD = 1.4826
_SMALLEST = 1e-6


@dataclass(frozen=True, slots=True)
class Rater:
    """One person: how much of each taste."""

    name: str
    weights: Mapping[str, float]
    """Of the judges, by name"""
    heldout: bool


@dataclass(frozen=True, slots=True)
class People:
    """The raters and the judges that they are made of."""

    judges: tuple[Judge, ...]
    """The main taste, that of training raters, that of held-out raters"""
    raters: tuple[Rater, ...]
    scales: Mapping[str, float] = field(default_factory=dict)
    """One standard deviation of each judge's scores on the base model's answers"""

    def pool(self, *, heldout: bool) -> tuple[Rater, ...]:
        """The held-out raters, or the others."""
        return tuple(rater for rater in self.raters if rater.heldout == heldout)

    def likes(self, rater: Rater, prompt: str, text: str) -> float:
        """What a rater thinks of an answer, without error."""
        return sum(
            weight * _score(judge, prompt, text) / self.scales.get(judge.name, 1.0)
            for judge, weight in ((judge, rater.weights.get(judge.name)) for judge in self.judges)
            if weight
        )


def people(judge: str, scales: Mapping[str, float] | None = None) -> People:
    """Raters around a main taste. Raises StartError for a judge that is none."""
    main = load_judge(judge)
    others = [j for j in BUILT_IN if j.name in ("address", "plain", "sentiment", "brevity")]
    quirk, other = _two_quirks(main, others)
    names, heldout = rater_names(RATERS, HELDOUT_RATERS)
    raters = [
        Rater(name, {main.name: 1.0, quirk.name: lean}, heldout=False)
        for name, lean in zip(names, TRAINING_LEANINGS, strict=True)
    ]
    raters += [
        Rater(name, {main.name: 1.0, other.name: lean}, heldout=True)
        for name, lean in zip(heldout, HELDOUT_LEANINGS, strict=True)
    ]
    return People((main, quirk, other), tuple(raters), dict(scales or {}))


def _two_quirks(main: Judge, others: Sequence[Judge]) -> tuple[Judge, Judge]:
    """Tastes that are not the main one: of address, plainness and sentiment the first two."""
    wanted = ("address", "plain", "sentiment")
    by_name = {judge.name: judge for judge in others}
    found = [by_name[name] for name in wanted if name != main.name]
    return found[0], found[1]


def scales_of(judges: Sequence[Judge], said: Sequence[tuple[str, str]]) -> dict[str, float]:
    """For each judge how much (prompt, answer) pairs differ: a spread that no outlier moves."""
    scales = {}
    for judge in judges:
        values = np.array([_score(judge, prompt, text) for prompt, text in said])
        values = values[values > EMPTY / 2]
        middle = np.median(values) if len(values) else 0.0
        spread = _MAD_TO_SD * float(np.median(np.abs(values - middle))) if len(values) else 0.0
        plain = float(values.std()) if len(values) else 0.0
        scales[judge.name] = max(spread or plain, _SMALLEST)
    return scales


def ranking(
    crowd: People, rater: Rater, prompt: str, texts: Sequence[str], *, seed: int
) -> list[list[int]]:
    """Places of the answers, best first; an inner list is a tie."""
    scores = [crowd.likes(rater, prompt, text) for text in texts]
    return rank(scores, noise=NOISE, seed=seed, rater=rater.name, about=prompt)


def vote(crowd: People, rater: Rater, prompt: str, new: str, old: str, *, seed: int) -> float:
    """1 where the rater prefers the new answer, 0 the old, 1/2 where they are the same text."""
    if new == old:
        return 0.5
    mine, theirs = (
        crowd.likes(rater, prompt, text) + NOISE * _error(seed, rater.name, prompt, text)
        for text in (new, old)
    )
    return 0.5 if mine == theirs else float(mine > theirs)


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Of the pairs that two rankings of the same answers both order: agreed, and all."""
    agreed = both = 0
    one, two = _places(first), _places(second)
    for a in one:
        for b in one:
            if a < b and one[a] != one[b] and two[a] != two[b]:
                both += 1
                agreed += (one[a] < one[b]) == (two[a] < two[b])
    return agreed, both


def _places(order: Sequence[Sequence[int]]) -> dict[int, int]:
    return {answer: place for place, tie in enumerate(order) for answer in tie}


@lru_cache(maxsize=200_000)
def _score(judge: Judge, prompt: str, text: str) -> float:
    return judge.score(prompt, text)


def _error(seed: int, rater: str, prompt: str, text: str) -> float:
    """The same whenever it is drawn, another for each answer."""
    digest = hashlib.sha256(f"{seed}\x00{rater}\x00{prompt}\x00{text}".encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:16], "big")).normal())
