"""The reward model's training loop: steps, evaluations, checkpoints, and leaving when asked.

A checkpoint is everything the loop needs to go on as if nothing had happened; the data and the
order of the batches come again from the snapshot and the seed. Knows the stage's folder and
signals, not how data is read or figures are reported (learning/train_reward_model.py).
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.hyperparameters import RewardModelSettings
from learning.dataset import RankedGroup
from learning.models import RewardModel
from learning.optimizer import MasterAdamW
from learning.packing import Group
from learning.reward_training import (
    Batch,
    Cuts,
    Evaluation,
    Tally,
    add_gradients,
    cosine_rate,
    scored_rows,
)
from learning.stage import Interrupted, Stage

TRAINING_SHARE = 0.9
"""Of the stage's time, for the progress bar."""


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


def train(stage: Stage, training: Training, settings: RewardModelSettings) -> None:
    """Take all steps that are left, evaluate after each epoch, and leave the best epoch's weights.

    Raises Interrupted, with a checkpoint written, when SIGTERM arrived.
    """
    done, total = training.done, len(training.batches)
    while True:
        if _epochs_ended(training) > len(done.epochs):
            _evaluate_epoch(stage, training, settings)
            save_checkpoint(stage, training)
        if done.step == total:
            break
        _step(training, settings)
        _report(stage, training)
        if done.step % settings.checkpoint_every == 0:
            save_checkpoint(stage, training)
        _leave_if_asked(stage, training)
    with torch.no_grad():
        for parameter, best in zip(training.optimizer.parameters, done.best_weights, strict=True):
            parameter.copy_(best)


def save_checkpoint(stage: Stage, training: Training) -> None:
    """Write the checkpoint beside the old one, then put it in its place."""
    done = training.done
    state: dict[str, Any] = {name: getattr(done, name) for name in Done.__slots__}
    beside = stage.checkpoint.with_suffix(".tmp")
    torch.save({**state, "optimizer": training.optimizer.state_dict()}, beside)
    os.replace(beside, stage.checkpoint)


def load_checkpoint(stage: Stage, training: Training) -> None:
    """Go on from the checkpoint, if there is one."""
    if not stage.checkpoint.exists():
        return
    device = training.model.bias.device
    state = torch.load(stage.checkpoint, weights_only=True, map_location=device)
    training.optimizer.load_state_dict(state.pop("optimizer"))
    training.done = Done(**state)
    print(f"continuing after step {training.done.step}", flush=True)


def evaluate(
    stage: Stage, model: RewardModel, ranked: Sequence[RankedGroup], *, token_budget: int
) -> Evaluation:
    """Score ranked groups and count what is in the right order; stops when asked."""
    evaluation = Evaluation()
    groups = [r.group for r in ranked]
    for number, group_scores in score_all(stage, model, groups, token_budget=token_budget):
        evaluation.add(ranked[number], group_scores)
    return evaluation


def measures(tallies: Mapping[str, Tally]) -> dict[str, dict[str, float]]:
    """Pairs, accuracy and loss by name, without those that counted nothing."""
    return {
        name: {"pairs": tally.pairs, "accuracy": tally.accuracy, "loss": tally.loss}
        for name, tally in tallies.items()
        if tally.pairs
    }


def score_all(
    stage: Stage, model: RewardModel, groups: Sequence[Group], *, token_budget: int
) -> Iterator[tuple[int, Tensor]]:
    """Each group's number and scores (answers,) without gradients; raises Interrupted if asked."""
    with torch.no_grad():
        for row in scored_rows(model, groups, token_budget=token_budget):
            if stage.stopping:
                raise Interrupted("stopped between two rows of an evaluation")
            yield from row


def _step(training: Training, settings: RewardModelSettings) -> None:
    done, batch = training.done, training.batches[training.done.step]
    started = time.monotonic()
    loss = add_gradients(training.model, training.cuts, batch, settings)
    rate = cosine_rate(
        done.step,
        num_steps=len(training.batches),
        peak=settings.learning_rate,
        final_fraction=settings.final_learning_rate_fraction,
    )
    training.optimizer.step(learning_rate=rate, max_grad_norm=settings.max_grad_norm)
    done.step += 1
    done.seconds += time.monotonic() - started
    done.tokens += batch.num_tokens
    done.losses.append(loss)


def _epochs_ended(training: Training) -> int:
    return sum(batch.ends_epoch for batch in training.batches[: training.done.step])


def _evaluate_epoch(stage: Stage, training: Training, settings: RewardModelSettings) -> None:
    """Note how the model does on unseen prompts, and keep its weights when they are the best."""
    done = training.done
    try:
        evaluation = evaluate(
            stage, training.model, training.unseen, token_budget=settings.token_budget
        )
    except Interrupted:
        save_checkpoint(stage, training)
        raise
    loss = evaluation.loss_to_choose_by()
    done.epochs.append(measures(evaluation.tallies()))
    if loss is None or done.best_loss is None or loss < done.best_loss:
        done.best_loss = loss
        done.best_epoch = len(done.epochs)
        done.best_weights = [p.detach().clone() for p in training.optimizer.parameters]


def _report(stage: Stage, training: Training) -> None:
    done, total = training.done, len(training.batches)
    left = done.seconds / done.step * (total - done.step)
    stage.progress(
        TRAINING_SHARE * done.step / total,
        f"step {done.step} of {total}, {left:.0f} s of training left",
        loss=done.losses[-1],
        tokens_per_second=done.tokens / done.seconds,
    )


def _leave_if_asked(stage: Stage, training: Training) -> None:
    if stage.stopping:
        save_checkpoint(stage, training)
        raise Interrupted(f"stopped after step {training.done.step}")
