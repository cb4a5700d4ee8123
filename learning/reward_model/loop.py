"""The reward model's training loop: steps, evaluations, checkpoints, and leaving when asked.

A checkpoint is everything the loop needs to go on as if nothing had happened; the data and the
order of the batches come again from the snapshot and the seed. Knows the stage's folder and
signals, not how data is read or figures are reported (learning/reward_model/train.py).
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import Judgement, RankedGroup
from learning.reward_model.disagreement import Heads
from learning.reward_model.steps import (
    Batch,
    Cuts,
    Evaluation,
    Tally,
    add_gradients,
    cosine_rate,
    featured_rows,
    plan_batches,
    scored_rows,
)
from learning.training.models import RewardModel, freeze_bottom, init_reward_model
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group
from learning.training.stage import Interrupted, Stage


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
    heads: Heads | None = None


def set_up(
    stage: Stage,
    settings: RewardModelSettings,
    *,
    ranked: Sequence[RankedGroup],
    judgements: Sequence[Judgement],
    unseen: Sequence[RankedGroup],
    part: Part,
    num_heads: int = 0,
) -> Training:
    """A fresh model and optimiser, or where the checkpoint left them."""
    seed = stage.inputs["seed"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = init_reward_model(
        stage.path("anchor"), head_init_std=settings.head_init_std, seed=seed
    ).to(device)
    freeze_bottom(model, settings.frozen_share)
    cuts = Cuts().to(device)
    training = Training(
        model=model,
        cuts=cuts,
        optimizer=MasterAdamW(
            model.parameters(),
            fast=cuts.parameters(),
            fast_factor=settings.cut_rate_factor,
            betas=settings.adam_betas,
            eps=settings.adam_eps,
        ),
        batches=plan_batches(ranked, judgements, settings=settings, seed=seed),
        unseen=list(unseen),
        done=Done(),
        part=part,
        heads=_new_heads(model, settings, num_heads, seed),
    )
    load_checkpoint(training)
    return training


def train(stage: Stage, training: Training, settings: RewardModelSettings) -> None:
    """Take all steps that are left, evaluate after each epoch, and leave the best epoch's weights.

    Raises Interrupted, with a checkpoint written, when SIGTERM arrived.
    """
    done, total = training.done, len(training.batches)
    while True:
        if _epochs_ended(training) > len(done.epochs):
            _evaluate_epoch(stage, training, settings)
            save_checkpoint(training)
        if done.step == total:
            break
        _step(training, settings)
        _report(stage, training)
        if done.step % settings.checkpoint_every == 0:
            save_checkpoint(training)
        _leave_if_asked(stage, training)
    with torch.no_grad():
        for parameter, best in zip(training.optimizer.parameters, done.best_weights, strict=True):
            parameter.copy_(best)
    if training.heads is not None and done.best_heads is not None:
        training.heads.set_weight(done.best_heads)


def save_checkpoint(training: Training) -> None:
    """Write the checkpoint beside the old one, then put it in its place."""
    done, heads = training.done, training.heads
    state: dict[str, Any] = {name: getattr(done, name) for name in Done.__slots__}
    state["optimizer"] = training.optimizer.state_dict()
    state["heads"] = None if heads is None else heads.state_dict()
    beside = training.part.checkpoint.with_suffix(".tmp")
    torch.save(state, beside)
    os.replace(beside, training.part.checkpoint)


def load_checkpoint(training: Training) -> None:
    """Go on from the checkpoint, if there is one."""
    if not training.part.checkpoint.exists():
        return
    device = training.model.bias.device
    state = torch.load(training.part.checkpoint, weights_only=True, map_location=device)
    training.optimizer.load_state_dict(state.pop("optimizer"))
    heads = state.pop("heads", None)
    if training.heads is not None and heads is not None:
        training.heads.load_state_dict(heads)
    training.done = Done(**state)
    print(f"continuing after step {training.done.step}", flush=True)


def evaluate(
    stage: Stage,
    model: RewardModel,
    ranked: Sequence[RankedGroup],
    *,
    token_budget: int,
    heads: Heads | None = None,
) -> Evaluation:
    """Score ranked groups and count what is in the right order; stops when asked."""
    evaluation = Evaluation()
    groups = [r.group for r in ranked]
    with torch.no_grad():
        for row in featured_rows(model, groups, token_budget=token_budget):
            _stop_if_asked(stage)
            for number, group_scores, features in row:
                head_scores = None if heads is None else heads.scores(features)
                evaluation.add(ranked[number], group_scores, head_scores)
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
            _stop_if_asked(stage)
            yield from row


def _step(training: Training, settings: RewardModelSettings) -> None:
    done, batch = training.done, training.batches[training.done.step]
    started = time.monotonic()
    loss = add_gradients(training.model, training.cuts, batch, settings, training.heads)
    rate = cosine_rate(
        done.step,
        num_steps=len(training.batches),
        peak=settings.learning_rate,
        final_fraction=settings.final_learning_rate_fraction,
    )
    training.optimizer.step(learning_rate=rate, max_grad_norm=settings.max_grad_norm)
    if training.heads is not None:
        training.heads.step(learning_rate=rate)
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
            stage,
            training.model,
            training.unseen,
            token_budget=settings.token_budget,
            heads=training.heads,
        )
    except Interrupted:
        save_checkpoint(training)
        raise
    loss = evaluation.loss_to_choose_by()
    done.epochs.append(measures(evaluation.tallies()))
    if loss is None or done.best_loss is None or loss < done.best_loss:
        done.best_loss = loss
        done.best_epoch = len(done.epochs)
        done.best_weights = [p.detach().clone() for p in training.optimizer.parameters]
        done.best_scores = evaluation.scores
        if training.heads is not None:
            done.best_heads = training.heads.weight.detach().clone()


def _report(stage: Stage, training: Training) -> None:
    done, total, part = training.done, len(training.batches), training.part
    left = done.seconds / done.step * (total - done.step)
    stage.progress(
        part.begins + (part.ends - part.begins) * done.step / total,
        f"{part.name}step {done.step} of {total}, {left:.0f} s of training left",
        loss=done.losses[-1],
        tokens_per_second=done.tokens / done.seconds,
    )


def _leave_if_asked(stage: Stage, training: Training) -> None:
    if stage.stopping:
        save_checkpoint(training)
        raise Interrupted(f"stopped after step {training.done.step}")


def _stop_if_asked(stage: Stage) -> None:
    if stage.stopping:
        raise Interrupted("stopped between two rows of an evaluation")


def _new_heads(
    model: RewardModel, settings: RewardModelSettings, count: int, seed: int
) -> Heads | None:
    if not count:
        return None
    return Heads(
        count,
        model.head.shape[1],
        init_std=settings.head_init_std,
        betas=settings.adam_betas,
        eps=settings.adam_eps,
        seed=seed,
        device=model.bias.device,
    )
