"""Is the new version better than the first, by the judge's own scores? With what lengths explain.

Pure: texts in, figures out; the same figures in whatever order the prompts come. Ties count 1/2.
The main figure lets broken text lose: a broken answer of the new version loses whatever the first
version said, a broken answer of the first loses to any that is not. Intervals are 95 % bootstrap
intervals over users (learning/gate/winrate.py). deploy/demo/report.py shows what comes out of here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from deploy.simulate.judges import Judge, words
from learning.gate.winrate import WinRate, points, win_rate
from learning.training.text_quality import is_broken

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
SIMILAR_LENGTH = 0.10
"""Two answers are of similar length when their word counts differ by at most this share."""
_RIDGE = 0.1
"""Keeps the slope of the logistic finite where length alone decides, as for a judge of brevity."""
_FEWEST_FOR_LOGISTIC = 10


@dataclass(frozen=True, slots=True)
class Side:
    """One version's answers, in the order of the prompts."""

    scores: tuple[float, ...]
    broken: tuple[bool, ...]
    num_words: tuple[int, ...]
    mean_score: float | None
    """Over answers with a word in them; None when there is no such answer."""
    mean_words: float
    broken_share: float
    empty_share: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The new version against the first, on the same prompts."""

    win_rate: WinRate
    """Broken text loses."""
    win_rate_by_score: WinRate
    """The judge's scores alone."""
    wins: int
    ties: int
    losses: int
    """With broken text losing; wins, ties and losses add up to the number of prompts."""
    first: Side
    new: Side
    similar_length: WinRate | None
    """Among pairs within 10 % of each other's length; None where there is no such pair."""
    at_equal_length: float | None
    """Win rate at equal length by a logistic in the log ratio of lengths; None under 10 prompts."""


def compare(
    judge: Judge,
    *,
    prompts: Sequence[str],
    users: Sequence[str],
    first: Sequence[str],
    new: Sequence[str],
    seed: int = 0,
    broken: Callable[[str], bool] = is_broken,
) -> Comparison:
    """Compare answers to the same prompts, given in the same order.

    Raises ValueError when the sequences differ in length or hold nothing.
    """
    if not prompts or not len(prompts) == len(users) == len(first) == len(new):
        raise ValueError("compare needs one user and two answers for each of its prompts")
    old_side = _side(judge, prompts, first, broken)
    new_side = _side(judge, prompts, new, broken)
    won = points_with_rule(new_side, old_side)  # (prompts,)
    new_words, old_words = _floats(new_side.num_words), _floats(old_side.num_words)
    longer = np.maximum(new_words, old_words)
    similar = np.abs(new_words - old_words) <= SIMILAR_LENGTH * longer
    return Comparison(
        win_rate=_rate(won, users, seed),
        win_rate_by_score=win_rate(new_side.scores, old_side.scores, users, seed=seed),
        wins=int((won == 1.0).sum()),
        ties=int((won == 0.5).sum()),
        losses=int((won == 0.0).sum()),
        first=old_side,
        new=new_side,
        similar_length=_rate_among(similar, won, users, seed),
        at_equal_length=win_rate_at_equal_length(won, new_words, old_words),
    )


def points_with_rule(new: Side, first: Side) -> Floats:
    """1, 1/2 or 0 for the new version on each prompt, (prompts,), where broken text loses.

    When both are broken the new version loses: the rule may never help it.
    """
    by_score = points(new.scores, first.scores)
    new_broken, first_broken = np.array(new.broken), np.array(first.broken)
    return np.where(new_broken, 0.0, np.where(first_broken, 1.0, by_score))


def win_rate_at_equal_length(won: Floats, new_words: Floats, old_words: Floats) -> float | None:
    """sigmoid(a) of the fit P(win) = sigmoid(a + b log((1 + new words) / (1 + first words))).

    All arguments are (prompts,). A tie enters as half a win and half a loss; b carries a slight
    ridge, a none. None for fewer than ten prompts.
    """
    if len(won) < _FEWEST_FOR_LOGISTIC:
        return None
    ratio = np.log1p(new_words) - np.log1p(old_words)  # (prompts,)
    order = np.lexsort((won, ratio))  # the sums below must not depend on the order of prompts
    won, ratio = won[order], ratio[order]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        a, b = parameters
        logits = a + b * ratio  # (prompts,)
        value = np.sum(np.logaddexp(0.0, logits) - won * logits) + 0.5 * _RIDGE * b * b
        error = expit(logits) - won  # (prompts,)
        return float(value), np.array([error.sum(), error @ ratio + _RIDGE * b])

    if won.min() == won.max() and won[0] != 0.5:
        return float(won[0])  # all won or all lost: a grows without bound
    fit = minimize(loss, np.zeros(2), jac=True, method="BFGS")
    return float(expit(fit.x[0]))


def _side(
    judge: Judge,
    prompts: Sequence[str],
    texts: Sequence[str],
    broken: Callable[[str], bool],
) -> Side:
    scores = [judge.score(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    num_words = [len(words(text)) for text in texts]
    said = [score for score, count in zip(scores, num_words, strict=True) if count]
    is_lost = [broken(text) for text in texts]
    return Side(
        scores=tuple(scores),
        broken=tuple(is_lost),
        num_words=tuple(num_words),
        mean_score=math.fsum(said) / len(said) if said else None,
        mean_words=sum(num_words) / len(texts),
        broken_share=sum(is_lost) / len(texts),
        empty_share=num_words.count(0) / len(texts),
    )


def _rate(won: Floats, users: Sequence[str], seed: int) -> WinRate:
    """The win rate of points that are already given: a point p beats 1 - p as p says."""
    return win_rate(won.tolist(), (1.0 - won).tolist(), users, seed=seed)


def _rate_among(chosen: Flags, won: Floats, users: Sequence[str], seed: int) -> WinRate | None:
    if not chosen.any():
        return None
    return _rate(won[chosen], [u for u, kept in zip(users, chosen, strict=True) if kept], seed)


def _floats(values: Sequence[int]) -> Floats:
    return np.asarray(values, dtype=float)
