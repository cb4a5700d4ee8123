"""What may go of old versions, reward models and runs: decided here, done by collect.py.

Pure. A version stays while somebody may want its weights: it is live, it was live not long ago, it
is the anchor of one that stays, it serves, it is pinned, or a run that stays began with it or made
it. A run's outputs stay while it is new, or while a later run builds, or could build, on them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.records import Card, Run
from core.setting_groups import RetentionSettings
from learning.rounds.stage_inputs import FIRST, Sources

BUILT_ON = ("reward_model", "policy")
"""Stages whose newest outputs a run may build on that starts in the middle."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the decision rests on. Versions oldest first; history and runs newest first."""

    cards: Sequence[Card]
    target: str | None
    history: Sequence[str]
    """Versions that were the target before."""
    unusable: frozenset[str]
    """Quarantined, or without weights already: nobody can go back to them."""
    served: frozenset[str]
    canary: frozenset[str]
    """Candidate and parent of a canary that is on."""
    runs: Sequence[Run]
    sources: Mapping[str, Sources]
    """What each run builds on, where it is known."""
    outputs: frozenset[tuple[str, str]]
    """Run and stage of the outputs that are there."""
    reward_models: Mapping[str, str]
    """Kept reward models, oldest first, with the run that made each."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The names of everything that stays."""

    versions: frozenset[str]
    reward_models: frozenset[str]
    runs: frozenset[str]


def decide(facts: Facts, retention: RetentionSettings) -> Kept:
    """What stays."""
    runs = _runs(facts, retention.runs)
    versions = _versions(facts, runs, retention)
    cards = [card for card in facts.cards if card.version in versions]
    named = {card.reward_model for card in cards if card.reward_model}
    made = {name for name, run in facts.reward_models.items() if run in runs}
    return Kept(versions, frozenset(named | made | {*[*facts.reward_models][-1:]}), runs)


def _runs(facts: Facts, count: int) -> frozenset[str]:
    """The newest, those that are not over, and what they and a next one build on."""
    kept = {run.id for run in facts.runs[:count]}
    kept |= {run.id for run in facts.runs if run.finished_at is None}
    for stage in BUILT_ON:
        done = (run.id for run in facts.runs if (run.id, stage) in facts.outputs)
        kept |= {*[run_id for run_id in done if run_id in facts.sources][:1]}
    return frozenset(kept | _built_on(facts.sources[run] for run in kept if run in facts.sources))


def _built_on(sources: Iterable[Sources]) -> set[str]:
    """No run builds on what builds on others: sources name the runs that made the outputs."""
    return {
        run_id
        for one in sources
        for run_id in (one.snapshot, one.reward_model, one.policy)
        if run_id is not None
    }


def _versions(facts: Facts, runs: frozenset[str], retention: RetentionSettings) -> frozenset[str]:
    live_before = dict.fromkeys(
        version
        for version in facts.history
        if version != facts.target and version not in facts.unusable
    )
    kept = {FIRST, *retention.pinned, *facts.served, *facts.canary}
    kept |= {*[*live_before][: retention.versions]}
    if facts.target:
        kept.add(facts.target)
    for run in facts.runs:
        if run.id in runs:
            kept |= {version for version in (run.parent, run.version) if version}
    return frozenset(kept | {c.anchor for c in facts.cards if c.version in kept and c.anchor})
