"""The stage `evaluate`: the exported candidate beside its parent, on held-out users' prompts.

    python -m learning.evaluate RUN/evaluate

Both are served by the learner's own engine, from their folders, so what is judged is what would
go live. The answers (`out/answers.jsonl`) go to held-out raters and the gate; the figures are what
can be known without them. The reward model scored what it also trained: it may rank candidates,
the gate says when it stands in for people.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.engine.client import Sample
from core.hyperparameters import EvaluationSettings
from learning.answer_rows import (
    Answer,
    answer_rows,
    best_of_figures,
    best_of_rows,
    row_figures,
)
from learning.diagnostics import Kl, kl_estimates
from learning.experience import answer_scores, on_device, policy_logprobs
from learning.learner_engine import LearnerEngine, context_tokens, learner_engine
from learning.models import load_policy, load_reward_model
from learning.policy_setup import encoder, prepare_process, retention_text
from learning.policy_updates import text_loss
from learning.rollouts import (
    MAX_PROMPT_TOKENS,
    Prompt,
    finished_groups,
    layouts,
    order_of,
    read_prompts,
    rollouts_of,
)
from learning.stage import Interrupted, NotEnoughData, Stage, write_json
from learning.stage import run as run_stage
from learning.text_quality import is_broken

BEST_OF_PROMPTS = 16
"""How many prompts get `best_of` answers of the parent: enough to see a ceiling, and cheap."""
KL_PROMPTS = 48
"""How many prompts' answers the KL is measured on: some 4,000 tokens, good to .01 nats a token."""
_TOKEN_BUDGET = 1024
_PARENT_SEED = 500_000_003


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the engine said for each prompt under both policies, and what it held."""

    parent: list[list[Sample]]
    candidate: list[list[Sample]]
    checksums: dict[str, str]
    """Of the candidate's parameters, as the engine loaded them"""


def evaluate(stage: Stage) -> dict[str, Any]:
    """Run the stage; returns its figures. Raises NotEnoughData without held-out prompts."""
    prepare_process(stage)
    settings = EvaluationSettings.model_validate(stage.inputs["settings"])
    tokenizer = AutoTokenizer.from_pretrained(stage.path("parent"), local_files_only=True)
    prompts = _prompts(stage, settings, tokenizer)
    sampled = _sample_once(stage, settings, prompts)
    stage.progress(0.6, "scoring the answers")
    parent, candidate = _judged(stage, prompts, sampled, tokenizer)
    rows = answer_rows(prompts, parent, candidate, count=settings.answers_per_policy)
    _write_rows(stage.partial / "answers.jsonl", rows)
    _write_rows(stage.partial / "best_of.jsonl", best_of_rows(prompts, parent, settings.best_of))
    stage.progress(0.8, "measuring the distance from the anchor")
    return (
        row_figures(rows, seed=int(stage.inputs["seed"]))
        | best_of_figures(parent, settings.best_of)
        | _model_figures(stage, settings, prompts, sampled, tokenizer)
        | {"engine_checksums": sampled.checksums}
    )


def choose_prompts(prompts: Sequence[Prompt], *, count: int, key: str) -> list[Prompt]:
    """At most `count` prompts, one of each user in turn, in an order that the key decides.

    The key names the candidate, so that repeated attempts do not meet the same prompts.
    """
    by_user: dict[str, list[Prompt]] = {}
    for at in order_of(len(prompts), key):
        by_user.setdefault(prompts[at].user, []).append(prompts[at])
    most = max((len(theirs) for theirs in by_user.values()), default=0)
    turns = [theirs[i] for i in range(most) for theirs in by_user.values() if i < len(theirs)]
    return turns[:count]


def _prompts(
    stage: Stage, settings: EvaluationSettings, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    parent, candidate = stage.path("parent"), stage.path("candidate")
    room = context_tokens(parent) - settings.max_new_tokens
    held_out = read_prompts(
        stage.path("snapshot"), "validation", tokenizer, longest=min(MAX_PROMPT_TOKENS, room)
    )
    if not held_out:
        raise NotEnoughData("there are no prompts of held-out users to evaluate on")
    key = f"{stage.inputs['seed']}/{_fingerprint(candidate)}"
    return choose_prompts(held_out, count=settings.prompts, key=key)


def _fingerprint(folder: Path) -> str:
    """Some of a candidate's last weights: other candidates have others."""
    file = sorted(folder.glob("*.safetensors"))[-1]
    with file.open("rb") as opened:
        opened.seek(-min(1024, file.stat().st_size), 2)
        return opened.read().hex()


# --- sampling -------------------------------------------------------------------------------


def _sample_once(stage: Stage, settings: EvaluationSettings, prompts: Sequence[Prompt]) -> Sampled:
    """The answers, which are this stage's checkpoint: a second start does not sample again."""
    if stage.checkpoint.exists():
        return _read_sampled(stage.checkpoint)
    with learner_engine(
        stage.path("parent"),
        stage.inputs["engine"],
        log=stage.folder / "engine.log",
        fallback=stage.folder / "weights",
        idle_priority=bool(stage.inputs.get("idle_priority")),
    ) as engine:
        engine.wait()
        sampled = _sample(stage, settings, prompts, engine)
    write_json(stage.checkpoint, asdict(sampled))
    _leave_if_asked(stage)
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
    _leave_if_asked(stage)
    parent += _generate(
        engine,
        prompts[BEST_OF_PROMPTS:],
        settings,
        n=settings.answers_per_policy,
        seed=seed + 2 * _PARENT_SEED,
    )
    _leave_if_asked(stage)
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


def _leave_if_asked(stage: Stage) -> None:
    if stage.stopping:
        raise Interrupted("stopped while comparing the candidate; the next start goes on")


def _read_sampled(path: Path) -> Sampled:
    state = json.loads(path.read_text())
    return Sampled(
        parent=[[Sample(**sample) for sample in answers] for answers in state["parent"]],
        candidate=[[Sample(**sample) for sample in answers] for answers in state["candidate"]],
        checksums=state["checksums"],
    )


# --- judging --------------------------------------------------------------------------------


def _judged(
    stage: Stage,
    prompts: Sequence[Prompt],
    sampled: Sampled,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[list[Answer]], list[list[Answer]]]:
    """The parent's and the candidate's answers to each prompt, scored by the reward model."""
    reward_model = on_device(load_reward_model(stage.path("reward_model")).requires_grad_(False))
    judged = []
    for samples in (sampled.parent, sampled.candidate):
        groups = finished_groups(
            rollouts_of(prompts, samples), end_token=int(tokenizer.eos_token_id)
        )
        scores = iter(answer_scores(reward_model, groups, token_budget=_TOKEN_BUDGET).tolist())
        judged.append(
            [[_answer(s, next(scores), tokenizer) for s in answers] for answers in samples]
        )
    return judged[0], judged[1]


def _answer(sample: Sample, score: float, tokenizer: PreTrainedTokenizerBase) -> Answer:
    text = str(tokenizer.decode(sample.token_ids, skip_special_tokens=True))
    return Answer(text, sample.token_ids, sample.finish_reason, score, is_broken(text))


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- figures --------------------------------------------------------------------------------


def _model_figures(
    stage: Stage,
    settings: EvaluationSettings,
    prompts: Sequence[Prompt],
    sampled: Sampled,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """KL from the anchor on the candidate's answers, and what it costs on plain text."""
    text = retention_text(encoder(tokenizer), token_budget=_TOKEN_BUDGET)
    rollouts = rollouts_of(prompts[:KL_PROMPTS], sampled.candidate[:KL_PROMPTS])
    order = range(len(rollouts.groups))
    parts = layouts(rollouts, minibatches=1, token_budget=_TOKEN_BUDGET, order=order)
    tables, losses = [], []
    for name in ("candidate", "anchor"):
        model = on_device(load_policy(stage.path(name)).requires_grad_(False))
        temperature = settings.temperature or 1.0
        tables.append(policy_logprobs(model, rollouts, parts, temperature=temperature)[0])
        losses.append(text_loss(model, text))
        _leave_if_asked(stage)
    kl: Kl = kl_estimates(tables[0], tables[1], rollouts.mask)
    return {
        "kl_to_anchor": kl.per_answer,
        "kl_per_token": kl.per_token,
        "kl_k3_per_token": kl.k3_per_token,
        "pretraining_loss": losses[0],
        "pretraining_loss_anchor": losses[1],
        "pretraining_loss_change": losses[0] - losses[1],
    }


if __name__ == "__main__":
    run_stage(evaluate)
