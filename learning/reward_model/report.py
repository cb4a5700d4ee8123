"""What a reward model learned, for its card: how far its probabilities hold, and what it rewards.

Pure: scores, rankings and texts in, plain numbers out. Scores are the model's own, before they are
given a unit, because only their differences are log-odds. Called by learning/reward_model/train.py.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from learning.reward_model.dataset import RankedGroup

BINS = 10
"""Of the reliability table, from an even chance to certainty."""
_MARKER = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)])\s", re.MULTILINE)
Column = np.ndarray[Any, np.dtype[np.float64]]


def favourites(
    ranked: Sequence[RankedGroup], scores: Sequence[Tensor]
) -> tuple[list[float], list[float]]:
    """Of every untied pair: how likely its favourite was said to win, and whether it did (0, 1).

    The favourite is the answer with the higher score, its probability sigmoid of the difference;
    with equal scores it is one half, and so is the outcome. `scores` are those of each group.
    """
    predicted: list[float] = []
    came_true: list[float] = []
    for group, group_scores in zip(ranked, scores, strict=True):
        values = group_scores.double().tolist()
        for ranking in group.rankings:
            places = list(zip(ranking.answers, ranking.ranks, strict=True))
            for better, its_rank in places:
                for worse, other_rank in places:
                    if its_rank < other_rank:
                        margin = values[better] - values[worse]
                        predicted.append(float(1.0 / (1.0 + np.exp(-min(abs(margin), 500.0)))))
                        came_true.append(0.5 if margin == 0 else float(margin > 0))
    return predicted, came_true


def best_of(ranked: Sequence[RankedGroup], scores: Sequence[Tensor]) -> dict[str, Any]:
    """Best-of-K before any PPO: how the model's favourite of K answers fares in people's words.

    `win_rate` is how often people put the answer with the highest score before the others of its
    prompt, ties counting half: one half for a model that knows nothing, and a ceiling for what a
    policy can gain by it. The mean over rankings, each of `answers` answers on average.
    """
    rates: list[float] = []
    sizes: list[int] = []
    for group, group_scores in zip(ranked, scores, strict=True):
        values = group_scores.double().tolist()
        for ranking in group.rankings:
            highest = max(values[place] for place in ranking.answers)
            places = [*zip(ranking.answers, ranking.ranks, strict=True)]
            chosen = [rank for place, rank in places if values[place] == highest]
            rates.append(sum(map(partial(_beats, ranking.ranks), chosen)) / len(chosen))
            sizes.append(len(places))
    if not rates:
        return {"rankings": 0}
    return {
        "win_rate": sum(rates) / len(rates),
        "rankings": len(rates),
        "answers": sum(sizes) / len(sizes),
    }


def _beats(ranks: Sequence[int], mine: int) -> float:
    """The share of the other ranks that are worse than one of them, ties counting half."""
    points = sum(1.0 if mine < other else 0.5 if mine == other else 0.0 for other in ranks)
    return (points - 0.5) / (len(ranks) - 1)


def calibration(predicted: Sequence[float], came_true: Sequence[float]) -> dict[str, Any]:
    """A reliability table in bins from .5 to 1, and the expected calibration error.

    That is the mean distance between what was predicted and what came true, over bins weighted by
    their pairs: 0 for probabilities that hold, .5 at worst. Empty bins are left out; without any
    pair there is no error.
    """
    probability = np.asarray(predicted, dtype=np.float64)
    outcome = np.asarray(came_true, dtype=np.float64)
    places = np.clip(((probability - 0.5) * 2 * BINS).astype(int), 0, BINS - 1)
    table = [
        {
            "from": 0.5 + number / (2 * BINS),
            "pairs": int((places == number).sum()),
            "predicted": float(probability[places == number].mean()),
            "came_true": float(outcome[places == number].mean()),
        }
        for number in range(BINS)
        if (places == number).any()
    ]
    figures: dict[str, Any] = {"pairs": len(probability), "table": table}
    if table:
        gaps = [row["pairs"] * abs(row["predicted"] - row["came_true"]) for row in table]
        figures["expected_error"] = sum(gaps) / len(probability)
    return figures


def features_of(text: str, sentiment: Callable[[str], float]) -> dict[str, float]:
    """What a score is compared with: words, lines that are list items, and sentiment (-1 to 1)."""
    return {
        "length": float(len(text.split())),
        "lists": float(len(_MARKER.findall(text))),
        "sentiment": sentiment(text),
    }


def regressed(
    scores: Sequence[Sequence[float]], features: Sequence[Sequence[dict[str, float]]]
) -> dict[str, Any]:
    """Scores regressed on features by least squares: standardised coefficients and R squared.

    Both are lists over prompts of lists over answers. The mean of each prompt is taken off first:
    only differences within a prompt were learned. A coefficient says by how many standard
    deviations the score rises with one of the feature, the others held; features that never differ
    have none. Without enough answers, or where scores never differ, there is nothing to report.
    """
    target = _centred([np.asarray(values, dtype=np.float64) for values in scores])
    rows = len(target)
    names = sorted(features[0][0]) if rows else []
    columns = {
        name: _centred([np.asarray([f[name] for f in group]) for group in features])
        for name in names
    }
    varying = [name for name in names if columns[name].std() > 1e-12]
    if rows <= len(names) + len(scores) or not target.std() > 1e-12:
        return {"answers": rows}
    if not varying:
        return {"answers": rows, "r_squared": 0.0}
    design = np.stack([columns[name] / columns[name].std() for name in varying], axis=1)
    wanted = target / target.std()
    solution, *_ = np.linalg.lstsq(design, wanted, rcond=None)
    left = wanted - design @ solution
    return {
        "answers": rows,
        "r_squared": float(1.0 - (left @ left) / (wanted @ wanted)),
        **{name: float(value) for name, value in zip(varying, solution, strict=True)},
    }


def vader() -> Callable[[str], float]:
    """The compound sentiment of VADER, a lexicon with rules."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


def _centred(groups: Sequence[Column]) -> Column:
    """All values in a row, each prompt's without its mean."""
    return np.concatenate([g - g.mean() for g in groups]) if groups else np.zeros(0)
