"""All records of a moment as the tables of a snapshot: splits, held-out raters, caps, counts.

Splits are decided here, for all rows at once: by user, or by prompt while there are few users. A
prompt that is a copy of one in another split is left out, so that nothing is tested on what was
trained on. Pure; snapshot.py reads the records and writes the tables.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from core.records import Completion, Feedback, LabelingTask, Split
from core.settings import Settings
from feedback.influence import capped
from feedback.preferences import DUPLICATE_ELSEWHERE, SplitOf, build_rows, labeling_rows
from feedback.rows import DemonstrationRow, PromptRow, RankingRow, RatingRow, Rows, Said
from feedback.speakers import with_speakers
from feedback.split import MIN_RATERS_TO_HOLD_OUT, SplitBy, split_by, split_of
from feedback.tables import Table, content_sha256, table
from feedback.texts import Messages, plain_messages, prompt_json
from feedback.unranked import unranked_rows

Digest = Callable[[str, Messages], str]
"""Keyed hash of a prompt's opening within a tenant; equal for prompts that count as the same."""
Row = TypeVar("Row", RankingRow, RatingRow, DemonstrationRow)


class Manifest(BaseModel):
    """`manifest.json`: what is in the folder of a snapshot."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    """Over the content of the tables that learning reads."""
    created_at: str
    split_by: SplitBy
    counts: dict[str, int]
    heldout_raters: tuple[str, ...]
    """Keyed hashes of the raters whose word only tests."""
    left_out: dict[str, int]
    """How much feedback gave no row, by what became of it."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Everything that a snapshot is made of."""

    feedback: Sequence[Feedback]
    completions: Mapping[str, Completion]
    prompt_tokens: Sequence[str]
    tasks: Sequence[LabelingTask]
    num_users: int
    recorded_comparisons: int


def assemble(
    gathered: Gathered, settings: Settings, *, digest: Digest, now: float, created_at: str
) -> tuple[dict[str, Table], Manifest]:
    """The tables and the manifest. Equal records give equal tables, in whatever order they come."""
    how = split_by(gathered.num_users, settings.log)
    spoken = with_speakers(gathered.feedback, gathered.completions, settings=settings.feedback)
    gathered = replace(gathered, feedback=spoken)

    def alone(tenant: str, user: str, messages: Messages) -> Split:
        by_user = how == "user" and user
        return split_of(user if by_user else digest(tenant, messages), settings.log)

    completions, owners = placed(gathered.completions.values(), split=alone, digest=digest)

    def split(tenant: str, user: str, messages: Messages) -> Split:
        return owners.get(digest(tenant, messages)) or alone(tenant, user, messages)

    heldout = heldout_raters(gathered, by_name=bool(settings.feedback.heldout_raters))
    signals_train = settings.feedback.signals_train
    rows = _all_rows(gathered, completions, split=split, now=now, signals_train=signals_train)
    share_cap = settings.feedback.rater_share_cap
    rankings = capped(_marked(rows.rankings, heldout), share_cap)
    ratings = capped(_marked(rows.ratings, heldout), share_cap)
    demonstrations = capped(_marked(rows.demonstrations, heldout), share_cap)
    prompts = prompt_rows(gathered.prompt_tokens, completions)
    tables = {
        "rankings": table(rankings),
        "ratings": table(ratings),
        "demonstrations": table(demonstrations),
        "prompts": table(prompts),
        "unranked": table(unranked_rows(gathered.prompt_tokens, completions, rankings)),
        "fates": [
            {"feedback_id": feedback_id, "status": fate.status, "reason": fate.reason}
            for feedback_id, fate in sorted(rows.fates.items())
        ],
    }
    said = _everything_said(rankings, ratings, demonstrations)
    return tables, Manifest(
        sha256=content_sha256(tables),
        created_at=created_at,
        split_by=how,
        counts={
            "comparisons": sum(row.comparisons for row in rankings),
            "rankings": len(rankings),
            "ratings": len(ratings),
            "demonstrations": len(demonstrations),
            "prompts": len(prompts),
            "raters": len({s.rater for s in said}),
            "users": len({s.user for s in said if s.user} | {p.user for p in prompts}),
            "recorded_comparisons": gathered.recorded_comparisons,
        },
        heldout_raters=tuple(sorted({s.rater for s in said if s.heldout_rater})),
        left_out=_left_out(rows),
    )


def placed(
    completions: Iterable[Completion], *, split: SplitOf, digest: Digest
) -> tuple[dict[str, Completion], dict[str, Split]]:
    """Completions by token in the split that holds now, and the split that owns each opening.

    The first of several prompts with one opening says which split they belong to; those of a user
    in another split are marked, and give nothing.
    """
    owners: dict[str, Split] = {}
    result: dict[str, Completion] = {}
    for completion in sorted(completions, key=lambda c: (c.created_at, c.token)):
        here = split(completion.tenant, completion.user, completion.messages)
        update: dict[str, str] = {"split": here}
        opening = digest(completion.tenant, completion.messages)
        if owners.setdefault(opening, here) != here:
            update["outcome"] = DUPLICATE_ELSEWHERE
        result[completion.token] = completion.model_copy(update=update)
    return result, owners


def heldout_raters(gathered: Gathered, *, by_name: bool) -> set[str]:
    """A rater who was ever held out is so in all they said; by share, only among enough raters."""
    said = [(f.rater, f.heldout_rater) for f in gathered.feedback if not f.withdrawn]
    said += [(a.rater, a.heldout_rater) for task in gathered.tasks for a in task.answers]
    if not by_name and len({rater for rater, _ in said}) < MIN_RATERS_TO_HOLD_OUT:
        return set()
    return {rater for rater, heldout in said if heldout}


def prompt_rows(tokens: Iterable[str], completions: Mapping[str, Completion]) -> list[PromptRow]:
    """Prompts that count: text only, and in the split that owns them."""
    rows = []
    for token in tokens:
        completion = completions.get(token)
        plain = plain_messages(completion.messages) if completion else None
        if completion and plain and completion.outcome != DUPLICATE_ELSEWHERE:
            rows.append(
                PromptRow(
                    prompt_id=token,
                    tenant=completion.tenant,
                    messages=prompt_json(plain),
                    user=completion.user,
                    split=completion.split,
                )
            )
    return rows


def _all_rows(
    gathered: Gathered,
    completions: Mapping[str, Completion],
    *,
    split: SplitOf,
    now: float,
    signals_train: bool,
) -> Rows:
    """Rows of the feedback routes and of training tasks for labelers."""
    rows = build_rows(
        gathered.feedback, completions, now=now, split_of=split, signals_train=signals_train
    )
    labeled = [labeling_rows(t, split(t.tenant, t.user, t.messages)) for t in gathered.tasks]
    return replace(
        rows,
        rankings=(*rows.rankings, *(row for ranked, _ in labeled for row in ranked)),
        ratings=(*rows.ratings, *(row for _, rated in labeled for row in rated)),
    )


def _marked(rows: Iterable[Row], heldout: set[str]) -> list[Row]:
    return [
        replace(row, said=replace(row.said, heldout_rater=row.said.rater in heldout))
        for row in rows
    ]


def _everything_said(
    rankings: Iterable[RankingRow],
    ratings: Iterable[RatingRow],
    demonstrations: Iterable[DemonstrationRow],
) -> list[Said]:
    return [
        *(row.said for row in rankings),
        *(row.said for row in ratings),
        *(row.said for row in demonstrations),
    ]


def _left_out(rows: Rows) -> dict[str, int]:
    reasons = Counter(fate.reason or fate.status for fate in rows.fates.values())
    del reasons["joined"]
    return dict(sorted(reasons.items()))
