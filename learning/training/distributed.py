"""One process or many: what the processes of a stage are to one another, and how they share work.

torchrun starts them and says in the environment who is who; without it every function here is that
of a process alone. Weights are sharded by FSDP2: each process keeps its part of every fp32 weight,
and layers are put together in bf16 when they compute. Knows no losses, no rows and no folders;
learning/training/dealing.py gives each process its share of the rows, and
learning/training/checkpoints.py keeps what was learned.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
from torch.distributed.tensor import DTensor, distribute_tensor

from core.errors import InstructLoopError

Item = TypeVar("Item")
Model = TypeVar("Model", bound=nn.Module)
Result = TypeVar("Result")
P = ParamSpec("P")
_PATIENCE = timedelta(hours=2)
"""How long processes wait for one of them that judges, or saves, for all."""
_choice: ContextVar[str] = ContextVar("learning.device", default="auto")


class NoSuchDevice(InstructLoopError):
    """`learning.device` asks for a GPU and there is none."""


def compute_on(choice: str) -> None:
    """Where this process computes from now on: `auto` is the GPU where there is one.

    Raises NoSuchDevice.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise NoSuchDevice("learning.device is cuda, and no GPU is to be seen")
    _choice.set(choice)


def device() -> torch.device:
    """Where models of this process belong."""
    on_gpu = _choice.get() != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, and part at the end; nothing where there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if "OMP_NUM_THREADS" in os.environ:  # cores are shared with the others
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
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
    return largest(float(flag)) > 0.0


def largest(number: float) -> float:
    """The largest of every process's number, the same in all."""
    return _agreed(number, group.ReduceOp.MAX)


def from_first(number: float) -> float:
    """The first process's number, in all."""
    return told_by_first(lambda: number)


def told_by_first(say: Callable[[], Result]) -> Result:
    """What the first process says, in all; the others are not asked."""
    if num_processes() == 1:
        return say()
    said: list[Any] = [say() if is_first() else None]
    group.broadcast_object_list(said, src=0)
    told: Result = said[0]
    return told


def of_all(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, those of the first in front, the same in all."""
    if num_processes() == 1:
        return list(items)
    held: list[Any] = [None] * num_processes()
    group.all_gather_object(held, list(items))
    return [item for part in held for item in part]


# --- weights --------------------------------------------------------------------------------


def shard(
    model: nn.Module, layers: Iterable[nn.Module], *, exact: Iterable[nn.Module] = ()
) -> None:
    """Split the model's weights over the processes, in place; nothing where there is one.

    Weights that learn become fp32, their own masters (learning/training/optimizer.py), and are
    rounded to bf16 for each layer that computes, but in the modules `exact`, which have to be
    called as such; gradients come back as sums over the processes, in fp32. From now on the model
    computes only within `through`.
    """
    if num_processes() == 1:
        return
    mesh = init_device_mesh(device().type, (num_processes(),))
    rounded = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    as_it_is = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    parts = [(module, as_it_is) for module in exact]
    parts += [(module, rounded) for module in (*layers, model)]
    for module, precision in parts:
        for parameter in module.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
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
def gathered(
    model: Model, fresh: Callable[[], Model], *, instead: Mapping[str, Tensor] | None = None
) -> Model | None:
    """The whole model, in the first process: `fresh` makes one that gets the weights.

    None in the others. The model itself where there is one process. `instead` has other weights,
    by name, shared among the processes as the model's own.
    """
    if not isinstance(model, FSDPModule):
        return model
    whole = fresh() if is_first() else None
    places = dict(whole.named_parameters()) if whole is not None else {}
    for name, parameter in model.named_parameters():
        weights = whole_tensor((instead or {}).get(name, parameter))
        if whole is not None:
            places[name].copy_(weights)
    return whole


@torch.no_grad()
def put(whole: Tensor, into: Tensor) -> None:
    """Write a tensor that every process has into one of which each may keep a part."""
    if isinstance(into, DTensor):
        at_home = whole.to(into.device, into.dtype)
        whole = distribute_tensor(at_home, into.device_mesh, into.placements)
    into.copy_(whole)


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may keep a part; all processes have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process keeps of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up over all processes the gradients of weights that each of them has whole."""
    if num_processes() == 1:
        return
    for parameter in parameters:
        if any_process(parameter.grad is not None):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            group.all_reduce(parameter.grad)


def _agreed(number: float, how: group.ReduceOp.RedOpType) -> float:
    if num_processes() == 1:
        return number
    told = torch.tensor(number, dtype=torch.float64)
    group.all_reduce(told, op=how)
    return float(told)


def _call(model: nn.Module, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return compute(model, *args, **kwargs)
