"""Where a reward model's training is, and its checkpoints.

A checkpoint is everything the loop needs to go on as if nothing had happened; the data and the
order of the batches come again from the snapshot and the seed. Knows neither losses nor evaluations
(learning/reward_model/loop.py).
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learning.reward_model.dataset import RankedGroup
from learning.reward_model.disagreement import Heads
from learning.reward_model.steps import Batch, Cuts
from learning.training import checkpoints
from learning.training.memory import Need
from learning.training.models import RewardModel
from learning.training.optimizer import MasterAdamW

_log = logging.getLogger(__name__)
_BEST_HEADS = "best_heads"


@dataclass(slots=True)
class Done:
    """How far training is: the part of a checkpoint that is not the optimiser's."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, dict[str, float]]] = field(default_factory=list)
    """Of each epoch that has ended, what `measures` says of unseen prompts."""
    best_loss: float | None = None
    best_epoch: int = 0
    best_weights: list[Tensor] = field(default_factory=list)
    best_heads: Tensor | None = None
    best_scores: list[Tensor] = field(default_factory=list)
    """Of the unseen prompts' answers, in that epoch."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a stage a training is: where its checkpoint lies, how its progress reads."""

    checkpoint: Path
    begins: float
    """Fractions of the stage's time."""
    ends: float
    name: str = ""
    scalars: str = ""
    """The folder of its event files within the stage's"""


@dataclass(slots=True)
class Training:
    """What the loop works on, and where it is."""

    model: RewardModel
    cuts: Cuts
    optimizer: MasterAdamW
    batches: list[Batch]
    unseen: list[RankedGroup]
    """Ranked groups by which the epoch is chosen."""
    done: Done
    part: Part
    need: Need
    """The memory that it was said to take"""
    heads: Heads | None = None


def save_checkpoint(training: Training) -> None:
    """In place of the last one."""
    done, heads = training.done, training.heads
    plain = dataclasses.replace(done, best_weights=[], best_heads=None, best_scores=[])
    scores = [each.tolist() for each in done.best_scores]
    whole = {f"heads.{n}": tensor for n, tensor in heads.state_dict().items()} if heads else {}
    if done.best_heads is not None:
        whole[_BEST_HEADS] = done.best_heads
    checkpoints.save_checkpoint(
        training.part.checkpoint,
        [training.optimizer],
        notes=dataclasses.asdict(plain) | {"best_scores": scores},
        tensors=done.best_weights,
        whole=whole,
    )


def load_checkpoint(training: Training) -> None:
    """Go on from the checkpoint, if there is one."""
    notes: dict[str, Any] | None = checkpoints.read_notes(training.part.checkpoint)
    if notes is None:
        return
    best, whole = checkpoints.load_checkpoint(training.part.checkpoint, [training.optimizer])
    notes["best_scores"] = [torch.tensor(scores) for scores in notes["best_scores"]]
    best_heads = whole.pop(_BEST_HEADS, None)
    if training.heads is not None and whole:
        training.heads.load_state_dict({n.removeprefix("heads."): t for n, t in whole.items()})
    training.done = Done(**{**notes, "best_weights": best, "best_heads": best_heads})
    _log.info("continuing after step %d", training.done.step)
