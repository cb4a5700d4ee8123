"""What people said, joined with what they said it about: rows that a model can learn from.

Rankings become ranks over the answers' logged texts; a demonstration about an answer is preferred
over it; thumbs and ratings stay pointwise. What cannot be joined says why. A rater's latest word
counts. Comparisons on duplicate prompts count (the answers differ), those on prompts over the
user's cap do not. Pure: records in, rows out; snapshot.py feeds it and writes what comes out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import combinations
from typing import Literal

from core.records import (
    Answer,
    Choice,
    Completion,
    Feedback,
    LabelingOutput,
    LabelingTask,
    Output,
    Split,
)
from feedback.rows import (
    DemonstrationRow,
    Fate,
    Joined,
    RankedAnswer,
    RankingRow,
    RatingRow,
    Rows,
    Said,
)
from feedback.texts import Messages, plain_messages, prompt_json

WAIT_FOR_LOG_SECONDS = 3600.0
"""How long feedback waits for a completion that is not in the log before it is unjoinable."""
DUPLICATE_ELSEWHERE = "duplicate_elsewhere"
"""The outcome that snapshot.py gives to a copy of a prompt that belongs to another split."""
SplitOf = Callable[[str, str, Messages], Split]
"""The split of a prompt, given its tenant, its user and what it says."""
Answers = Mapping[Output, tuple[Completion, Choice]]
_REFUSED_OUTCOMES = {
    "opted_out": "the end user opted out",
    "over_user_cap": "the prompt is over its user's cap",
    DUPLICATE_ELSEWHERE: "the prompt is a copy of one in another split",
}


def build_rows(
    feedback: Sequence[Feedback],
    completions: Mapping[str, Completion],
    *,
    now: float,
    split_of: SplitOf,
    signals_train: bool = False,
) -> Rows:
    """Join all feedback, in the order of its ids.

    `completions` are by token and carry the split that holds now; `split_of` gives that of a
    prompt which came with a demonstration.
    """
    old = superseded(feedback)
    again = Joined(Fate("unjoinable", "the rater has ranked these answers again since"))
    joined = {
        said.id: again
        if said.id in old
        else join(said, completions, now=now, split_of=split_of, signals_train=signals_train)
        for said in sorted(feedback, key=lambda f: f.id)
    }
    return Rows(
        rankings=tuple(j.ranking for j in joined.values() if j.ranking),
        ratings=tuple(row for j in joined.values() for row in j.ratings),
        demonstrations=tuple(j.demonstration for j in joined.values() if j.demonstration),
        fates={feedback_id: j.fate for feedback_id, j in joined.items()},
    )


def fate_of(
    feedback: Feedback,
    completions: Mapping[str, Completion],
    *,
    now: float,
    signals_train: bool = False,
) -> Fate:
    """What became of one piece of feedback, as far as is known now."""
    return join(
        feedback,
        completions,
        now=now,
        split_of=lambda *_: "train",
        signals_train=signals_train,
    ).fate


def join(
    said: Feedback,
    completions: Mapping[str, Completion],
    *,
    now: float,
    split_of: SplitOf,
    signals_train: bool = False,
) -> Joined:
    """One piece of feedback with the answers it is about."""
    early = _fate_without_text(said, completions, now=now)
    if early is not None:
        return Joined(early)
    if not said.outputs:
        return _join_free_demonstration(said, split_of)
    answers, refusals = _usable_answers(said, completions)
    if len(answers) < (2 if said.kind == "ranking" else 1):
        return Joined(Fate("unjoinable", refusals[0]))
    if len({completion.split for completion, _ in answers.values()}) > 1:
        return Joined(Fate("unjoinable", "the answers belong to users of different splits"))
    match said.kind:
        case "ranking":
            return _join_ranking(said, answers)
        case "rating":
            return _join_rating(said, answers)
        case "signal":
            return _join_signal(said, answers, trains=signals_train)
        case "demonstration":
            return _join_demonstration(said, answers)


def superseded(feedback: Iterable[Feedback]) -> set[str]:
    """Ids of rankings of which the same rater has ordered a pair again since."""
    said_later: set[tuple[str, Output, Output]] = set()
    old: set[str] = set()
    rankings = [f for f in feedback if f.kind == "ranking" and not f.withdrawn]
    for ranking in sorted(rankings, key=lambda f: (f.updated_at, f.id), reverse=True):
        pairs = {(ranking.rater, *pair) for pair in combinations(ranking.outputs, 2)}
        if pairs & said_later:
            old.add(ranking.id)
        said_later |= pairs
    return old


def refusal(completion: Completion, choice: int) -> str | None:
    """Why an answer cannot train; None when it can."""
    answer = completion.choices[choice] if choice < len(completion.choices) else None
    checks: tuple[tuple[bool, str], ...] = (
        (completion.outcome in _REFUSED_OUTCOMES, _REFUSED_OUTCOMES.get(completion.outcome, "")),
        (not completion.trains, "its key or request keeps the completion out of training"),
        (bool(completion.error), f"the answer broke off: {completion.error}"),
        (completion.mixed, "a swap of policies crossed the answer"),
        (plain_messages(completion.messages) is None, "the prompt holds more than text"),
        (answer is None, "the answer is not in the log"),
        (answer is not None and not _is_text(answer), "the answer is not text that ended"),
    )
    return next((reason for refused, reason in checks if refused), None)


def labeling_rows(task: LabelingTask, split: Split) -> tuple[list[RankingRow], list[RatingRow]]:
    """What raters said in one training task, whose outputs stand for completions."""
    plain = plain_messages(task.messages)
    if task.mode != "training" or plain is None:
        return [], []
    rankings, ratings = [], []
    for answer in task.answers:
        if answer.held:
            continue
        said = Said(
            task.id, prompt_json(plain), task.user, split, answer.rater, answer.heldout_rater
        )
        rankings.append(_labeled_ranking(task, answer, said))
        ratings += [
            RatingRow(said, o.text, _ended(o), "rating", float(answer.ratings[o.output_id]))
            for o in task.outputs
            if o.output_id in answer.ratings
        ]
    return [row for row in rankings if row.comparisons], ratings


def _is_text(answer: Choice) -> bool:
    return not answer.tool_calls and answer.finish_reason in ("stop", "length")


def _fate_without_text(
    said: Feedback, completions: Mapping[str, Completion], *, now: float
) -> Fate | None:
    if said.withdrawn:
        return Fate("withdrawn")
    if said.held:
        return Fate("held", said.held)
    if not said.trains:
        return Fate("unjoinable", "nothing said through this key trains")
    if any(output.token not in completions for output in said.outputs):
        if now - said.updated_at < WAIT_FOR_LOG_SECONDS:
            return Fate("pending")
        return Fate("unjoinable", "the completion is not in the log")
    if said.kind == "demonstration" and said.text is None:
        return Fate("pending")  # its text waits for the filter
    return None


def _usable_answers(
    said: Feedback, completions: Mapping[str, Completion]
) -> tuple[Answers, list[str]]:
    """The answers that can train, in a fixed order, and why the others cannot."""
    usable: dict[Output, tuple[Completion, Choice]] = {}
    refusals: list[str] = []
    for output in sorted(said.outputs, key=lambda o: (o.token, o.choice)):
        completion = completions[output.token]
        if reason := refusal(completion, output.choice):
            refusals.append(reason)
        else:
            usable[output] = (completion, completion.choices[output.choice])
    return usable, refusals


def _join_ranking(said: Feedback, answers: Answers) -> Joined:
    ties = [[o for p in tie if (o := said.outputs[p]) in answers] for tie in said.ranking]
    rank_of = {
        output: rank
        for rank, tie in enumerate((tie for tie in ties if tie), start=1)
        for output in tie
    }
    row = _ranking_row(said, answers, [_ranked(o, answers, rank_of[o]) for o in answers])
    if not row.comparisons:
        return Joined(Fate("joined", "all answers are tied"))
    return Joined(Fate("joined"), ranking=row)


def _join_rating(said: Feedback, answers: Answers) -> Joined:
    ((_, answer),) = answers.values()
    values: list[tuple[Literal["thumb", "rating"], float]] = []
    if said.thumb:
        values.append(("thumb", 1.0 if said.thumb == "up" else 0.0))
    if said.rating is not None:
        values.append(("rating", float(said.rating)))
    context = _said(said, answers)
    rows = [RatingRow(context, answer.text, str(answer.finish_reason), *v) for v in values]
    return Joined(Fate("joined"), ratings=tuple(rows))


def _join_signal(said: Feedback, answers: Answers, *, trains: bool) -> Joined:
    """An answer that was copied as a thumb up, one that was asked for again as a thumb down."""
    if not trains:
        return Joined(Fate("joined", "signals do not train here"))
    ((_, answer),) = answers.values()
    thumb = 1.0 if said.signal == "copy" else 0.0
    row = RatingRow(_said(said, answers), answer.text, str(answer.finish_reason), "thumb", thumb)
    return Joined(Fate("joined"), ratings=(row,))


def _join_demonstration(said: Feedback, answers: Answers) -> Joined:
    ((output, (_, answer)),) = answers.items()
    text = (said.text or {})["text"]
    better = RankedAnswer(said.id, 0, text, "stop", rank=1)
    row = _ranking_row(said, answers, [better, _ranked(output, answers, 2)])
    return Joined(
        Fate("joined"),
        ranking=row if text != answer.text else None,
        demonstration=DemonstrationRow(_said(said, answers), text),
    )


def _join_free_demonstration(said: Feedback, split_of: SplitOf) -> Joined:
    plain = plain_messages(said.messages or {})
    if plain is None:
        return Joined(Fate("unjoinable", "the prompt holds more than text"))
    split = split_of(said.tenant, said.user, plain)
    context = Said(said.id, prompt_json(plain), said.user, split, said.rater, said.heldout_rater)
    row = DemonstrationRow(context, (said.text or {})["text"])
    return Joined(Fate("joined"), demonstration=row)


def _said(said: Feedback, answers: Answers) -> Said:
    completion, _ = next(iter(answers.values()))
    messages = prompt_json(plain_messages(completion.messages) or [])
    return Said(
        said.id, messages, completion.user, completion.split, said.rater, said.heldout_rater
    )


def _ranked(output: Output, answers: Answers, rank: int) -> RankedAnswer:
    completion, answer = answers[output]
    return RankedAnswer(completion.id, output.choice, answer.text, str(answer.finish_reason), rank)


def _ranking_row(said: Feedback, answers: Answers, ranked: Iterable[RankedAnswer]) -> RankingRow:
    tokens = sorted({output.token for output in answers})
    group = tokens[0] if len(tokens) == 1 else sha256("\n".join(tokens).encode()).hexdigest()
    return RankingRow(_said(said, answers), group, _in_order(ranked))


def _labeled_ranking(task: LabelingTask, answer: Answer, said: Said) -> RankingRow:
    rank_of = {name: rank for rank, tie in enumerate(answer.ranking, 1) for name in tie}
    ranked = [
        RankedAnswer(task.id, place, o.text, _ended(o), rank_of[o.output_id])
        for place, o in enumerate(task.outputs)
        if o.output_id in rank_of
    ]
    return RankingRow(said, task.id, _in_order(ranked))


def _ended(output: LabelingOutput) -> str:
    return output.finish_reason or "stop"


def _in_order(ranked: Iterable[RankedAnswer]) -> tuple[RankedAnswer, ...]:
    return tuple(sorted(ranked, key=lambda a: (a.rank, a.completion_id, a.choice)))
