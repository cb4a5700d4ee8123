"""Answers of two policies as rows for people and the gate, and what can be counted on them.

Pure: no model, no engine. learning/evaluation/evaluate.py fills them; learning/gate/comparisons.py
and learning/rounds/votes.py read the rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from learning.gate.comparisons import broken_share, by_score, length_ratio
from learning.gate.winrate import rate_of
from learning.training.rollouts import Prompt

Row = dict[str, Any]  # as JSON has it


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with all that is said of it."""

    text: str
    token_ids: list[int]
    finish_reason: str
    score: float
    broken: bool


def answer_rows(
    prompts: Sequence[Prompt],
    parent: Sequence[Sequence[Answer]],
    candidate: Sequence[Sequence[Answer]],
    *,
    count: int,
    anchor: Sequence[Sequence[Answer]] = (),
) -> list[Row]:
    """One row for each prompt with the first `count` answers of each policy.

    `anchor` is empty where the anchor is the parent.
    """
    first = anchor or [()] * len(prompts)
    return [
        {
            "prompt_id": prompt.prompt_id,
            "user": prompt.user,
            "messages": prompt.messages,
            "outputs": [
                {"output_id": f"{policy}-{i}", "policy": policy, **asdict(answer)}
                for policy, answers in (("candidate", new), ("parent", old), ("anchor", oldest))
                for i, answer in enumerate(answers[:count])
            ],
        }
        for prompt, old, new, oldest in zip(prompts, parent, candidate, first, strict=True)
    ]


def best_of_rows(
    prompts: Sequence[Prompt], parent: Sequence[Sequence[Answer]], best_of: int
) -> list[Row]:
    """The parent's answer that the reward model likes best, beside its first one.

    Judged by people or by the true judge, this is a cheap ceiling for what PPO can reach, and an
    early sign of a reward model that likes the wrong things.
    """
    return [
        {
            "prompt_id": prompt.prompt_id,
            "user": prompt.user,
            "messages": prompt.messages,
            "best": asdict(max(answers, key=lambda answer: answer.score)),
            "first": asdict(answers[0]),
        }
        for prompt, answers in zip(prompts, parent, strict=True)
        if len(answers) >= best_of
    ]


def row_figures(rows: Sequence[Row], *, seed: int) -> dict[str, Any]:
    """What the reward model and the texts say of the candidate beside its parent."""
    compared = by_score(rows)
    users = [comparison.user for comparison in compared]
    ruled = np.array([comparison.points for comparison in compared])
    plain = np.array([comparison.plain_points for comparison in compared])
    return {
        "prompts": len(rows),
        "proxy_win_rate": asdict(rate_of(ruled, users, seed=seed)),
        "proxy_win_rate_by_score": asdict(rate_of(plain, users, seed=seed)),
        **_over_the_anchor(rows, seed=seed),
        "reward": _mean_score(rows, "candidate"),
        "reward_parent": _mean_score(rows, "parent"),
        "length_change": length_ratio(rows) - 1.0,
        "broken_share": broken_share(rows, "candidate"),
        "broken_share_parent": broken_share(rows, "parent"),
        "ended_share": _ended_share(rows, "candidate"),
        "ended_share_parent": _ended_share(rows, "parent"),
    }


def _over_the_anchor(rows: Sequence[Row], *, seed: int) -> dict[str, Any]:
    compared = by_score(rows, against="anchor")
    if not compared:
        return {}
    won = np.array([comparison.points for comparison in compared])
    users = [comparison.user for comparison in compared]
    return {"proxy_win_rate_vs_anchor": asdict(rate_of(won, users, seed=seed))}


def _outputs(rows: Sequence[Row], policy: str) -> list[Row]:
    return [output for row in rows for output in row["outputs"] if output["policy"] == policy]


def _mean_score(rows: Sequence[Row], policy: str) -> float:
    return float(np.mean([output["score"] for output in _outputs(rows, policy)]))


def _ended_share(rows: Sequence[Row], policy: str) -> float:
    return float(np.mean([o["finish_reason"] == "stop" for o in _outputs(rows, policy)]))


def best_of_figures(parent: Sequence[Sequence[Answer]], best_of: int) -> dict[str, Any]:
    """How much score the best of several answers gains over their mean."""
    several = [[a.score for a in answers] for answers in parent if len(answers) >= best_of]
    gain = float(np.mean([max(scores) - np.mean(scores) for scores in several]))
    return {f"best_of_{best_of}": {"score_gain": gain, "prompts": len(several)}}
