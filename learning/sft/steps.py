"""Supervised fine-tuning as arithmetic: batches, the loss, residual dropout.

A demonstration is a group with one answer, and pretraining text is one whose answer is everything
but its first token: so both share the losses and rows of learning/training/packing.py. Knows no
folder and no engine; learning/sft/train.py runs it.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learning.policy.experience import row_logprobs
from learning.training.dealing import own_rows
from learning.training.distributed import sum_over_processes, through
from learning.training.models import layers_of
from learning.training.packing import Group

_ATTENTION = ("self_attn", "attention", "attn")
_FEED_FORWARD = ("mlp", "feed_forward")
"""What transformers calls the two branches of a layer whose outputs are added to the residual."""


def with_pretraining_text(
    demonstrations: Sequence[Group], text: Sequence[Sequence[int]], *, share: float
) -> list[Group]:
    """Demonstrations and so many sequences of plain text that these are `share` of all examples.

    The paper's PPO initial model mixes in 10 % (appendix C.3). Fewer where `text` has not as many.
    """
    wanted = round(len(demonstrations) * share / (1.0 - share))
    return [*demonstrations, *(Group(prompt=ids[:1], answers=[ids[1:]]) for ids in text[:wanted])]


def batches(
    examples: Sequence[Group], *, epochs: int, batch_size: int, seed: int
) -> list[tuple[int, ...]]:
    """Places of the examples of each optimiser step: every epoch has all of them, shuffled anew."""
    planned: list[tuple[int, ...]] = []
    for epoch in range(epochs):
        order = list(range(len(examples)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        planned += [tuple(order[at : at + batch_size]) for at in range(0, len(order), batch_size)]
    return planned


def add_gradient(model: PreTrainedModel, examples: Sequence[Group], *, token_budget: int) -> float:
    """Add the gradient of the mean loss over all answer tokens of a batch; returns that loss.

    Prompts are not learned. The divisor is the count of the whole batch, so that packing into rows
    of another size changes nothing, and neither does sharing them with other processes.
    """
    tokens = _answer_tokens(examples)
    total = 0.0
    for row, places in own_rows(examples, token_budget=token_budget):
        logprobs, _ = through(model, row_logprobs, row, temperature=1.0)  # (answer tokens,)
        loss = -float(bool(places)) * logprobs.sum() / tokens
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return sum_over_processes(total)


@torch.no_grad()
def mean_loss(model: PreTrainedModel, examples: Sequence[Group], *, token_budget: int) -> float:
    """The same loss over all examples, nats per answer token, without learning."""
    total = 0.0
    for row, places in own_rows(examples, token_budget=token_budget):
        logprobs, _ = through(model, row_logprobs, row, temperature=1.0)  # (answer tokens,)
        total += float(logprobs.sum()) if places else 0.0
    return -sum_over_processes(total) / _answer_tokens(examples)


def _answer_tokens(examples: Sequence[Group]) -> int:
    return sum(len(answer) for example in examples for answer in example.answers)


@contextmanager
def residual_dropout(model: PreTrainedModel, share: float) -> Iterator[None]:
    """Drop `share` of what each layer's attention and feed-forward add to the residual stream.

    The paper trains its SFT models with .2 (appendix C.1); models of today have no such layer, so
    it is put behind the two branches and taken away at the end. Raises ValueError for a model
    whose layers have other branches.
    """
    hooks = []
    if share > 0.0:
        for layer in layers_of(model):
            for branch in (_branch(layer, _ATTENTION), _branch(layer, _FEED_FORWARD)):
                hooks.append(branch.register_forward_hook(_dropping(share)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _dropping(share: float) -> Any:
    def drop(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], share), *output[1:])
        return nn.functional.dropout(cast(Tensor, output), share)

    return drop


def _branch(layer: nn.Module, names: Sequence[str]) -> nn.Module:
    for name in names:
        if isinstance(found := getattr(layer, name, None), nn.Module):
            return found
    raise ValueError(
        f"{type(layer).__name__} has none of {', '.join(names)}: set "
        "learning.sft.residual_dropout to 0 for this model"
    )
