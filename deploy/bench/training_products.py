"""How fast this machine multiplies bf16 matrices of a model's own shapes: what training can reach.

For every weight matrix of a layer, in the shares in which a step has them: the product forwards,
the gradient of its input and the gradient of its weights, on rows of as many tokens as training
has. Nothing else is timed, and the operands of a layer stay in the caches no more than in training,
because there are as many copies as layers.
"""

import time
from collections.abc import Sequence

import torch

_SECONDS = 1.0


def products_per_second(matrices: Sequence[tuple[int, int]], *, tokens: int, layers: int) -> float:
    """Operations per second over whole passes through `layers` copies of the matrices."""
    made = [
        (
            torch.randn(tokens, rows).bfloat16(),
            torch.randn(columns, rows).bfloat16(),
            torch.randn(tokens, columns).bfloat16(),
        )
        for _ in range(layers)
        for rows, columns in matrices
    ]
    one_pass = 6.0 * layers * sum(tokens * rows * columns for rows, columns in matrices)
    _multiply(made)
    passes, began = 0, time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        _multiply(made)
        passes += 1
    return one_pass * passes / (time.perf_counter() - began)


def _multiply(made: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    for states, weight, slope in made:
        torch.mm(states, weight.T)
        torch.mm(slope, weight)
        torch.mm(slope.T, states)
