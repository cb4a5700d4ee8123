"""The step `exam`: what each policy's weights find likely, without an engine.

    python -m deploy.reproduce.exam SEED/exam

Truthfulness and bundled tasks are choices by mean log-probability per token; bias is the entropy
over two continuations by their whole probability (the paper, appendix D); forgetting is the loss on
prose that is in no training text; tasks of lm-eval are run where they were asked for. The reward
models are measured here too, pair by pair. Everything is left as values with units
(`out/exam.json`); deploy/reproduce/scoring.py makes intervals of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from deploy.reproduce.sampling import leave_if_asked, read_json
from deploy.reproduce.sizes import Size
from deploy.reproduce.tasks import PROMPT_TYPES, BiasPair, bias_pairs, suites, truthfulness, typed
from learning.evaluation.regression_lm_eval import task_marks
from learning.evaluation.regression_scoring import choice_logprobs, chosen
from learning.evaluation.regression_suites import Suite, choice_groups
from learning.policy.experience import answer_scores, on_device
from learning.policy.setup import encoder, prepare_process
from learning.policy.updates import ptx_batch, text_loss
from learning.training import pretraining_text
from learning.training.encoding import encode_answer, encode_prompt
from learning.training.models import load_policy, load_reward_model
from learning.training.packing import Group
from learning.training.stage import Stage, write_json
from learning.training.stage import run as run_stage

_TOKEN_BUDGET = 1024
_PIECE_TOKENS = 128
_PIECE_CONTEXT = 16
Values = dict[str, list[Any]]
"""`units`, and as many `values`"""


def exam(stage: Stage) -> dict[str, Any]:
    """Run the step; returns its figures. Raises Interrupted, NotEnoughData from lm-eval."""
    prepare_process(stage)
    tokenizer = AutoTokenizer.from_pretrained(stage.path("model"), local_files_only=True)
    policies: dict[str, str] = stage.inputs["policies"]
    models: dict[str, str] = stage.inputs["reward_models"]
    (stage.folder / "parts").mkdir(exist_ok=True)
    for number, (name, folder) in enumerate((policies | models).items()):
        if _part(stage, name).exists():
            continue
        stage.progress(number / len(policies | models), f"measuring {name}")
        measure = _policy if name in policies else _reward_model
        write_json(_part(stage, name), measure(stage, Path(folder), tokenizer))
        leave_if_asked(stage)
    found = {name: read_json(_part(stage, name)) for name in policies | models}
    write_json(stage.partial / "exam.json", found)
    return {"policies": len(policies)}


def _part(stage: Stage, name: str) -> Path:
    return stage.folder / "parts" / f"exam-{name}.json"


def _policy(stage: Stage, folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Values]:
    """Everything that is measured on one policy's weights."""
    size = Size(**stage.inputs["size"])
    model = on_device(load_policy(folder).requires_grad_(False))
    found = {"truthfulness": _marks(model, [truthfulness(size.exam_items)], tokenizer)}
    found["tasks"] = _marks(model, suites(size.exam_items), tokenizer)
    pairs = bias_pairs(size.exam_items)
    for kind in PROMPT_TYPES:
        found[f"bias {kind}"] = bias_entropy(model, pairs, kind, tokenizer)
    found["loss on prose"] = _prose(model, tokenizer, pieces=size.retention_pieces)
    if stage.inputs["lm_eval"]:
        found["public tasks"] = _lm_eval(stage, folder)
    return found


def _marks(
    model: PreTrainedModel, asked: Sequence[Suite], tokenizer: PreTrainedTokenizerBase
) -> Values:
    """Items with choices: 1 where the right one is most likely per token."""
    items = [(f"{s.name}-{i}", item) for s in asked for i, item in enumerate(s.items)]
    with_choices = [(unit, item) for unit, item in items if item.choices]
    groups = choice_groups([item for _, item in with_choices], tokenizer)
    picked = chosen(model, groups, token_budget=_TOKEN_BUDGET)
    right = [
        float(place == item.answer) for place, (_, item) in zip(picked, with_choices, strict=True)
    ]
    return {"units": [unit for unit, _ in with_choices], "values": right}


def bias_entropy(
    model: PreTrainedModel,
    pairs: Sequence[BiasPair],
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
) -> Values:
    """For each pair the entropy, bits, of which continuation comes: 1 is no preference."""
    groups = [
        Group(
            prompt=tokenizer(typed(kind, pair.prompt))["input_ids"],
            answers=[
                tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
                for choice in pair.choices
            ],
        )
        for pair in pairs
    ]
    found = choice_logprobs(model, groups, token_budget=_TOKEN_BUDGET)
    return {
        "units": [f"bias-{place}" for place in range(len(pairs))],
        "values": [entropy_bits(logprobs) for logprobs, _ in found],
    }


def entropy_bits(logprobs: Tensor) -> float:
    """H = - sum P log2 P with P proportional to the probability of each choice, (choices,)."""
    shares = torch.softmax(logprobs.double(), dim=0)
    return float(torch.special.entr(shares).sum() / torch.log(torch.tensor(2.0)))


def _prose(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, pieces: int) -> Values:
    """The loss on each piece of prose that is in no mix, nats per token."""
    cut = pretraining_text.sequences(
        pretraining_text.held_out_texts(), encoder(tokenizer), length=_PIECE_TOKENS
    )
    drawn = pretraining_text.draw(cut, count=pieces, seed=0)
    losses = [
        text_loss(model, ptx_batch([ids], token_budget=_TOKEN_BUDGET, context=_PIECE_CONTEXT))
        for ids in drawn
    ]
    return {"units": [f"prose-{place}" for place in range(len(drawn))], "values": losses}


def _lm_eval(stage: Stage, folder: Path) -> Values:
    """Items of lm-eval's tasks, right or wrong."""
    marked = task_marks(
        folder,
        stage.inputs["lm_eval"],
        limit=int(stage.inputs["lm_eval_limit"]),
        out=stage.folder / "parts" / "lm-eval",
    )
    items = [
        (f"{task}-{i}", right) for task, all_ in marked.items() for i, right in enumerate(all_)
    ]
    return {"units": [unit for unit, _ in items], "values": [float(right) for _, right in items]}


# --- reward models --------------------------------------------------------------------------


def _reward_model(
    stage: Stage, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Values]:
    """Pair by pair whether the model orders unseen answers as a rater of each pool did."""
    rows = read_json(stage.path("validation"))
    model = on_device(load_reward_model(folder).requires_grad_(False))
    groups = [
        Group(
            prompt=encode_prompt(row["messages"], tokenizer),
            answers=[encode_answer(text, tokenizer) for text in row["texts"]],
        )
        for row in rows
    ]
    scores = iter(answer_scores(model, groups, token_budget=_TOKEN_BUDGET).tolist())
    given = [[next(scores) for _ in row["texts"]] for row in rows]
    return {
        pool: pair_marks(
            [row["user"] for row in rows], given, [row["orders"][pool] for row in rows]
        )
        for pool in ("training", "heldout")
    }


def pair_marks(
    users: Sequence[str],
    scores: Sequence[Sequence[float]],
    orders: Sequence[Sequence[Sequence[int]]],
) -> Values:
    """For each untied pair 1 where the better answer scores higher, 1/2 where both score alike."""
    units, values = [], []
    for user, given, order in zip(users, scores, orders, strict=True):
        for place, tie in enumerate(order):
            for better in tie:
                for worse in (answer for later in order[place + 1 :] for answer in later):
                    units.append(user)
                    values.append(_point(given[better], given[worse]))
    return {"units": units, "values": values}


def _point(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)


if __name__ == "__main__":
    run_stage(exam)
