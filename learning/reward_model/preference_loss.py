"""What people said about answers, as losses on the answers' scores: pure functions.

Rankings are equation 1 of the InstructGPT paper (section 3.5): every pair of a prompt's answers in
one batch element. Thumbs and 1-7 ratings stand on their own, against cuts that are learned with
the model. Which answers a score belongs to, and how often to step, is the caller's business.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus


def num_untied_pairs(ranks: Sequence[int]) -> int:
    """Pairs of a ranking in which one answer is better; only these carry a preference."""
    size = len(ranks)
    return sum(ranks[i] != ranks[j] for i in range(size) for j in range(i))


def ranking_loss(scores: Tensor, ranks: Tensor) -> Tensor:
    """Equation 1 for one ranking: mean over its untied pairs of -log sigmoid(better - worse).

    `scores` (answers,), `ranks` (answers,) int with 1 for the best and equal numbers for ties.
    The mean is over untied pairs, so that ties do not make a prompt count less.
    """
    margins = _margins(scores, ranks)  # (untied pairs,)
    if not len(margins):
        raise ValueError("a ranking without an untied pair has no loss")
    return softplus(-margins).mean()


def count_right(scores: Tensor, ranks: Tensor) -> float:
    """Untied pairs whose better answer scores higher; an equal score counts half.

    Divided by `num_untied_pairs` this is the pair accuracy.
    """
    margins = _margins(scores, ranks)
    return float((margins > 0).sum() + 0.5 * (margins == 0).sum())


def ranking_weight(num_answers: int) -> float:
    """How much a ranking weighs against others, before normalisation: K - 1.

    A ranking of K answers says K - 1 independent things, so that a vote between two answers does
    not weigh as much as a ranking of nine.
    """
    return float(num_answers - 1)


def threshold_loss(scores: Tensor, levels: Tensor, cuts: Tensor) -> Tensor:
    """Mean logistic loss of single judgements on an ordered scale.

    `levels` (answers,) int from 0 to len(cuts); a judgement is above the first `levels` cuts and
    under the others, and each cut is one yes-or-no question, P(above cut) = sigmoid(score - cut).
    A thumb has one cut (0 down, 1 up), a rating from 1 to 7 has six (level = rating - 1).
    Scores (answers,), cuts (cuts,). The mean is over answers and cuts, so every kind weighs alike.
    """
    above = levels[:, None] > torch.arange(len(cuts), device=levels.device)  # (answers, cuts)
    margins = scores[:, None] - cuts[None, :]  # (answers, cuts)
    return softplus(torch.where(above, -margins, margins)).mean()


def _margins(scores: Tensor, ranks: Tensor) -> Tensor:
    """(untied pairs,), the better answer's score less the worse one's."""
    differences = scores[:, None] - scores[None, :]  # (answers, answers)
    return differences[ranks[:, None] < ranks[None, :]]
