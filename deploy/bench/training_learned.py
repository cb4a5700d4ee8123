"""What a fresh reward model had learned in a measurement, beside what another had. Pure.

Comes from the children of deploy/bench/reward_model.py, goes to deploy/bench/training_report.py.
"""

import random
from dataclasses import dataclass

from deploy.bench.maths import Spread, quantile

_SAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Learned:
    """What a fresh model did after it had learned from every comparison once."""

    seconds: float
    right: list[float]
    """Unseen comparisons in the right order, by prompt"""
    pairs: list[int]
    """Unseen comparisons, by prompt"""


def paired_gap(ours: Learned, other: Learned) -> Spread:
    """Accuracy of one less that of another, and the middle 95 % of it over samples of prompts.

    Both were asked about the same comparisons; those of a prompt go together, because they share
    answers.
    """
    triples = list(zip(ours.right, other.right, ours.pairs, strict=True))
    draw = random.Random(0)

    def gap(of: list[tuple[float, float, int]]) -> float:
        return sum(a - b for a, b, _ in of) / sum(pairs for _, _, pairs in of)

    drawn = [gap(draw.choices(triples, k=len(triples))) for _ in range(_SAMPLES)]
    return Spread(gap(triples), quantile(drawn, 0.025), quantile(drawn, 0.975))
