"""The stage `evaluate`: the exported candidate beside its parent, on held-out users' prompts.

    python -m learning.evaluation.evaluate RUN/evaluate

Both are served by the learner's own engine, from their folders, so what is judged is what would
go live. The answers (`out/answers.jsonl`) go to held-out raters and the gate; the figures are what
can be known without them; regression suites are answered by parent and candidate on the way. The
reward model scored what it also trained: it may rank candidates, the gate says when it stands in
for people. What needs no answers is measured while the engine starts, which takes half a minute of
one core.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from core.engine.client import Sample
from core.hyperparameters import EvaluationSettings
from learning.evaluation.answer_rows import (
    Answer,
    answer_rows,
    best_of_figures,
    best_of_rows,
    row_figures,
)
from learning.evaluation.regression_lm_eval import task_marks
from learning.evaluation.regression_scoring import Exam, chosen, exam_of, marks, regressions
from learning.evaluation.regression_suites import read_suites
from learning.evaluation.samples import (
    Sampled,
    anchor_is_parent,
    leave_if_asked,
    sample_once,
    starting_engine,
)
from learning.gate.regressions import Regression, compared
from learning.gate.toxicity import toxicity_rise
from learning.policy.diagnostics import Kl, kl_estimates
from learning.policy.experience import answer_scores, on_device, policy_logprobs
from learning.policy.setup import encoder, prepare_process, retention_text
from learning.policy.updates import text_loss
from learning.training.heldout_prompts import choose_prompts
from learning.training.learner_engine import context_tokens
from learning.training.models import RewardModel, load_policy, load_reward_model
from learning.training.rollouts import (
    MAX_PROMPT_TOKENS,
    Prompt,
    finished_groups,
    layouts,
    read_prompts,
    rollouts_of,
)
from learning.training.stage import NotEnoughData, Stage
from learning.training.stage import run as run_stage
from learning.training.text_quality import is_broken

KL_PROMPTS = 32
"""How many prompts' answers the KL is measured on: up to 2,500 tokens, good to .01 nats a token."""
_TOKEN_BUDGET = 1024


@dataclass(frozen=True, slots=True)
class Models:
    """What measures: each is read from its folder once."""

    candidate: PreTrainedModel
    parent: PreTrainedModel
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
        exam = exam_of(read_suites(_suites(stage)), tokenizer)
        picked = _picked(stage, models, exam)
        sampled = sample_once(stage, settings, prompts, engine, exam.questions)
    stage.progress(0.6, "scoring the answers")
    parent, candidate, anchor = judged(models.reward_model, prompts, sampled, tokenizer)
    rows = answer_rows(prompts, parent, candidate, count=settings.answers_per_policy, anchor=anchor)
    _write_rows(stage.partial / "answers.jsonl", rows)
    _write_rows(stage.partial / "best_of.jsonl", best_of_rows(prompts, parent, settings.best_of))
    leave_if_asked(stage)
    stage.progress(0.8, "measuring the distance from the anchor")
    return (
        figures
        | row_figures(rows, seed=int(stage.inputs["seed"]))
        | {"toxicity": asdict(toxicity_rise(rows))}
        | best_of_figures(parent, settings.best_of)
        | _kl_figures(settings, models, prompts, sampled)
        | {"regressions": _regressions(stage, exam, picked, sampled, tokenizer)}
        | {"engine_checksums": sampled.checksums}
    )


def _prompts(
    stage: Stage, settings: EvaluationSettings, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    room = context_tokens(stage.path("parent")) - settings.max_new_tokens
    held_out = read_prompts(
        stage.path("snapshot"), "validation", tokenizer, longest=min(MAX_PROMPT_TOKENS, room)
    )
    if not held_out:
        raise NotEnoughData("there are no prompts of held-out users to evaluate on")
    attempt = int(stage.inputs.get("attempt", 1))
    key = str(stage.inputs["seed"])
    return choose_prompts(held_out, count=settings.prompts, key=key, attempt=attempt)


# --- judging --------------------------------------------------------------------------------


def judged(
    reward_model: RewardModel,
    prompts: Sequence[Prompt],
    sampled: Sampled,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[list[Answer]], list[list[Answer]], list[list[Answer]]]:
    """The parent's, the candidate's and the anchor's answers to each prompt, scored.

    All policies' answers share their prompt in a packed row, which is read once for all of them.
    The anchor's are empty where it is the parent.
    """
    oldest = sampled.anchor or [[] for _ in prompts]
    said = list(zip(sampled.parent, sampled.candidate, oldest, strict=True))  # per prompt
    rollouts = rollouts_of(prompts, [[s for part in parts for s in part] for parts in said])
    groups = finished_groups(rollouts, end_token=int(tokenizer.eos_token_id))
    scores = iter(answer_scores(reward_model, groups, token_budget=_TOKEN_BUDGET).tolist())
    scored = [
        [[_answer(sample, next(scores), tokenizer) for sample in part] for part in parts]
        for parts in said
    ]
    parent, candidate, anchor = ([parts[i] for parts in scored] for i in range(3))
    return parent, candidate, anchor if sampled.anchor else []


def _answer(sample: Sample, score: float, tokenizer: PreTrainedTokenizerBase) -> Answer:
    text = str(tokenizer.decode(sample.token_ids, skip_special_tokens=True))
    return Answer(text, sample.token_ids, sample.finish_reason, score, is_broken(text))


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- figures --------------------------------------------------------------------------------


def _load_models(stage: Stage) -> Models:
    anchor = on_device(load_policy(stage.path("anchor")).requires_grad_(False))
    parent = anchor
    if not anchor_is_parent(stage):
        parent = on_device(load_policy(stage.path("parent")).requires_grad_(False))
    return Models(
        candidate=on_device(load_policy(stage.path("candidate")).requires_grad_(False)),
        parent=parent,
        anchor=anchor,
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
        "pretraining_loss_share": (candidate - anchor) / anchor,
        "pretraining_tokens": text.num_tokens,
    }


def _suites(stage: Stage) -> list[Path]:
    return [Path(path) for path in stage.inputs.get("gate", {}).get("suites", ())]


def _picked(stage: Stage, models: Models, exam: Exam) -> dict[str, list[int]]:
    """What both policies choose where an item has choices."""
    picked = {}
    for name, model in (("parent", models.parent), ("candidate", models.candidate)):
        picked[name] = chosen(model, exam.choices, token_budget=_TOKEN_BUDGET)
        leave_if_asked(stage)
    return picked


def _regressions(
    stage: Stage,
    exam: Exam,
    picked: dict[str, list[int]],
    sampled: Sampled,
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, Any]]:
    """Each suite, by parent and candidate; which items were right is written down beside."""
    marked = {
        name: marks(exam, theirs, sampled.greedy[name], tokenizer)
        for name, theirs in picked.items()
    }
    both = zip(exam.items, marked["parent"], marked["candidate"], strict=True)
    _write_rows(
        stage.partial / "suites.jsonl",
        [{"prompt": item.content, "parent": was, "candidate": now} for item, was, now in both],
    )
    alpha = float(stage.inputs.get("gate", {}).get("regression_alpha", 0.05))
    found = [*regressions(exam, marked, alpha=alpha), *_lm_eval(stage, alpha=alpha)]
    return [asdict(one) for one in found]


def _lm_eval(stage: Stage, *, alpha: float) -> list[Regression]:
    """The comparisons on lm-eval's tasks, where some are asked for."""
    gate = stage.inputs.get("gate", {})
    tasks = gate.get("lm_eval_tasks", ())
    if not tasks:
        return []
    marked = {}
    for name in ("parent", "candidate"):
        stage.progress(0.9, f"lm-eval on the {name}")
        out = stage.partial / "lm-eval" / name
        limit = int(gate["lm_eval_limit"])
        marked[name] = task_marks(stage.path(name), tasks, limit=limit, out=out)
        leave_if_asked(stage)
    return [
        compared(f"lm-eval {task}", was, marked["candidate"][task], alpha=alpha)
        for task, was in marked["parent"].items()
    ]


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
