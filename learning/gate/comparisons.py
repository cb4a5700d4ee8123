"""Answers of the candidate beside its parent's or the anchor's: who won, prompt by prompt.

From evaluate's rows (and people's rankings of them) to points between 0 and 1 for each prompt, all
pairs of a candidate's and the other's answer averaged. Broken text loses, whatever was said of it;
the points without that rule are kept beside. Pure; the figures go to learning/gate/gate.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Other = Literal["parent", "anchor"]
"""Whom the candidate is compared with."""
Row = Mapping[str, Any]  # of evaluate's answers.jsonl: {prompt_id, user, messages, outputs}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judgement of one prompt's answers: 1 the candidate won, 0 it lost, between: mixed."""

    user: str
    """The end user who wrote the prompt: the unit of all statistics."""
    points: float
    """With broken answers counted as lost."""
    plain_points: float
    """As judged."""


def by_score(rows: Sequence[Row], *, against: Other = "parent") -> list[Comparison]:
    """What the reward model's scores say, one comparison for each prompt that has answers of
    both; none against an anchor that is the parent."""
    return [
        _comparison(
            row, {output["output_id"]: output["score"] for output in row["outputs"]}, against
        )
        for row in rows
        if _has_both(row["outputs"], against)
    ]


def by_ranking(
    row: Row, ranking: Sequence[Sequence[str]], *, against: Other = "parent"
) -> Comparison | None:
    """What a rater's ranking says: output ids best first, an inner list is a tie.

    None when it names no pair of a candidate's and the other's answer.
    """
    places = {name: -place for place, tie in enumerate(ranking) for name in tie}
    ranked = [output for output in row["outputs"] if output["output_id"] in places]
    if not _has_both(ranked, against):
        return None
    return _comparison({**row, "outputs": ranked}, places, against)


def broken_share(rows: Sequence[Row], policy: str) -> float:
    """Share of a policy's answers that are broken."""
    broken = [output["broken"] for row in rows for output in row["outputs"] if _is(output, policy)]
    return float(sum(broken)) / len(broken)


def length_ratio(rows: Sequence[Row]) -> float:
    """Mean length in tokens of the candidate's answers over the parent's."""
    lengths = {
        policy: [len(o["token_ids"]) for row in rows for o in row["outputs"] if _is(o, policy)]
        for policy in ("candidate", "parent")
    }
    means = {policy: sum(values) / len(values) for policy, values in lengths.items()}
    return means["candidate"] / max(means["parent"], 1e-9)


def _has_both(outputs: Sequence[Mapping[str, Any]], against: Other) -> bool:
    return {"candidate", against} <= {output["policy"] for output in outputs}


def _comparison(row: Row, values: Mapping[str, float], against: Other) -> Comparison:
    pairs = [
        (mine, other)
        for mine in row["outputs"]
        for other in row["outputs"]
        if _is(mine, "candidate") and _is(other, against)
    ]
    plain = [_points(values[m["output_id"]], values[o["output_id"]]) for m, o in pairs]
    ruled = [
        _points(float(o["broken"]), float(m["broken"])) if m["broken"] or o["broken"] else judged
        for (m, o), judged in zip(pairs, plain, strict=True)
    ]
    return Comparison(
        user=row["user"], points=sum(ruled) / len(pairs), plain_points=sum(plain) / len(pairs)
    )


def _points(mine: float, other: float) -> float:
    return 0.5 if mine == other else float(mine > other)


def _is(output: Mapping[str, Any], policy: str) -> bool:
    return bool(output["policy"] == policy)
