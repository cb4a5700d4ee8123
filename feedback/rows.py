"""Rows of a snapshot: what training reads of what people said. Columns are in tables.py.

Plain values; made by preferences.py, written by snapshot.py, read by
learning/reward_model/dataset.py.
"""

from dataclasses import dataclass
from typing import Literal

from core.records import Split


@dataclass(frozen=True, slots=True)
class Said:
    """Who said something about a prompt, and whose prompt it was. Users and raters are hashes."""

    feedback_id: str
    messages: str
    """JSON: a list of {role, content}, or {"prompt": text}."""
    user: str
    split: Split
    rater: str
    heldout_rater: bool


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """One answer of a ranking; rank 1 is the best, equal ranks are ties."""

    completion_id: str
    choice: int
    text: str
    finish_reason: str
    rank: int


@dataclass(frozen=True, slots=True)
class RankingRow:
    """What one rater said about K answers to one prompt.

    Rows with the same `group_id` are about answers to the same request, and are encoded together.
    `weight` is below 1 where a rater would otherwise pass their share of the round.
    """

    said: Said
    group_id: str
    answers: tuple[RankedAnswer, ...]
    weight: float = 1.0

    @property
    def comparisons(self) -> int:
        """Untied pairs."""
        ranks = [answer.rank for answer in self.answers]
        return sum(a < b for a in ranks for b in ranks)


@dataclass(frozen=True, slots=True)
class RatingRow:
    """A thumb (1 up, 0 down) or a rating (1 to 7) of one answer; `weight` as of a ranking."""

    said: Said
    text: str
    finish_reason: str
    kind: Literal["thumb", "rating"]
    value: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class DemonstrationRow:
    """What an answer should have been."""

    said: Said
    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt that counts: rollouts use those of train, evaluation those of validation."""

    prompt_id: str
    tenant: str
    messages: str
    user: str
    split: Split


@dataclass(frozen=True, slots=True)
class UnrankedRow:
    """A prompt that counts, with its different answers, which nobody has ranked."""

    prompt_id: str
    messages: str
    user: str
    created_at: float
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one piece of feedback."""

    status: Literal["pending", "joined", "unjoinable", "held", "withdrawn"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Joined:
    """One piece of feedback and the rows it gives."""

    fate: Fate
    ranking: RankingRow | None = None
    ratings: tuple[RatingRow, ...] = ()
    demonstration: DemonstrationRow | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a snapshot, and what became of each piece of feedback."""

    rankings: tuple[RankingRow, ...]
    ratings: tuple[RatingRow, ...]
    demonstrations: tuple[DemonstrationRow, ...]
    fates: dict[str, Fate]
