"""The answers of candidate and parent to held-out prompts, sampled by one engine.

The engine starts on the parent's folder and takes the anchor's, where that is another version, and
then the candidate's weights in place, so all are served by the same process. Items of regression
suites that are answered in words are answered here too, greedily. The answers are the checkpoint of
the stage `evaluate`. Judges nothing: learning/evaluation/evaluate.py does.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.engine.client import Sample
from core.hyperparameters import EvaluationSettings
from learning.evaluation.regression_questions import Question, longest_first
from learning.training.learner_engine import LearnerEngine, stage_engine
from learning.training.rollouts import Prompt
from learning.training.stage import Interrupted, Stage, write_json

BEST_OF_PROMPTS = 8
"""How many prompts get `best_of` answers of the parent: enough to see a ceiling, and cheap."""
ANCHOR_ANSWERS = 1
"""Answers of the anchor to a prompt, where it is not the parent: all of the candidate's meet it."""
_PARENT_SEED = 500_000_003
_ATTEMPT_SEED = 7_000_003


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the engine said for each prompt under both policies, and what it held."""

    parent: list[list[Sample]]
    candidate: list[list[Sample]]
    checksums: dict[str, str]
    """Of the candidate's parameters, as the engine loaded them"""
    anchor: list[list[Sample]] = field(default_factory=list)
    """Empty where the anchor is the parent"""
    greedy: dict[str, list[list[int]]] = field(default_factory=dict)
    """Token ids of the greedy answers to the suites' questions, of `parent` and `candidate`"""


@contextmanager
def starting_engine(stage: Stage) -> Iterator[LearnerEngine | None]:
    """An engine that is not waited for yet; none where the answers were sampled before.

    It and its folder are gone at the end of the `with` block.
    """
    if stage.checkpoint.exists():
        yield None
        return
    with stage_engine(stage, "parent") as engine:
        yield engine


def sample_once(
    stage: Stage,
    settings: EvaluationSettings,
    prompts: Sequence[Prompt],
    engine: LearnerEngine | None,
    questions: Sequence[Question] = (),
) -> Sampled:
    """The answers, which are this stage's checkpoint: a second start does not sample again."""
    if engine is None:
        return _read_sampled(stage.checkpoint)
    engine.wait()
    sampled = _sample(stage, settings, prompts, engine, questions)
    write_json(stage.checkpoint, asdict(sampled))
    leave_if_asked(stage)
    return sampled


def _sample(
    stage: Stage,
    settings: EvaluationSettings,
    prompts: Sequence[Prompt],
    engine: LearnerEngine,
    questions: Sequence[Question],
) -> Sampled:
    seed = sampling_seed(stage)
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
    greedy = {"parent": _answered(engine, questions)}
    anchor = _sample_anchor(stage, settings, prompts, engine, seed=seed + 3 * _PARENT_SEED)
    stage.progress(0.35, "sampling the candidate's answers")
    engine.load_folder(stage.path("candidate"), version="candidate")
    candidate = _generate(engine, prompts, settings, n=settings.answers_per_policy, seed=seed)
    greedy["candidate"] = _answered(engine, questions)
    return Sampled(parent, candidate, engine.checksums(), anchor=anchor, greedy=greedy)


def sampling_seed(stage: Stage) -> int:
    """Another for each attempt, so that a candidate that is judged again gives new answers."""
    return int(stage.inputs["seed"]) + _ATTEMPT_SEED * (int(stage.inputs.get("attempt", 1)) - 1)


def anchor_is_parent(stage: Stage) -> bool:
    """Whether comparing with the parent is comparing with the anchor."""
    return stage.path("anchor").samefile(stage.path("parent"))


def _sample_anchor(
    stage: Stage,
    settings: EvaluationSettings,
    prompts: Sequence[Prompt],
    engine: LearnerEngine,
    *,
    seed: int,
) -> list[list[Sample]]:
    if anchor_is_parent(stage):
        return []
    stage.progress(0.25, "sampling the anchor's answers")
    engine.load_folder(stage.path("anchor"), version="anchor")
    answers = _generate(engine, prompts, settings, n=ANCHOR_ANSWERS, seed=seed)
    leave_if_asked(stage)
    return answers


def _answered(engine: LearnerEngine, questions: Sequence[Question]) -> list[list[int]]:
    """The engine's most likely answer to each question, token ids, in their order."""
    answers: dict[int, list[int]] = {}
    for max_tokens, numbers in longest_first(questions):
        given = engine.generate(
            [questions[i].prompt for i in numbers],
            n=1,
            max_tokens=max_tokens,
            temperature=0.0,
            seed=0,
        )
        answers |= {i: one.token_ids for i, (one,) in zip(numbers, given, strict=True)}
    return [answers[i] for i in range(len(questions))]


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
        anchor=[[Sample(**sample) for sample in answers] for answers in state["anchor"]],
        greedy=state["greedy"],
    )
