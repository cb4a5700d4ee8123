"""Who won: each policy's answers against SFT's and against the start of PPO, by raters' votes.

A rater of each pool votes on each pair of answers. A broken answer loses, unless it is said that
the rule is off. Values stand for prompts, in their order, with families as units. Pure;
deploy/reproduce/scoring.py brings the answers.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from deploy.reproduce.estimates import Series, series
from deploy.reproduce.plan import POLICIES
from deploy.reproduce.prompts import families_of
from deploy.reproduce.raters import People, Rater, vote
from deploy.simulate.judges import words
from deploy.simulate.prompt_sets import Prompt
from learning.training.text_quality import is_broken

BASELINE = "sft"
START = "start"
PPO = ("ppo", "ppo-ptx", "still")
WIN = {"training": "win rate, training raters", "heldout": "win rate, held-out raters"}
WIN_UNRULED = "the same, broken text judged like other text"
WIN_SIMILAR = "the same, among answers of similar length"
WIN_OVER_START = "win rate over its start, held-out raters"
SIMILAR_LENGTH = 0.1
"""Two answers are of similar length when their word counts differ by at most this share."""
Texts = Sequence[str]
Found = dict[str, dict[str, Series]]
"""By measure, then by policy"""


def win_rates(
    answers: Mapping[str, Texts], crowd: People, test: Sequence[Prompt], *, seed: int
) -> Found:
    """All win rates of one seed; `answers` are each policy's to the test prompts."""
    units, found = families_of(test), Found()
    old = answers[BASELINE]
    for name in POLICIES:
        if name in (BASELINE, "still"):
            continue
        new = answers[name]
        for pool, measure in WIN.items():
            raters = crowd.pool(heldout=pool == "heldout")
            votes = preferred(raters, crowd, test, new, old, seed=seed)
            found.setdefault(measure, {})[name] = series(units, ruled(votes, new, old))
        # the held-out raters are the last
        found.setdefault(WIN_UNRULED, {})[name] = series(units, votes)
        similar = [i for i, pair in enumerate(zip(new, old, strict=True)) if _similar(*pair)]
        if similar:
            won = ruled(votes, new, old)
            found.setdefault(WIN_SIMILAR, {})[name] = series(
                [units[i] for i in similar], [won[i] for i in similar]
            )
    for name in PPO:
        new, old = answers[name], answers[START]
        votes = preferred(crowd.pool(heldout=True), crowd, test, new, old, seed=seed)
        found.setdefault(WIN_OVER_START, {})[name] = series(units, ruled(votes, new, old))
    return found


def preferred(
    raters: Sequence[Rater],
    crowd: People,
    prompts: Sequence[Prompt],
    new: Texts,
    old: Texts,
    *,
    seed: int,
) -> list[float]:
    """For each prompt the share of raters who prefer the new answer; equal texts give a half."""
    return [
        float(np.mean([vote(crowd, rater, p.prompt, mine, theirs, seed=seed) for rater in raters]))
        for p, mine, theirs in zip(prompts, new, old, strict=True)
    ]


def ruled(votes: Sequence[float], new: Texts, old: Texts) -> list[float]:
    """Votes where broken text loses. Where both are broken the new one does: the rule may never
    help it."""
    return [
        0.0 if is_broken(mine) else 1.0 if is_broken(theirs) else share
        for share, mine, theirs in zip(votes, new, old, strict=True)
    ]


def _similar(new: str, old: str) -> bool:
    ours, theirs = len(words(new)), len(words(old))
    return abs(ours - theirs) <= SIMILAR_LENGTH * max(ours, theirs)
