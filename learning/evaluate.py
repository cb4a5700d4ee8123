"""The stage `evaluate`: the exported candidate beside its parent, on held-out users' prompts.

    python -m learning.evaluate RUN/evaluate

Both are served by the learner's own engine, from their folders, so what is judged is what would
go live. The answers (`out/answers.jsonl`) go to held-out raters and the gate; the figures are what
can be known without them. The reward model scored what it also trained: it may rank candidates,
the gate says when it stands in for people. What needs no answers is measured while the engine
starts, which takes half a minute of one core.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
from learning.evaluation_samples import Sampled, leave_if_asked, sample_once, starting_engine
from learning.experience import answer_scores, on_device, policy_logprobs
from learning.learner_engine import context_tokens
from learning.models import RewardModel, load_policy, load_reward_model
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
from learning.stage import NotEnoughData, Stage
from learning.stage import run as run_stage
from learning.text_quality import is_broken

KL_PROMPTS = 32
"""How many prompts' answers the KL is measured on: up to 2,500 tokens, good to .01 nats a token."""
_TOKEN_BUDGET = 1024


@dataclass(frozen=True, slots=True)
class Models:
    """What measures: each is read from its folder once."""

    candidate: PreTrainedModel
    anchor: PreTrainedModel
    reward_model: RewardModel


def evaluate(stage: Stage) -> dict[str, Any]:
    """Run the stage; returns its figures. Raises NotEnoughData without held-out prompts."""
    prepare_process(stage)
    settings = EvaluationSettings.model_validate(stage.inputs["settings"])
    tokenizer = AutoTokenizer.from_pretrained(stage.path("parent"), local_files_only=True)
    prompts = _prompts(stage, settings, tokenizer)
    with starting_engine(stage) as engine:
        stage.progress(0.05, "measuring what it costs on plain text while the engine starts")
        models = _load_models(stage)
        figures = _text_figures(stage, models, tokenizer)
        sampled = sample_once(stage, settings, prompts, engine)
    stage.progress(0.6, "scoring the answers")
    parent, candidate = judged(models.reward_model, prompts, sampled, tokenizer)
    rows = answer_rows(prompts, parent, candidate, count=settings.answers_per_policy)
    _write_rows(stage.partial / "answers.jsonl", rows)
    _write_rows(stage.partial / "best_of.jsonl", best_of_rows(prompts, parent, settings.best_of))
    leave_if_asked(stage)
    stage.progress(0.8, "measuring the distance from the anchor")
    return (
        figures
        | row_figures(rows, seed=int(stage.inputs["seed"]))
        | best_of_figures(parent, settings.best_of)
        | _kl_figures(settings, models, prompts, sampled)
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


# --- judging --------------------------------------------------------------------------------


def judged(
    reward_model: RewardModel,
    prompts: Sequence[Prompt],
    sampled: Sampled,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[list[Answer]], list[list[Answer]]]:
    """The parent's and the candidate's answers to each prompt, scored by the reward model.

    Both policies' answers share their prompt in a packed row, which is read once for all of them.
    """
    pairs = list(zip(sampled.parent, sampled.candidate, strict=True))  # per prompt
    rollouts = rollouts_of(prompts, [[*old, *new] for old, new in pairs])
    groups = finished_groups(rollouts, end_token=int(tokenizer.eos_token_id))
    scores = iter(answer_scores(reward_model, groups, token_budget=_TOKEN_BUDGET).tolist())
    parent, candidate = [], []
    for old, new in pairs:
        parent.append([_answer(sample, next(scores), tokenizer) for sample in old])
        candidate.append([_answer(sample, next(scores), tokenizer) for sample in new])
    return parent, candidate


def _answer(sample: Sample, score: float, tokenizer: PreTrainedTokenizerBase) -> Answer:
    text = str(tokenizer.decode(sample.token_ids, skip_special_tokens=True))
    return Answer(text, sample.token_ids, sample.finish_reason, score, is_broken(text))


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- figures --------------------------------------------------------------------------------


def _load_models(stage: Stage) -> Models:
    return Models(
        candidate=on_device(load_policy(stage.path("candidate")).requires_grad_(False)),
        anchor=on_device(load_policy(stage.path("anchor")).requires_grad_(False)),
        reward_model=on_device(load_reward_model(stage.path("reward_model")).requires_grad_(False)),
    )


def _text_figures(
    stage: Stage, models: Models, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What the candidate costs on plain text beside the anchor, nats per token."""
    text = retention_text(encoder(tokenizer), token_budget=_TOKEN_BUDGET)
    candidate = text_loss(models.candidate, text)
    leave_if_asked(stage)
    anchor = text_loss(models.anchor, text)
    leave_if_asked(stage)
    return {
        "pretraining_loss": candidate,
        "pretraining_loss_anchor": anchor,
        "pretraining_loss_change": candidate - anchor,
        "pretraining_tokens": text.num_tokens,
    }


def _kl_figures(
    settings: EvaluationSettings, models: Models, prompts: Sequence[Prompt], sampled: Sampled
) -> dict[str, Any]:
    """KL from the anchor on the candidate's answers, under the distribution they came from."""
    rollouts = rollouts_of(prompts[:KL_PROMPTS], sampled.candidate[:KL_PROMPTS])
    order = range(len(rollouts.groups))
    parts = layouts(rollouts, minibatches=1, token_budget=_TOKEN_BUDGET, order=order)
    temperature = settings.temperature or 1.0
    logprobs, ref_logprobs = (
        policy_logprobs(model, rollouts, parts, temperature=temperature)[0]
        for model in (models.candidate, models.anchor)
    )
    kl: Kl = kl_estimates(logprobs, ref_logprobs, rollouts.mask)
    return {
        "kl_to_anchor": kl.per_answer,
        "kl_per_token": kl.per_token,
        "kl_k3_per_token": kl.k3_per_token,
        "kl_answers": rollouts.num_answers,
    }


if __name__ == "__main__":
    run_stage(evaluate)
