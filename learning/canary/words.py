"""What people said while a canary is on: one bounded value for each of them and signal. Pure.

The unit is whoever speaks: the end user, or a rater with a name. Their side is that of the user
whom the first answer they spoke of was for, whichever version gave it (intention to treat), and
what they say for a while after their first word is averaged into one value in [0, 1], 1 is good,
which then never changes. Thumbs, ratings and signals are compared across the sides; a ranking that
holds answers of both versions compares them directly. What is taken back, held back or kept out of
training by its key in that while does not count; raters who are held out of training do, for
judging is what they are for. learning/canary/watch.py reads and keeps;
learning/canary/sequential.py judges.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from core.canary import Canary, cohort_of
from core.records import Completion, Feedback
from feedback.speakers import end_user
from learning.canary.sequential import Observations

Side = Literal["candidate", "live", "paired"]
Signal = Literal["thumbs", "ratings", "rankings", "signals"]
SideOf = Callable[[Completion, float], Side | None]
"""The side of what is said of an answer at a moment; None when it is not about the canary."""


@dataclass(frozen=True, slots=True)
class Word:
    """One thing that somebody said."""

    signal: Signal
    speaker: str
    side: Side
    value: float
    at: float


@dataclass(frozen=True, slots=True)
class Unit:
    """All that one speaker says with one signal, as it counts."""

    signal: Signal
    speaker: str
    side: Side
    value: float


def side_in_split(canary: Canary) -> SideOf:
    """By the cohort of the user, for answers of both versions since the canary began."""

    def side(completion: Completion, _: float) -> Side | None:
        if completion.created_at < canary.started_at or not _counts(completion, canary):
            return None
        return cohort_of(completion.user, canary.salt, canary.share)

    return side


def side_in_watch(canary: Canary) -> SideOf:
    """By the version that answered: what was said of the parent before the candidate was live."""

    def side(completion: Completion, at: float) -> Side | None:
        if not _counts(completion, canary):
            return None
        if completion.policy_versions[0] == canary.candidate:
            return "candidate" if completion.created_at >= canary.started_at else None
        return "live" if at < canary.started_at else None

    return side


def side_of(canary: Canary) -> SideOf:
    """As the canary's mode has it."""
    return side_in_split(canary) if canary.mode == "split" else side_in_watch(canary)


def words_of(
    feedback: Iterable[Feedback], completions: Mapping[str, Completion], *, canary: Canary
) -> list[Word]:
    """What the feedback says about the canary, in the order it was said."""
    side = side_of(canary)
    found: list[Word] = []
    for said in sorted(feedback, key=lambda f: (f.updated_at, f.id)):
        if said.withdrawn or said.held or not said.trains:
            continue
        about = [completions.get(output.token) for output in said.outputs]
        speaker = end_user(said, completions) if said.by_end_user else said.rater
        if not about or None in about or speaker is None:
            continue
        known = [completion for completion in about if completion is not None]
        if said.kind == "ranking":
            found += _ranked(said, known, speaker, canary)
        elif (where := side(known[0], said.updated_at)) is not None:
            found += [
                Word(signal, speaker, where, value, said.updated_at)
                for signal, value in _pointwise(said)
            ]
    return found


def settled(
    words: Sequence[Word],
    *,
    known: Iterable[Unit],
    canary: Canary,
    until: float,
    seconds: float,
) -> list[Unit]:
    """Units of speakers who are not `known` yet and whose while was over at `until`.

    In the order of their first words. In a split a speaker has one side, that of the first word,
    and words on the other do not count; in a watch everybody may have been there before.
    """
    by_speaker: dict[tuple[str, ...], list[Word]] = defaultdict(list)
    done = {_name(unit, canary) for unit in known}
    for word in sorted(words, key=lambda w: w.at):
        if (name := _name(word, canary)) not in done:
            by_speaker[name].append(word)
    units = []
    for said in by_speaker.values():
        first = said[0]
        if first.at + seconds > until:
            continue
        values = [w.value for w in said if w.at <= first.at + seconds and w.side == first.side]
        units.append(Unit(first.signal, first.speaker, first.side, sum(values) / len(values)))
    return units


def _name(one: Word | Unit, canary: Canary) -> tuple[str, ...]:
    """What there is one value for."""
    name = (one.signal, one.speaker)
    return (*name, one.side) if canary.mode == "watch" else name


def observed(
    units: Sequence[Unit],
    *,
    canary: Canary,
    signals: Sequence[Signal],
    users_candidate: int,
    users_live: int,
) -> Observations:
    """The values in order, as learning/canary/sequential.py takes them; every signal is there."""
    candidate: dict[str, list[float]] = {}
    live: dict[str, list[float]] = {}
    for signal in signals:
        of_signal = [unit for unit in units if unit.signal == signal]
        if signal == "rankings":
            candidate[signal] = [unit.value for unit in of_signal]
            continue
        new = [unit for unit in of_signal if unit.side == "candidate"]
        old = [unit for unit in of_signal if unit.side == "live"]
        pairs = _matched(new, old) if canary.mode == "watch" else None
        candidate[signal] = [u.value for u in new] if pairs is None else [a for a, _ in pairs]
        live[signal] = [u.value for u in old] if pairs is None else [b for _, b in pairs]
    return Observations(candidate, live, users_candidate, users_live, canary.share)


def _matched(new: Sequence[Unit], old: Sequence[Unit]) -> list[tuple[float, float]]:
    """Each new value with the speaker's own from before, else with the next that is not taken.

    `old` is complete before the first of `new`, and later units change no pair before them.
    """
    left = {unit.speaker: unit.value for unit in old}
    pairs = []
    for unit in new:
        whose = unit.speaker if unit.speaker in left else next(iter(left), None)
        if whose is not None:
            pairs.append((unit.value, left.pop(whose)))
    return pairs


def _counts(completion: Completion, canary: Canary) -> bool:
    """Whether one version alone wrote it, one of the canary's, for somebody who is not out."""
    return (
        len(completion.policy_versions) == 1
        and completion.policy_versions[0] in (canary.candidate, canary.parent)
        and completion.outcome != "opted_out"
        and not completion.error
    )


def _pointwise(said: Feedback) -> list[tuple[Signal, float]]:
    found: list[tuple[Signal, float]] = []
    if said.thumb:
        found.append(("thumbs", 1.0 if said.thumb == "up" else 0.0))
    if said.rating is not None:
        found.append(("ratings", (said.rating - 1) / 6))
    if said.signal:
        found.append(("signals", 1.0 if said.signal == "copy" else 0.0))
    return found


def _ranked(
    said: Feedback, about: Sequence[Completion], speaker: str, canary: Canary
) -> list[Word]:
    """How often the candidate's answers come before the parent's; a tie is half."""
    if not all(_counts(completion, canary) for completion in about):
        return []
    rank = {place: number for number, tie in enumerate(said.ranking) for place in tie}
    versions = [completion.policy_versions[0] for completion in about]
    new = [rank[p] for p, v in enumerate(versions) if v == canary.candidate]
    old = [rank[p] for p, v in enumerate(versions) if v == canary.parent]
    if not new or not old:
        return []
    points = [1.0 if a < b else 0.5 if a == b else 0.0 for a in new for b in old]
    value = sum(points) / len(points)
    return [Word("rankings", speaker, "paired", value, said.updated_at)]
