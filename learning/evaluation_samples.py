"""The answers of candidate and parent to held-out prompts, sampled by one engine.

The engine starts on the parent's folder and takes the candidate's weights in place, so both are
served by the same process. The answers are the checkpoint of the stage `evaluate`. Judges nothing:
learning/evaluate.py does.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from core.engine.client import Sample
from core.hyperparameters import EvaluationSettings
from learning.learner_engine import LearnerEngine, learner_engine
from learning.rollouts import Prompt
from learning.stage import Interrupted, Stage, write_json

BEST_OF_PROMPTS = 8
"""How many prompts get `best_of` answers of the parent: enough to see a ceiling, and cheap."""
_PARENT_SEED = 500_000_003


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the engine said for each prompt under both policies, and what it held."""

    parent: list[list[Sample]]
    candidate: list[list[Sample]]
    checksums: dict[str, str]
    """Of the candidate's parameters, as the engine loaded them"""


@contextmanager
def starting_engine(stage: Stage) -> Iterator[LearnerEngine | None]:
    """An engine that is not waited for yet; none where the answers were sampled before.

    It and its folder are gone at the end of the `with` block.
    """
    if stage.checkpoint.exists():
        yield None
        return
    with learner_engine(
        stage.path("parent"),
        stage.inputs["engine"],
        log=stage.folder / "engine.log",
        fallback=stage.folder / "weights",
        idle_priority=bool(stage.inputs.get("idle_priority")),
    ) as engine:
        yield engine


def sample_once(
    stage: Stage,
    settings: EvaluationSettings,
    prompts: Sequence[Prompt],
    engine: LearnerEngine | None,
) -> Sampled:
    """The answers, which are this stage's checkpoint: a second start does not sample again."""
    if engine is None:
        return _read_sampled(stage.checkpoint)
    engine.wait()
    sampled = _sample(stage, settings, prompts, engine)
    write_json(stage.checkpoint, asdict(sampled))
    leave_if_asked(stage)
    return sampled


def _sample(
    stage: Stage,
    settings: EvaluationSettings,
    prompts: Sequence[Prompt],
    engine: LearnerEngine,
) -> Sampled:
    seed = int(stage.inputs["seed"])
    stage.progress(0.1, "sampling the parent's answers")
    several = prompts[:BEST_OF_PROMPTS]
    most = max(settings.best_of, settings.answers_per_policy)
    parent = _generate(engine, several, settings, n=most, seed=seed + _PARENT_SEED)
    leave_if_asked(stage)
    parent += _generate(
        engine,
        prompts[BEST_OF_PROMPTS:],
        settings,
        n=settings.answers_per_policy,
        seed=seed + 2 * _PARENT_SEED,
    )
    leave_if_asked(stage)
    stage.progress(0.35, "sampling the candidate's answers")
    engine.load_folder(stage.path("candidate"), version="candidate")
    candidate = _generate(engine, prompts, settings, n=settings.answers_per_policy, seed=seed)
    return Sampled(parent=parent, candidate=candidate, checksums=engine.checksums())


def _generate(
    engine: LearnerEngine,
    prompts: Sequence[Prompt],
    settings: EvaluationSettings,
    *,
    n: int,
    seed: int,
) -> list[list[Sample]]:
    return engine.generate(
        [prompt.ids for prompt in prompts],
        n=n,
        max_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed,
    )


def leave_if_asked(stage: Stage) -> None:
    """Raise Interrupted once the stage was told to stop."""
    if stage.stopping:
        raise Interrupted("stopped while comparing the candidate; the next start goes on")


def _read_sampled(path: Path) -> Sampled:
    state = json.loads(path.read_text())
    return Sampled(
        parent=[[Sample(**sample) for sample in answers] for answers in state["parent"]],
        candidate=[[Sample(**sample) for sample in answers] for answers in state["candidate"]],
        checksums=state["checksums"],
    )
