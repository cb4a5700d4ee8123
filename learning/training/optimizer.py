"""AdamW for models whose weights are bf16: the update happens on fp32 copies.

At learning rates of fine-tuning an update is smaller than the spacing of bf16 numbers and would be
lost; the fp32 masters keep it, and the model gets their rounding. Gradients are summed in fp32 over
the rows of a step. Knows nothing of losses or schedules: the rate is an argument of each step.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class MasterAdamW:
    """Adam with decoupled weight decay on fp32 masters of the given parameters.

    Parameters that need no gradient are left out. A parameter that is fp32 is its own master.
    Those in `fast` learn at `fast_factor` times the rate.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        fast: Iterable[nn.Parameter] = (),
        fast_factor: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
    ) -> None:
        slow = [p for p in parameters if p.requires_grad]
        self.parameters = slow + list(fast)
        self._factors = (1.0, fast_factor)
        for parameter in self.parameters:
            parameter.grad_dtype = torch.float32
        self.masters: Sequence[Tensor] = [
            p if p.dtype == torch.float32 else p.detach().float() for p in self.parameters
        ]
        groups = [self.masters[: len(slow)], self.masters[len(slow) :]]
        self._adam = torch.optim.AdamW(
            [{"params": group} for group in groups],
            lr=0.0,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def grad_norm(self) -> float:
        """The 2-norm of all gradients together, in fp32."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = [nn.utils.get_total_norm(part, foreach=True) for part in _alike(gradients)]
        return math.hypot(*map(float, norms))

    def step(self, *, learning_rate: float, max_grad_norm: float = math.inf) -> float:
        """Update the parameters from their gradients, scaled down to `max_grad_norm` at most.

        Gradients are gone afterwards. Returns their norm before the scaling; raises
        FloatingPointError when it is not finite, with the parameters untouched.
        """
        norm = self.grad_norm()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}; the step was not taken")
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = parameter.grad
        if norm > max_grad_norm:
            gradients = [m.grad for m in self.masters if m.grad is not None]
            for part in _alike(gradients):
                torch._foreach_mul_(part, max_grad_norm / norm)
        for group, factor in zip(self._adam.param_groups, self._factors, strict=True):
            group["lr"] = learning_rate * factor
        self._adam.step()
        self._adam.zero_grad()
        self.zero_grad()
        self.write_back()
        return norm

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model's parameters."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Masters and Adam's moments: with them a run continues exactly where it was."""
        masters = [m.detach() for m in self.masters]
        return {"masters": masters, "adam": self._adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state; the model's parameters are set from its masters."""
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.copy_(saved)
        self._adam.load_state_dict(state["adam"])
        self.write_back()


def _alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Apart: those that processes share among them, and whole ones; no operation takes both."""
    shared: list[Tensor] = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    whole = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    return [part for part in (shared, whole) if part]
