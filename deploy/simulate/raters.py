"""Simulated raters: what a person with a known taste would say of some answers.

Pure: scores and a seed in, rankings and marks out. Noise and ties are measured against how much
the scores of the answers at hand differ, so that any judge will do, whatever its scale. Knows no
service; deploy/simulate/run.py sends what comes out of here.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

TIE_MARGIN = 0.05
"""Scores closer than this share of their spread are a tie."""
_MAD_TO_SD = 1.4826
_LIKERT = 7


def rater_names(raters: int, heldout: int) -> tuple[list[str], list[str]]:
    """Names of those whose word trains, and of those whose word only tests (`heldout-*`)."""
    return (
        [f"rater-{number}" for number in range(1, raters + 1)],
        [f"heldout-{number}" for number in range(1, heldout + 1)],
    )


def who_ranks(index: int, names: Sequence[str], *, seed: int) -> str:
    """The rater of prompt number `index`: all have the same share of the prompts, within one."""
    order: list[int] = np.random.default_rng([seed, len(names)]).permutation(len(names)).tolist()
    return names[order[index % len(names)]]


def rank(
    scores: Sequence[float],
    *,
    noise: float,
    seed: int,
    rater: str,
    about: str,
    margin: float = TIE_MARGIN,
) -> list[list[int]]:
    """Positions of the scores, best first; an inner list is a tie.

    `noise` is the standard deviation of the rater's error, in units of the spread of the scores.
    The same seed, rater and `about` (what is ranked) give the same errors, in whatever order
    prompts are ranked. A tie holds what is within `margin` of its best member.
    """
    spread = _spread(scores)
    errors = _generator(seed, rater, about).normal(size=len(scores))
    seen = np.asarray(scores, float) + noise * spread * errors
    order = sorted(range(len(scores)), key=lambda i: (-seen[i], i))
    ranking: list[list[int]] = []
    for i in order:
        if ranking and seen[ranking[-1][0]] - seen[i] <= margin * spread:
            ranking[-1].append(i)
        else:
            ranking.append([i])
    return ranking


def marks(scores: Sequence[float]) -> list[int]:
    """Marks 1 to 7: where a score lies between the worst and the best; 4 if all are equal."""
    worst, best = min(scores), max(scores)
    if best == worst:
        return [(_LIKERT + 1) // 2] * len(scores)
    return [1 + round((_LIKERT - 1) * (score - worst) / (best - worst)) for score in scores]


def num_pairs(ranking: Sequence[Sequence[int]]) -> int:
    """Untied pairs in a ranking."""
    sizes = [len(tie) for tie in ranking]
    return (sum(sizes) ** 2 - sum(size * size for size in sizes)) // 2


def _spread(scores: Sequence[float]) -> float:
    """A standard deviation that one wild score (an empty answer's) does not move."""
    values = np.asarray(scores, float)
    return _MAD_TO_SD * float(np.median(np.abs(values - np.median(values))))


def _generator(seed: int, rater: str, about: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\x00{rater}\x00{about}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
