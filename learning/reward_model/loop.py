"""The reward model's training loop: steps, evaluations, checkpoints, and leaving when asked.

One process or many work at it (learning/training/distributed.py); all of them know all scores, so
they decide alike. Knows the stage's signals, not how data is read or figures are reported
(learning/reward_model/train.py), nor what a checkpoint holds (learning/reward_model/state.py).
"""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import Judgement, RankedGroup
from learning.reward_model.disagreement import Heads
from learning.reward_model.state import Done, Part, Training, load_checkpoint, save_checkpoint
from learning.reward_model.steps import (
    Cuts,
    Evaluation,
    Tally,
    add_gradients,
    cosine_rate,
    featured_rows,
    plan_batches,
)
from learning.training.distributed import any_process, device, num_processes, of_all, shard
from learning.training.memory import GIB, announce, need_of
from learning.training.models import (
    RewardModel,
    freeze_bottom,
    init_reward_model,
    layers_of,
)
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group
from learning.training.stage import Interrupted, Stage

_COPY_BYTES = 4
"""Of each weight, in the copy of the best epoch."""
_SCRATCH_BYTES = GIB // 2
"""Of the kernels that oneDNN compiles for each new length of row: it keeps the last 1,024."""


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
    model = init_reward_model(
        stage.path("anchor"), head_init_std=settings.head_init_std, seed=seed
    ).to(device())
    freeze_bottom(model, settings.frozen_share)
    need = need_of(
        [model],
        model.classifier,
        token_budget=settings.token_budget,
        chunk=0,
        processes=num_processes(),
        copy_bytes=_COPY_BYTES,
        scratch=_SCRATCH_BYTES,
    )
    announce(need, device())
    shard(model, layers_of(model.classifier), exact=[model.score])
    cuts = Cuts().to(device())
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
        need=need,
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
        rate = _step(training, settings)
        _report(stage, training, rate)
        if done.step % settings.checkpoint_every == 0:
            save_checkpoint(training)
        _leave_if_asked(stage, training)
    with torch.no_grad():
        for parameter, best in zip(training.optimizer.parameters, done.best_weights, strict=True):
            parameter.copy_(best)
    if training.heads is not None and done.best_heads is not None:
        training.heads.set_weight(done.best_heads)


def evaluate(
    stage: Stage,
    model: RewardModel,
    ranked: Sequence[RankedGroup],
    *,
    token_budget: int,
    heads: Heads | None = None,
) -> Evaluation:
    """Score ranked groups and count what is in the right order; stops when asked."""
    groups = [r.group for r in ranked]
    found = score_all(stage, model, groups, token_budget=token_budget, heads=heads)
    evaluation = Evaluation()
    for group, (group_scores, head_scores) in zip(ranked, found, strict=True):
        evaluation.add(group, group_scores, head_scores)
    return evaluation


def measures(tallies: Mapping[str, Tally]) -> dict[str, dict[str, float]]:
    """Pairs, accuracy and loss by name, without those that counted nothing."""
    return {
        name: {"pairs": tally.pairs, "accuracy": tally.accuracy, "loss": tally.loss}
        for name, tally in tallies.items()
        if tally.pairs
    }


@torch.no_grad()
def score_all(
    stage: Stage,
    model: RewardModel,
    groups: Sequence[Group],
    *,
    token_budget: int,
    heads: Heads | None = None,
) -> list[tuple[Tensor, Tensor | None]]:
    """Each group's scores (answers,), and those of heads (heads, answers), in order.

    The same in all processes; raises Interrupted, in all, if one is asked to stop.
    """
    found: list[tuple[int, Tensor, Tensor | None]] = []
    for row in featured_rows(model, groups, token_budget=token_budget):
        if any_process(stage.stopping):
            raise Interrupted("stopped between two rows of an evaluation")
        for number, group_scores, features in row:
            of_heads = None if heads is None else heads.scores(features).cpu()
            found.append((number, group_scores.cpu(), of_heads))
    in_order = sorted(of_all(found), key=lambda each: each[0])
    return [(group_scores, of_heads) for _, group_scores, of_heads in in_order]


def _step(training: Training, settings: RewardModelSettings) -> float:
    """Take one step; returns its learning rate."""
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
    return rate


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
    stage.scalars(done.step, done.epochs[-1], part=training.part.scalars)
    if loss is None or done.best_loss is None or loss < done.best_loss:
        done.best_loss = loss
        done.best_epoch = len(done.epochs)
        done.best_weights = [p.detach().clone() for p in training.optimizer.parameters]
        done.best_scores = evaluation.scores
        if training.heads is not None:
            done.best_heads = training.heads.weight.detach().clone()


def _report(stage: Stage, training: Training, rate: float) -> None:
    done, total, part = training.done, len(training.batches), training.part
    speed = done.tokens / done.seconds
    figures = {"loss": done.losses[-1], "learning_rate": rate, "tokens_per_second": speed}
    stage.scalars(done.step, figures, part=part.scalars)
    left = done.seconds / done.step * (total - done.step)
    stage.progress(
        part.begins + (part.ends - part.begins) * done.step / total,
        f"{part.name}step {done.step} of {total}, {left:.0f} s of training left",
        loss=done.losses[-1],
        tokens_per_second=speed,
    )


def _leave_if_asked(stage: Stage, training: Training) -> None:
    if any_process(stage.stopping):
        save_checkpoint(training)
        raise Interrupted(f"stopped after step {training.done.step}")


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
        device=model.head.device,
    )
