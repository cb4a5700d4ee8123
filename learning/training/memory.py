"""Does a stage fit into this machine? Said before it starts, and compared with what it took.

What a backward pass keeps is counted on a short row of the very model, not guessed from its shape,
and scaled to the token budget; what Adam will hold follows from the weights that learn. Knows no
losses; the stages ask once their models are loaded, say what they need, and report the peak at
their end.
"""

import ctypes
import dataclasses
import gc
import logging
import math
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.errors import InstructLoopError
from learning.training.distributed import is_first, largest, num_processes, processes_here
from learning.training.packing import Group, attend, pack

_log = logging.getLogger(__name__)
GIB = 1 << 30
STATE_BYTES = 12
"""For each weight that learns: master and two moments in fp32."""
GRADIENT_BYTES = 4
"""For each weight of the model that makes a step: its gradient in fp32."""
LORA_RANK = 16
"""Of the adapters that are offered where all weights do not fit."""
LOGIT_BYTES = 12
"""For each token of a chunk and word of the vocabulary: logits, and their softmax, in fp32."""
_SMALLER = "take a smaller model, or freeze more of its layers"
_PAGE_BYTES = 4096
_PROBE_TOKENS = 64
_SMALLEST_BUDGET = 64
_SPARE = 1.1
"""What allocators and libraries take on top."""


class NotEnoughMemory(InstructLoopError):
    """The stage would not fit; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a stage will take at its peak, in bytes."""

    held: int
    """In use already, models included."""
    optimiser: int
    """Of Adam, the gradients and copies of the weights, still to come."""
    per_token: float
    """Kept for the backward pass, for each token of a row."""
    logits: int
    """Of one chunk."""
    token_budget: int
    whole: int = 0
    """Of a whole copy for an engine, which cannot use what was kept for a backward pass before."""
    lora: "Need | None" = None
    """What it would be with LoRA; None where that is on, or no choice."""

    @property
    def total(self) -> int:
        """All of it together, with something to spare."""
        kept = math.ceil(self.per_token * self.token_budget)
        return self.held + math.ceil(_SPARE * (self.optimiser + self.whole + kept + self.logits))

    def largest_budget(self, available: int) -> int:
        """The token budget that fits into so many bytes; 0 or less where none does."""
        room = (available - self.held) / _SPARE - self.optimiser - self.whole - self.logits
        return math.floor(room / self.per_token)


def need_of(
    models: Iterable[nn.Module],
    learning: PreTrainedModel,
    *,
    token_budget: int,
    chunk: int = 256,
    processes: int = 1,
    copy_bytes: int = 0,
    beside: Iterable[nn.Module] = (),
    scratch: int = 0,
) -> Need:
    """What training takes: `models` are all that learn, `learning` is the largest of them; those
    `beside` only compute, and `scratch` bytes go to what libraries keep for themselves on a CPU.

    `chunk` tokens are held as logits at a time, 0 where there are none; `copy_bytes` for each
    weight of `learning` go into a copy that is kept, the best so far or the average. With several
    processes it is what each takes: what the optimiser holds is divided among them, and the whole
    models, which are counted before that, stand for the layers put together.
    """
    models = list(models)
    _read_weights([*models, *beside])
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in models]
    copied = sum(p.numel() for p in learning.parameters() if p.requires_grad)
    state = STATE_BYTES * sum(trained) + GRADIENT_BYTES * max(trained) + copy_bytes * copied
    return Need(
        held=held_bytes(learning.device) + (scratch if learning.device.type == "cpu" else 0),
        optimiser=math.ceil(state / processes),
        per_token=activation_bytes_per_token(learning),
        logits=LOGIT_BYTES * chunk * int(learning.config.vocab_size),
        token_budget=token_budget,
    )


@torch.no_grad()
def _read_weights(models: Iterable[nn.Module]) -> None:
    """Something of each page of them: pages of a file are not held until they are read."""
    for model in models:
        for parameter in model.parameters():
            if parameter.device.type == "cpu":
                parameter.flatten()[:: _PAGE_BYTES // parameter.element_size()].sum()


def require_room(need: Need, available: int) -> None:
    """Raises NotEnoughMemory where a stage does not fit into `available` bytes."""
    if need.total <= available:
        return
    raise NotEnoughMemory(
        f"this needs {need.total / GIB:.1f} GiB and there are {available / GIB:.1f}: "
        + (" or ".join(_ways_out(need, available)) or _SMALLER)
    )


def _ways_out(need: Need, available: int) -> Iterator[str]:
    """What to set so that it fits."""
    largest = need.largest_budget(available)
    if largest >= _SMALLEST_BUDGET:
        yield f"lower token_budget from {need.token_budget} to {largest}"
    if need.lora is not None:
        total = dataclasses.replace(need.lora, held=need.held).total
        if total <= available:
            yield f"set lora_rank to {LORA_RANK}, with which it needs about {total / GIB:.1f} GiB"


def announce(need: Need, device: torch.device) -> None:
    """Say what the stage will take, in its log. Raises NotEnoughMemory, in all processes, where one
    of them has too little."""
    room = -largest(-available_bytes(device, processes=processes_here()))
    each = f" for each of {num_processes()} processes" if num_processes() > 1 else ""
    if is_first():
        total, there = need.total / GIB, room / GIB
        _log.info("needs about %.2f GiB%s, %.2f are there", total, each, there)
    require_room(dataclasses.replace(need, held=int(largest(need.held))), int(room))


def activation_bytes_per_token(model: PreTrainedModel) -> float:
    """Bytes that a forward pass of the body keeps for its backward pass, for each token.

    Counted by torch's own hooks on a row of 64 tokens; storages that several operations keep
    count once, and weights do not.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}  # address of a storage to its bytes
    alive: list[Tensor] = []  # so that no address is used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    vocabulary = int(model.config.vocab_size)
    ids = [n % vocabulary for n in range(_PROBE_TOKENS)]
    row = pack([Group(prompt=ids[:1], answers=[ids[1:]])], token_budget=_PROBE_TOKENS)[0]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(model, row.to(model.device))
    return sum(kept.values()) / _PROBE_TOKENS


def available_bytes(device: torch.device, *, processes: int = 1) -> int:
    """What a process may hold altogether: what is free, and what it has already.

    `processes` of the stage are on this machine: those without a GPU each share its memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    return int(psutil.virtual_memory().available) // processes + held_bytes(device)


def held_bytes(device: torch.device) -> int:
    """What this process holds on a device now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it is not counted
    return int(psutil.Process().memory_info().rss)


def memory_figures(need: Need, device: torch.device) -> dict[str, Any]:
    """Predicted and real peak, in GiB, for the stage's figures."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"predicted_gib": round(need.total / GIB, 2), "peak_gib": round(peak / GIB, 2)}
