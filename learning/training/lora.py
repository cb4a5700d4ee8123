"""LoRA for what does not fit: weights stay as they are, and low-rank adapters beside them learn.

The adapters are peft's. This file puts them into a model, looks past them, so that the same model
is also the one it was before, and adds them up into an ordinary model: engines, releases and the
gate meet no adapters. Knows no losses and no optimiser; learning/policy/run.py calls.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.errors import InstructLoopError
from learning.training.distributed import is_first, whole_tensor
from learning.training.models import layers_of

Model = TypeVar("Model", bound=nn.Module)
_NAME = "default"
_A, _B, _COPIES = "lora_A", "lora_B", "modules_to_save"


class NoSuchLayer(InstructLoopError):
    """The model has no linear layers of the names that are to get adapters."""


def add_adapters(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] = (),
    seed: int,
    frozen_share: float = 0.0,
    heads: Sequence[str] = (),
) -> None:
    """Let adapters learn in place of the model's weights; they begin as nothing at all.

    A linear layer's output W x becomes W x + alpha / rank * B A x, with A (rank, inputs) drawn from
    the seed and B (outputs, rank) zero, in the model's precision. Layers whose names end in one of
    `targets` get them, all where none is named, but those of the bottom `frozen_share` of the body,
    of which the last is never frozen. Modules `heads` learn whole, in copies. Raises NoSuchLayer.
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds, for those who ask for it

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # it divides by the rank, whatever it is
        target_modules=list(_chosen(linear_layers(model, frozen_share), targets)),
        modules_to_save=list(heads) or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    model.train(False)


def linear_layers(model: PreTrainedModel, frozen_share: float = 0.0) -> dict[str, nn.Linear]:
    """By name: those of attention and feed-forward, above the frozen bottom."""
    layers = list(layers_of(model))
    learning = layers[min(round(frozen_share * len(layers)), len(layers) - 1) :]
    inside = {id(module) for layer in learning for module in layer.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear)
    }


def adapter_weights(model: PreTrainedModel, *, rank: int) -> int:
    """How many weights the adapters of all linear layers would have."""
    layers = linear_layers(model).values()
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def _chosen(layers: Mapping[str, nn.Linear], targets: Sequence[str]) -> list[str]:
    """The names of those that end in a target."""
    ends = {target: [n for n in layers if f".{n}".endswith(f".{target}")] for target in targets}
    missing = sorted(target for target, names in ends.items() if not names)
    if missing or not layers:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in layers})) or "none"
        raise NoSuchLayer(
            f"LoRA finds no linear layers {', '.join(missing)} in this model. There are: {there}"
        )
    return sorted({name for names in ends.values() for name in names} or layers)


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters learn in this model in place of its weights."""
    return bool(_adapted(model))


@contextmanager
def without_adapters(model: Model) -> Iterator[Model]:
    """The model as it was before it got adapters and heads learned; others stay as they are.

    For forward passes without gradients.
    """
    switches: list[Any] = list(_with_part(model, _A, _COPIES).values())
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for switch in switches:
        switch.enable_adapters(False)
    for parameter in learning:
        parameter.requires_grad_(True)  # FSDP asks at the first pass whether it will learn
    try:
        yield model
    finally:
        for switch in switches:
            switch.enable_adapters(True)


def adapters(
    model: PreTrainedModel, instead: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """All adapters by name, whole and in the model's precision, or other weights of theirs.

    With many processes each gets all; all have to call it.
    """
    return {
        name: whole_tensor((instead or {}).get(name, parameter)).to("cpu", model.dtype)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def merged(
    model: PreTrainedModel,
    fresh: Callable[[], PreTrainedModel],
    *,
    instead: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel | None:
    """An ordinary model with W + alpha / rank * B A for each W, in the first process; None in the
    others.

    `fresh` makes the model as it was before it got adapters, and that gets them added, in fp32; so
    the model that learns stays as it is. `instead` are other weights of the adapters, by name.
    """
    given = adapters(model, instead)
    if not is_first():
        return None
    whole = fresh()
    for name, layer in _adapted(model).items():
        a, b = (given[f"{name}.{part}.{_NAME}.weight"].float() for part in (_A, _B))
        weight = whole.get_parameter(f"{name}.weight")  # (outputs, inputs)
        weight.copy_(torch.addmm(weight.float(), b, a, alpha=layer.scaling[_NAME]))
    return whole


def _adapted(model: nn.Module) -> dict[str, Any]:
    """peft's layers by the names of those that they took the place of."""
    return _with_part(model, _A)


def _with_part(model: nn.Module, *parts: str) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if any(part in parts for part, _ in module.named_children())
    }
