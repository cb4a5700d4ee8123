"""A snapshot folder read as token ids: what the reward model learns from.

Rankings of the same answers by several raters share one group, so that every answer is encoded
once. Knows nothing of losses; groups go to learning/training/packing.py. Who writes the folder is
feedback/snapshot.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as parquet
from transformers import PreTrainedTokenizerBase

from learning.reward_model.preference_loss import num_untied_pairs, ranking_weight
from learning.training.encoding import encode_answer, encode_prompt
from learning.training.packing import Group

Row = Mapping[str, Any]  # a row of Parquet; the columns are those of feedback/snapshot.py
Split = Literal["train", "validation", "test"]
NUM_RATING_LEVELS = 7


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one rater said about some of a group's answers."""

    answers: tuple[int, ...]
    """Places in the group's list of answers."""
    ranks: tuple[int, ...]
    """1 is the best, equal numbers are ties."""
    heldout_rater: bool
    weight: float
    """Before normalisation: (K - 1) times the weight that the snapshot gives."""
    rater: str = ""
    """Whose word it is: a hash."""

    @property
    def num_pairs(self) -> int:
        """Untied pairs."""
        return num_untied_pairs(self.ranks)


@dataclass(frozen=True, slots=True)
class RankedGroup:
    """A prompt, its answers and all rankings of them; each ranking has an untied pair."""

    group: Group
    rankings: tuple[Ranking, ...]
    split: Split

    def by(self, *, heldout: bool) -> tuple[Ranking, ...]:
        """The rankings of held-out raters, or of the others."""
        return tuple(r for r in self.rankings if r.heldout_rater == heldout)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One thumb or rating of one answer."""

    group: Group
    kind: Literal["thumb", "rating"]
    level: int
    """Thumb: 0 down, 1 up. Rating: 0 to 6, which is the rating less one."""
    weight: float = 1.0
    """Below 1 where the rater would otherwise pass their share."""


@dataclass(frozen=True, slots=True)
class FeedbackData:
    """A snapshot's feedback, tokenised."""

    ranked: list[RankedGroup]
    judgements: list[Judgement]
    """Of the training split, by raters who are not held out."""
    demonstrations: list[Group]
    """Of the training split, by raters who are not held out."""

    def split(self, name: Split) -> list[RankedGroup]:
        """The ranked groups of one split."""
        return [group for group in self.ranked if group.split == name]


def read_feedback(folder: Path, tokenizer: PreTrainedTokenizerBase) -> FeedbackData:
    """Read a snapshot's rankings, thumbs, ratings and demonstrations."""
    return FeedbackData(
        ranked=ranked_groups(_rows(folder / "rankings.parquet"), tokenizer),
        judgements=[
            _judgement(row, tokenizer)
            for row in _rows(folder / "ratings.parquet")
            if row["split"] == "train" and not row["heldout_rater"]
        ],
        demonstrations=read_demonstrations(folder, tokenizer, split="train"),
    )


def read_demonstrations(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *, split: Split
) -> list[Group]:
    """The demonstrations of one split, but those of held-out raters, who never train."""
    return [
        _single(row, tokenizer)
        for row in _rows(folder / "demonstrations.parquet")
        if row["split"] == split and not row["heldout_rater"]
    ]


def ranked_groups(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> list[RankedGroup]:
    """Rows of rankings.parquet, those of one group put together, in the rows' order.

    A ranking that only says "all alike" carries no preference and is left out.
    """
    together: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if num_untied_pairs([answer["rank"] for answer in row["answers"]]):
            key = (row["split"], row["group_id"], row["messages"])
            together.setdefault(key, []).append(row)
    return [_ranked_group(rows, tokenizer) for rows in together.values()]


def _ranked_group(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> RankedGroup:
    texts: dict[tuple[str, int], str] = {}
    for row in rows:
        for answer in row["answers"]:
            texts.setdefault((answer["completion_id"], answer["choice"]), answer["text"])
    places = {name: place for place, name in enumerate(texts)}
    return RankedGroup(
        group=Group(
            prompt=encode_prompt(rows[0]["messages"], tokenizer),
            answers=[encode_answer(text, tokenizer) for text in texts.values()],
        ),
        rankings=tuple(_ranking(row, places) for row in rows),
        split=rows[0]["split"],
    )


def _ranking(row: Row, places: Mapping[tuple[str, int], int]) -> Ranking:
    answers = row["answers"]
    return Ranking(
        answers=tuple(places[a["completion_id"], a["choice"]] for a in answers),
        ranks=tuple(a["rank"] for a in answers),
        heldout_rater=row["heldout_rater"],
        weight=ranking_weight(len(answers)) * row["weight"],
        rater=row["rater"],
    )


def _judgement(row: Row, tokenizer: PreTrainedTokenizerBase) -> Judgement:
    lowest = 1 if row["kind"] == "rating" else 0
    return Judgement(
        group=_single(row, tokenizer),
        kind=row["kind"],
        level=round(row["value"]) - lowest,
        weight=row.get("weight", 1.0),
    )


def _single(row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
    prompt = encode_prompt(row["messages"], tokenizer)
    return Group(prompt=prompt, answers=[encode_answer(row["text"], tokenizer)])


def _rows(path: Path) -> list[Row]:
    rows: list[Row] = parquet.read_table(path).to_pylist()
    return rows
