"""How much arithmetic a training step is, and what follows from times. Pure.

Counted are the products of matrices that the algorithm needs, two operations for each
multiplication: 2 for each weight and token forwards and 4 backwards (none for weights that are
frozen with all below them), and attention only between tokens that may look at each other.
Embeddings, norms, softmax and the optimiser count as nothing, so the share that is reached is a
lower bound. Knows no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FORWARD = 2
_BACKWARD = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder with gated feed-forward blocks, as Llama has them."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of every weight matrix of a layer."""
        keys = self.kv_heads * self.head_dim
        queries = self.heads * self.head_dim
        return [
            (self.width, queries),
            (self.width, keys),
            (self.width, keys),
            (queries, self.width),
            (self.width, self.inner),
            (self.width, self.inner),
            (self.inner, self.width),
        ]

    @property
    def layer_weights(self) -> int:
        """Of one layer, without its norms."""
        return sum(rows * columns for rows, columns in self.matrices)


def read_shape(model: Path) -> Shape:
    """From a model folder's configuration."""
    config = json.loads((model / "config.json").read_text())
    heads = int(config["num_attention_heads"])
    return Shape(
        layers=int(config["num_hidden_layers"]),
        width=int(config["hidden_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        inner=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
    )


def pairs_of(answers: int) -> int:
    """Comparisons that a ranking of so many answers is."""
    return answers * (answers - 1) // 2


def group_looks(prompt: int, answers: Sequence[int]) -> int:
    """Pairs of tokens of which one may look at the other, in a prompt and the answers to it."""
    return _triangle(prompt) + sum(prompt * answer + _triangle(answer) for answer in answers)


def body_flops(shape: Shape, *, tokens: int, looks: int, trained_layers: int) -> float:
    """Of a forward pass through all layers and a backward pass through the upper ones."""
    layer = shape.layer_weights * tokens + 2 * shape.heads * shape.head_dim * looks
    return float(layer * (_FORWARD * shape.layers + _BACKWARD * trained_layers))


def head_flops(shape: Shape, *, tokens: int, trained: bool) -> float:
    """Of the output matrix, for tokens whose log-probability is asked for."""
    times = _FORWARD + _BACKWARD if trained else _FORWARD
    return float(shape.width * shape.vocabulary * tokens * times)


def trained_layers(shape: Shape, frozen_share: float) -> int:
    """As learning/training/models.py freezes them."""
    return shape.layers - round(frozen_share * shape.layers)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2
