"""The step `answers`: every policy answers the test prompts and what tempts it, by one engine.

    python -m deploy.reproduce.answer SEED/answers

The engine takes one policy's weights after the other (learning/training/learner_engine.py). The
few-shot prefix of the prompted policy is the one whose answers to validation prompts the reward
model likes best (the paper, section 3.5). A policy that is done is a file, so a stop loses one.
Judges nothing; deploy/reproduce/scoring.py does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.engine.client import Sample
from deploy.reproduce.plan import MEASURED
from deploy.reproduce.prompts import prompt_sets
from deploy.reproduce.raters import people
from deploy.reproduce.sampling import (
    encoded,
    leave_if_asked,
    read_json,
    sampled,
    serving,
    text_of,
)
from deploy.reproduce.sizes import Size
from deploy.reproduce.tasks import PROMPT_TYPES, openings, suites, typed, words_of
from learning.evaluation.regression_suites import is_right
from learning.policy.experience import answer_scores, on_device
from learning.policy.setup import prepare_process
from learning.training.encoding import encode_prompt
from learning.training.learner_engine import LearnerEngine
from learning.training.models import load_reward_model
from learning.training.rollouts import Prompt, finished_groups, rollouts_of
from learning.training.stage import Stage, write_json
from learning.training.stage import run as run_stage

Shots = list[tuple[str, str]]
UNTEMPTED = ("start", "still")
"""Policies that only answer the test prompts."""
TOXIC_TOKENS = 24
WORD_TOKENS = 12
PREFIX_PROMPTS = 16
_TOKEN_BUDGET = 1024
_POLICY_SEEDS = 10_000_019
"""So far apart that equal weights do not give equal answers: a control has to see its noise."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What all policies share."""

    stage: Stage
    engine: LearnerEngine
    tokenizer: PreTrainedTokenizerBase
    size: Size
    seed: int
    test: tuple[str, ...]
    validation: tuple[str, ...]
    max_tokens: int


def answer(stage: Stage) -> dict[str, Any]:
    """Run the step; returns its figures. Raises Interrupted."""
    prepare_process(stage)
    policies: dict[str, str] = stage.inputs["policies"]
    left = [name for name in policies if not _part(stage, name).exists()]
    if left:
        with serving(stage) as engine:
            asking = _asking(stage, engine)
            for number, name in enumerate(left):
                stage.progress(number / len(left), f"{name} answers")
                write_json(_part(stage, name), _policy(asking, name, Path(policies[name])))
                leave_if_asked(stage)
    answers = {name: read_json(_part(stage, name)) for name in policies}
    write_json(stage.partial / "answers.json", answers)
    return {"prefixes": answers["prompted"]["prefixes"] if "prompted" in answers else []}


def _part(stage: Stage, name: str) -> Path:
    return stage.folder / "parts" / f"policy-{name}.json"


def _asking(stage: Stage, engine: LearnerEngine) -> Asking:
    size, seed = Size(**stage.inputs["size"]), int(stage.inputs["seed"])
    taste = people(stage.inputs["judge"]).judges[0]
    sets = prompt_sets(size, taste.form, seed=seed)
    return Asking(
        stage=stage,
        engine=engine,
        tokenizer=AutoTokenizer.from_pretrained(stage.path("model"), local_files_only=True),
        size=size,
        seed=_POLICY_SEEDS * (1 + seed),
        test=tuple(prompt.prompt for prompt in sets.test),
        validation=tuple(prompt.prompt for prompt in sets.validation[:PREFIX_PROMPTS]),
        max_tokens=taste.max_tokens,
    )


def _policy(asking: Asking, name: str, folder: Path) -> dict[str, Any]:
    """All that one policy says."""
    asking.engine.load_folder(folder, version=name)
    shots, found = _prefix(asking) if name == "prompted" else ([], {})
    test = _ask(asking, name, "test", asking.test, shots)
    found |= {
        "test": [text_of(asking.tokenizer, one) for (one,) in test],
        "ended": [one.finish_reason == "stop" for (one,) in test],
    }
    if name not in UNTEMPTED:
        found["toxicity"] = {kind: _tempted(asking, name, kind, shots) for kind in PROMPT_TYPES}
    if name in MEASURED:
        found["words"] = _in_words(asking, name)
    return found


def _ask(
    asking: Asking, name: str, what: str, texts: Sequence[str], shots: Shots, *, n: int = 1
) -> list[list[Sample]]:
    """Answers at temperature 1, with seeds of the policy's own."""
    tempting = what in PROMPT_TYPES
    number = list(asking.stage.inputs["policies"]).index(name)
    return sampled(
        asking.stage,
        asking.engine,
        f"{name}-{what}",
        encoded(asking.tokenizer, texts, shots),
        n=n,
        max_tokens=TOXIC_TOKENS if tempting else asking.max_tokens,
        temperature=1.0,
        seed=asking.seed + 1_000_003 * number,
    )


def _tempted(asking: Asking, name: str, kind: str, shots: Shots) -> list[list[str]]:
    """For each opening what the policy makes of it under one prompt type."""
    asked = [typed(kind, text) for text in openings(asking.size.exam_items)]
    answers = _ask(asking, name, kind, asked, shots, n=asking.size.toxic_answers)
    return [[text_of(asking.tokenizer, one) for one in several] for several in answers]


def _in_words(asking: Asking, name: str) -> dict[str, bool]:
    """Items that are answered in words, greedily: whether each is right."""
    items = words_of(suites(asking.size.exam_items))
    answers = sampled(
        asking.stage,
        asking.engine,
        f"{name}-words",
        [encode_prompt(item.content, asking.tokenizer) for _, item in items],
        n=1,
        max_tokens=WORD_TOKENS,
        temperature=0.0,
        seed=0,
    )
    return {
        unit: is_right(item, text_of(asking.tokenizer, one))
        for (unit, item), (one,) in zip(items, answers, strict=True)
    }


def _prefix(asking: Asking) -> tuple[Shots, dict[str, Any]]:
    """The few-shot prefix that the reward model likes best, and how it likes each."""
    stage, tokenizer = asking.stage, asking.tokenizer
    reward_model = on_device(load_reward_model(stage.path("reward_model")).requires_grad_(False))
    candidates = [[(asked, said) for asked, said in one] for one in read_json(stage.path("shots"))]
    bare = [
        Prompt(str(i), "", "", tuple(ids))
        for i, ids in enumerate(encoded(tokenizer, asking.validation))
    ]
    liked = []
    for number, shots in enumerate(candidates):
        answers = _ask(asking, "prompted", f"prefix-{number}", asking.validation, shots)
        groups = finished_groups(rollouts_of(bare, answers), end_token=int(tokenizer.eos_token_id))
        scores = answer_scores(reward_model, groups, token_budget=_TOKEN_BUDGET)
        liked.append(float(scores.mean()))
    return candidates[liked.index(max(liked))], {"prefixes": liked}


if __name__ == "__main__":
    run_stage(answer)
