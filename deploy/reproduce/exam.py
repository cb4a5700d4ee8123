"""The step `exam`: what each policy's weights find likely, without an engine.

    python -m deploy.reproduce.exam SEED/exam

Truthfulness and bundled tasks are choices by mean log-probability per token; bias is the entropy
over two continuations by their whole probability (the paper, appendix D); forgetting is the loss on
prose that is in no training text; tasks of lm-eval are run where they were asked for. The reward
models score answers to the test prompts here; deploy/reproduce/scoring.py compares that with what
raters say, and makes intervals of all that is left in `out/exam.json`, values with units.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from deploy.reproduce.plan import COMPARED
from deploy.reproduce.prompts import prompt_sets
from deploy.reproduce.raters import people
from deploy.reproduce.sampling import chat, leave_if_asked, read_json
from deploy.reproduce.sizes import Size
from deploy.reproduce.tasks import PROMPT_TYPES, BiasPair, bias_pairs, suites, truthfulness, typed
from learning.evaluation.regression_lm_eval import task_marks
from learning.evaluation.regression_questions import choice_groups
from learning.evaluation.regression_scoring import choice_logprobs, chosen
from learning.evaluation.regression_suites import Suite
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
Scores = list[list[float]]
"""Of the answers to each test prompt"""


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
) -> dict[str, Scores]:
    """How the model scores the answers of COMPARED to the prompts that nobody learned from."""
    form = people(stage.inputs["judge"]).judges[0].form
    test = prompt_sets(Size(**stage.inputs["size"]), form, seed=int(stage.inputs["seed"])).test
    answers = read_json(stage.path("answers"))
    model = on_device(load_reward_model(folder).requires_grad_(False))
    groups = [
        Group(
            prompt=encode_prompt(chat(prompt.prompt), tokenizer),
            answers=[encode_answer(answers[name]["test"][place], tokenizer) for name in COMPARED],
        )
        for place, prompt in enumerate(test)
    ]
    scores = answer_scores(model, groups, token_budget=_TOKEN_BUDGET)
    return {"scores": scores.view(len(test), len(COMPARED)).tolist()}


if __name__ == "__main__":
    run_stage(exam)
