"""An ensemble of small heads on the reward model's features, and how much its members disagree.

Each head is a linear projection like the reward model's own, on the same features without their
gradient, so it costs next to nothing and changes nothing in the model. What differs between heads
is their first weights and which prompts they heard: each prompt counts a Poisson(1) number of
times, which is the bootstrap for a stream. Where people said enough, heads agree. Knows nothing of
files' places and of Redis; which prompts are asked about next is feedback/labeling_supply.py's.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import softplus

FILE = "heads.tensors"
"""Beside the reward model, in the format of safetensors. Engines read every file of a folder that
ends in `.safetensors` as weights of the model, so this one does not."""
_NAME = "heads"


class Heads:
    """Linear heads without a bias, which no difference of scores would show, and their Adam."""

    def __init__(
        self,
        count: int,
        width: int,
        *,
        init_std: float,
        betas: tuple[float, float],
        eps: float,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(count, width, generator=generator) * init_std
        self.weight = first.to(device).requires_grad_()  # (heads, width) fp32
        self.seed = seed
        self._adam = torch.optim.Adam([self.weight], lr=0.0, betas=betas, eps=eps)

    def scores(self, features: Tensor) -> Tensor:
        """(heads, answers), from features (answers, width)."""
        return self.weight @ features.T

    def counts(self, prompt: Sequence[int]) -> Tensor:
        """(heads,), how many times each head hears a prompt."""
        counts = bootstrap_counts(prompt, heads=len(self.weight), seed=self.seed)
        return counts.to(self.weight.device)

    def step(self, *, learning_rate: float) -> None:
        """Take a step along the gradients there are, and forget them.

        Raises FloatingPointError, with the weights untouched, when they are not finite.
        """
        if self.weight.grad is None:
            return
        if not bool(torch.isfinite(self.weight.grad).all()):
            raise FloatingPointError("the heads' gradient is not finite; the step was not taken")
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """With it training goes on exactly where it was."""
        return {"weight": self.weight.detach(), **self._adam.state_dict()["state"].get(0, {})}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state."""
        moments = {name: tensor for name, tensor in state.items() if name != "weight"}
        groups = self._adam.state_dict()["param_groups"]
        self.set_weight(state["weight"])
        self._adam.load_state_dict(
            {"state": {0: moments} if moments else {}, "param_groups": groups}
        )

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Put other weights in place."""
        self.weight.copy_(weight)


def bootstrap_counts(prompt: Sequence[int], *, heads: int, seed: int) -> Tensor:
    """(heads,) float, independent Poisson(1) numbers: how often each head hears a prompt.

    They follow from the seed and the prompt's token ids alone, so neither the order of batches,
    nor a second epoch, nor an interruption changes them.
    """
    digest = hashlib.sha256(repr((seed, list(prompt))).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.poisson(torch.ones(heads), generator=generator)


def head_losses(scores: Tensor, ranks: Tensor) -> Tensor:
    """Equation 1 of each head for one ranking, (heads,): `ranking_loss` of each row of scores.

    `scores` (heads, answers), `ranks` (answers,) int with at least one untied pair.
    """
    differences = scores[:, :, None] - scores[:, None, :]  # (heads, answers, answers)
    margins = differences[:, ranks[:, None] < ranks[None, :]]  # (heads, untied pairs)
    return softplus(-margins).mean(dim=1)


def disagreement(scores: Tensor) -> float:
    """How much heads disagree about a prompt's answers, from their scores (heads, answers).

    The mean, over pairs of answers, of the variance across heads of the difference of the two
    scores. Adding a number to all scores of one head changes nothing, as it changes no loss;
    scaling all scores by g scales it by g squared. 0 where all heads say the same. Raises
    ValueError with fewer than two answers.
    """
    answers = scores.shape[1]
    if answers < 2:
        raise ValueError("one answer alone has no difference to disagree about")
    differences = scores[:, :, None] - scores[:, None, :]  # (heads, answers, answers)
    one, other = torch.triu_indices(answers, answers, offset=1)
    return differences[:, one, other].var(dim=0, correction=0).mean().item()


def save_heads(weight: Tensor, folder: Path) -> None:
    """Write the heads (heads, width) beside a reward model."""
    save_file({_NAME: weight.detach().float().cpu().contiguous()}, folder / FILE)


def load_heads(folder: Path) -> Tensor | None:
    """The heads (heads, width) fp32 beside a reward model, None where there are none."""
    path = folder / FILE
    return load_file(path)[_NAME] if path.is_file() else None
