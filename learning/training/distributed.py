"""One process or many: what the processes of a stage are to one another, and how they share work.

torchrun starts them and says in the environment who is who; without it every function here is that
of a process alone. Weights are sharded by FSDP2: each process keeps its part of every fp32 weight,
and layers are put together in bf16 when they compute. Knows no losses and no folders; a stage asks
for its share of the rows, and learning/training/checkpoints.py keeps what it learned.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import MethodType
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as group
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from learning.training.packing import Group, Packed, pack

Model = TypeVar("Model", bound=nn.Module)
Result = TypeVar("Result")
P = ParamSpec("P")
_PATIENCE = timedelta(hours=2)
"""How long processes wait for one of them that judges, or saves, for all."""
_NOTHING = Group(prompt=[0], answers=[[0]])
"""What a process without a row of its own computes, so that it takes part in what the others do."""


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, and part at the end; nothing where there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # cores are shared with the others
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    group.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        group.destroy_process_group()


def num_processes() -> int:
    """Of the stage, on all nodes."""
    return group.get_world_size() if group.is_initialized() else 1


def processes_here() -> int:
    """Of the stage, on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if group.is_initialized() else 1


def rank() -> int:
    """Which of the processes this is, from 0."""
    return group.get_rank() if group.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and judges."""
    return rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if num_processes() > 1:
        group.barrier()


def sum_over_processes(number: float) -> float:
    """The sum of every process's number, the same in all."""
    return _agreed(number, group.ReduceOp.SUM)


def any_process(flag: bool) -> bool:
    """Whether it is so in at least one."""
    return _agreed(float(flag), group.ReduceOp.MAX) > 0.0


def from_first(number: float) -> float:
    """The first process's number, in all."""
    if num_processes() == 1:
        return number
    told = torch.tensor(number, dtype=torch.float64)
    group.broadcast(told, src=0)
    return float(told)


# --- weights --------------------------------------------------------------------------------


def shard(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Split the model's weights over the processes, in place; nothing where there is one.

    Weights become fp32, their own masters (learning/training/optimizer.py), and are rounded to bf16
    for each layer that computes; gradients come back as sums over the processes, in fp32. From now
    on the model computes only within `through`.
    """
    if num_processes() == 1:
        return
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (num_processes(),))
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*layers, model):
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.float()
        sharded = fully_shard(module, mesh=mesh, mp_policy=precision)
        sharded.set_gradient_divide_factor(1.0)  # losses are divided by counts over all processes
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    vars(model)["through"] = MethodType(_call, model)
    register_fsdp_forward_method(model, "through")


def through(
    model: Model,
    compute: Callable[Concatenate[Model, P], Result],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    """`compute(model, ...)` with the model's weights in place; all processes have to call it."""
    if not isinstance(model, FSDPModule):
        return compute(model, *args, **kwargs)
    result: Result = model.through(compute, *args, **kwargs)
    if not torch.is_grad_enabled():  # else the backward pass does it; an update would not be seen
        model.reshard()
    return result


@torch.no_grad()
def gathered(model: Model, fresh: Callable[[], Model]) -> Model | None:
    """The whole model, in the first process: `fresh` makes one that gets the weights.

    None in the others. The model itself where there is one process.
    """
    if not isinstance(model, FSDPModule):
        return model
    whole = fresh() if is_first() else None
    places = dict(whole.named_parameters()) if whole is not None else {}
    for name, parameter in model.named_parameters():
        weights = _full(parameter)
        if whole is not None:
            places[name].copy_(weights)
    return whole


# --- rows -----------------------------------------------------------------------------------


def own_rows(groups: Sequence[Group], *, token_budget: int) -> list[tuple[Packed, float]]:
    """This process's rows of an optimiser step, each with the weight of its loss.

    Groups are dealt so that all processes have about as many tokens. Every process gets as many
    rows, since they compute a layer together: those that only fill up have the weight 0, all
    others 1.
    """
    sizes = [one.num_tokens for one in groups]
    own = [groups[place] for place in dealt(sizes, num_processes())[rank()]]
    rows = [(row, 1.0) for row in pack(own, token_budget=token_budget)]
    missing = int(_agreed(len(rows), group.ReduceOp.MAX)) - len(rows)
    return rows + [(row, 0.0) for row in pack([_NOTHING], token_budget=token_budget)] * missing


def dealt(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Places of `sizes` for each of so many hands: the largest first, to who has least so far."""
    held: list[list[int]] = [[] for _ in range(hands)]
    sums = [0] * hands
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        hand = sums.index(min(sums))
        held[hand].append(place)
        sums[hand] += sizes[place]
    return [sorted(places) for places in held]


def _agreed(number: float, how: group.ReduceOp.RedOpType) -> float:
    if num_processes() == 1:
        return number
    told = torch.tensor(number, dtype=torch.float64)
    group.all_reduce(told, op=how)
    return float(told)


def _call(model: nn.Module, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return compute(model, *args, **kwargs)


def _full(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
