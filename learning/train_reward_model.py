"""The stage that turns a snapshot's feedback into a reward model (the paper, section 3.5).

Reads the snapshot and the anchor, writes `out/model` and the figures. Which numbers it uses and
why: docs/implementation-details.md. Next stage: learning/train_policy.py.
"""

import logging
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer
from transformers import logging as transformers_logging

from core.hyperparameters import RewardModelSettings
from learning.dataset import FeedbackData, RankedGroup, read_feedback
from learning.models import freeze_bottom, init_reward_model, save_reward_model
from learning.optimizer import MasterAdamW
from learning.packing import Group
from learning.reward_loop import (
    Done,
    Training,
    evaluate,
    load_checkpoint,
    measures,
    score_all,
    train,
)
from learning.reward_training import (
    Cuts,
    Evaluation,
    num_pairs,
    plan_batches,
    scale_of,
    shuffle_labels,
    trained_rankings,
)
from learning.stage import NotEnoughData, Stage, run

EVALUATED_GROUPS = 256
"""At most so many prompts are scored for accuracy: 28 pairs each give it to within a percent."""
SCALED_GROUPS = 24
"""Training prompts that fix the score's mean and standard deviation, and the training accuracy."""

Item = TypeVar("Item", RankedGroup, Group)


def main(stage: Stage) -> dict[str, Any]:
    """Train, scale and save a reward model; returns the figures.

    Raises NotEnoughData when there are too few untied pairs to train on, or when the finished
    model orders unseen answers worse than `min_accuracy`; Interrupted after a SIGTERM.
    """
    settings = RewardModelSettings.model_validate(stage.inputs["settings"])
    torch.set_num_threads(stage.inputs["threads"] or len(os.sched_getaffinity(0)))
    transformers_logging.set_verbosity(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(stage.path("anchor"), local_files_only=True)
    data = read_feedback(stage.path("snapshot"), tokenizer)
    ranked = _training_groups(stage, data, settings)
    training = _set_up(stage, ranked, data, settings)
    train(stage, training, settings)
    unseen = training.done.epochs[training.done.best_epoch - 1]
    _require_accuracy(unseen, settings)
    stage.progress(0.95, "fixing the score's scale")
    some = _sample(ranked, SCALED_GROUPS, stage.inputs["seed"])
    seen = evaluate(stage, training.model, some, token_budget=settings.token_budget)
    figures = _figures(training, measures({"train": seen.total()}) | unseen, settings)
    figures |= _rescale(stage, training, seen, data, settings)
    save_reward_model(training.model, stage.partial / "model", tokenizer_from=stage.path("anchor"))
    return figures | {"shuffled_labels": bool(stage.inputs.get("shuffle_labels"))}


def _training_groups(
    stage: Stage, data: FeedbackData, settings: RewardModelSettings
) -> list[RankedGroup]:
    ranked = trained_rankings(data.split("train"))
    pairs = num_pairs(ranked)
    if pairs < settings.min_comparisons:
        raise NotEnoughData(
            f"{pairs} untied comparisons to train on, and {settings.min_comparisons} are needed "
            "(learning.reward_model.min_comparisons): collect more rankings"
        )
    if stage.inputs.get("shuffle_labels"):
        return shuffle_labels(ranked, seed=stage.inputs["seed"])
    return ranked


def _set_up(
    stage: Stage, ranked: list[RankedGroup], data: FeedbackData, settings: RewardModelSettings
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
        batches=plan_batches(ranked, data.judgements, settings=settings, seed=seed),
        unseen=_sample(data.split("validation"), EVALUATED_GROUPS, seed),
        done=Done(),
    )
    load_checkpoint(stage, training)
    return training


def _require_accuracy(
    unseen: Mapping[str, Mapping[str, float]], settings: RewardModelSettings
) -> None:
    """PPO against a reward model that cannot tell good from bad only breaks the policy."""
    if settings.min_accuracy == 0.0:
        return
    if "validation" not in unseen:
        raise NotEnoughData("no ranking in the validation split to check the reward model on")
    accuracy, pairs = unseen["validation"]["accuracy"], unseen["validation"]["pairs"]
    if accuracy < settings.min_accuracy:
        raise NotEnoughData(
            f"the reward model orders {accuracy:.3f} of {pairs} unseen pairs as people "
            f"did, and {settings.min_accuracy} is needed (learning.reward_model.min_accuracy): "
            "collect more rankings"
        )


def _rescale(
    stage: Stage,
    training: Training,
    seen: Evaluation,
    data: FeedbackData,
    settings: RewardModelSettings,
) -> dict[str, Any]:
    """Give the score its zero and, unless only the bias is asked for, its unit.

    The reference is the answers of training prompts; with "bias" it is the demonstrations, as in
    the paper (section 3.5), where there are any.
    """
    mean, spread, within = scale_of(seen.scores)
    gain = 1.0
    if settings.normalisation == "bias_and_gain":
        gain = 1.0 / max(spread, 1e-6)
    elif data.demonstrations:
        some = _sample(data.demonstrations, EVALUATED_GROUPS, stage.inputs["seed"])
        scored = score_all(stage, training.model, some, token_budget=settings.token_budget)
        mean = scale_of([group_scores for _, group_scores in scored])[0]
    training.model.rescale(gain, -mean * gain)
    return {
        "gain": gain,
        "bias": -mean * gain,
        "score_sd": spread * gain,
        "score_sd_within_prompts": within * gain,
    }


def _figures(
    training: Training,
    measured: Mapping[str, Mapping[str, float]],
    settings: RewardModelSettings,
) -> dict[str, Any]:
    done = training.done
    losses = done.losses[-len(training.batches) // settings.epochs :]
    return {
        "accuracy": {name: m["accuracy"] for name, m in measured.items()},
        "loss": {name: m["loss"] for name, m in measured.items()}
        | {"last_epoch": sum(losses) / len(losses)},
        "pairs": {name: m["pairs"] for name, m in measured.items()}
        | {
            "trained": num_pairs([r for b in training.batches for r in b.ranked]) // settings.epochs
        },
        "prompts_trained": sum(len(b.ranked) for b in training.batches) // settings.epochs,
        "judgements": sum(len(b.judgements) for b in training.batches) // settings.epochs,
        "steps": done.step,
        "epochs": done.epochs,
        "chosen_epoch": done.best_epoch,
        "seconds": round(done.seconds, 1),
        "tokens": done.tokens,
        "tokens_per_second": round(done.tokens / done.seconds, 1),
        "cuts": {name: p.tolist() for name, p in training.cuts.named_parameters()},
    }


def _sample(items: Sequence[Item], size: int, seed: int) -> list[Item]:
    """All items, or `size` of them, always the same."""
    if len(items) <= size:
        return list(items)
    return random.Random(seed).sample(items, size)


if __name__ == "__main__":
    run(main)
