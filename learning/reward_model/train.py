"""The stage that turns a snapshot's feedback into a reward model (the paper, section 3.5).

Reads the snapshot and the anchor, writes `out/model`, how much the ensemble disagrees about logged
prompts, and the figures. As one process or as many, of which the first writes. Which numbers it
uses and why: docs/implementation-details.md. Next stage: learning/policy/train.py.
"""

import logging
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import FeedbackData, RankedGroup, read_feedback
from learning.reward_model.disagreement import save_heads
from learning.reward_model.folds import across_raters
from learning.reward_model.loop import evaluate, measures, score_all, set_up, train
from learning.reward_model.raters import reliability, weighted
from learning.reward_model.report import (
    best_of,
    calibration,
    favourites,
    features_of,
    regressed,
    vader,
)
from learning.reward_model.state import Part, Training
from learning.reward_model.steps import (
    Evaluation,
    num_pairs,
    scale_of,
    shuffle_labels,
    trained_rankings,
)
from learning.reward_model.unranked import score_unranked
from learning.training.distributed import (
    compute_on,
    device,
    gathered,
    is_first,
    num_processes,
    processes,
    wait,
)
from learning.training.memory import memory_figures
from learning.training.models import init_reward_model, save_reward_model
from learning.training.packing import Group
from learning.training.stage import NotEnoughData, Stage, run

EVALUATED_GROUPS = 256
"""At most so many prompts are scored for accuracy: 28 pairs each give it to within a percent."""
SCALED_GROUPS = 24
"""Training prompts that fix the score's mean and standard deviation, and the training accuracy."""
TRAINING_SHARE = 0.9
"""Of the time of a training with all that belongs to it, for the progress bar."""

Item = TypeVar("Item", RankedGroup, Group)


def main(stage: Stage) -> dict[str, Any]:
    """Train, scale and save a reward model; returns the figures.

    Raises NotEnoughData when there are too few untied pairs to train on, or when the finished
    model orders unseen answers worse than `min_accuracy`; Interrupted after a SIGTERM.
    """
    compute_on(stage.inputs.get("device", "auto"))
    torch.set_num_threads(stage.inputs["threads"] or len(os.sched_getaffinity(0)))
    transformers_logging.set_verbosity(logging.ERROR)
    with processes():
        return _main(stage)


def _main(stage: Stage) -> dict[str, Any]:
    settings = RewardModelSettings.model_validate(stage.inputs["settings"])
    tokenizer = AutoTokenizer.from_pretrained(stage.path("anchor"), local_files_only=True)
    data = read_feedback(stage.path("snapshot"), tokenizer)
    ranked, weights = _training_groups(stage, data, settings)
    unseen = _sample(data.split("validation"), EVALUATED_GROUPS, stage.inputs["seed"])
    share = 1.0 / (1.0 + settings.rater_folds)
    figures = _make_model(stage, settings, data, tokenizer, ranked=ranked, unseen=unseen, end=share)
    if settings.rater_folds:
        figures["rater_folds"] = across_raters(
            stage,
            settings,
            train_split=ranked,
            unseen=unseen,
            epoch=figures["chosen_epoch"],
            begins=share,
        )
    return figures | {
        "shuffled_labels": bool(stage.inputs.get("shuffle_labels")),
        "rater_weights": sorted(weights.values()),
    }


def _training_groups(
    stage: Stage, data: FeedbackData, settings: RewardModelSettings
) -> tuple[list[RankedGroup], dict[str, float]]:
    """What is trained on, and how much each rater's word weighs where that is asked for."""
    weights: dict[str, float] = {}
    heard = data.split("train")
    if settings.rater_weights:
        weights = reliability(trained_rankings(heard))
        heard = weighted(heard, weights)
    ranked = trained_rankings(heard)
    pairs = num_pairs(ranked)
    if pairs < settings.min_comparisons:
        raise NotEnoughData(
            f"{pairs} untied comparisons to train on, and {settings.min_comparisons} are needed "
            "(learning.reward_model.min_comparisons): collect more rankings"
        )
    if stage.inputs.get("shuffle_labels"):
        return shuffle_labels(ranked, seed=stage.inputs["seed"]), weights
    return ranked, weights


def _make_model(
    stage: Stage,
    settings: RewardModelSettings,
    data: FeedbackData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ranked: list[RankedGroup],
    unseen: list[RankedGroup],
    end: float,
) -> dict[str, Any]:
    """The model and what belongs to it, written until `end` of the stage's time; the figures."""
    training = set_up(
        stage,
        settings,
        ranked=ranked,
        judgements=data.judgements,
        unseen=unseen,
        part=Part(stage.checkpoint, begins=0.0, ends=TRAINING_SHARE * end),
        num_heads=settings.heads,
    )
    train(stage, training, settings)
    measured = training.done.epochs[training.done.best_epoch - 1]
    _require_accuracy(measured, settings)
    stage.progress((1.0 + TRAINING_SHARE) / 2 * end, "fixing the score's scale")
    some = _sample(ranked, SCALED_GROUPS, stage.inputs["seed"])
    seen = evaluate(stage, training.model, some, token_budget=settings.token_budget)
    figures = _figures(training, measures({"train": seen.total()}) | measured, settings)
    figures |= _learned(training, some, seen, tokenizer)
    figures |= _rescale(stage, training, seen, data, settings)
    _save(stage, training, settings)
    figures |= {"memory": memory_figures(training.need, device()), "processes": num_processes()}
    return figures | _keep_heads(stage, training, tokenizer, settings)


def _save(stage: Stage, training: Training, settings: RewardModelSettings) -> None:
    """Write the model; by the first process."""
    anchor = stage.path("anchor")
    whole = gathered(
        training.model,
        lambda: init_reward_model(anchor, head_init_std=settings.head_init_std, seed=0),
    )
    if is_first() and whole is not None:
        save_reward_model(whole, stage.partial / "model", tokenizer_from=anchor)
    wait()


def _keep_heads(
    stage: Stage,
    training: Training,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
) -> dict[str, Any]:
    """Write the ensemble, and what it says of logged prompts that nobody has ranked."""
    if training.heads is None:
        return {"heads": 0}
    if is_first():
        save_heads(training.heads.weight, stage.partial / "model")
    scored = score_unranked(
        stage,
        training.model,
        training.heads,
        tokenizer,
        most=settings.scored_prompts,
        token_budget=settings.token_budget,
    )
    return {"heads": len(training.heads.weight), "scored_prompts": scored}


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


def _learned(
    training: Training,
    some: Sequence[RankedGroup],
    seen: Evaluation,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Calibration and best-of-K on unseen prompts; what the score goes with there, else trained."""
    unseen, scores = training.unseen, training.done.best_scores
    groups, values = (unseen, scores) if unseen else (some, seen.scores)
    sentiment = vader()
    texts = [
        [str(tokenizer.decode(list(a), skip_special_tokens=True)) for a in g.group.answers]
        for g in groups
    ]
    return {
        "calibration": calibration(*favourites(unseen, scores)),
        "best_of": best_of(unseen, scores),
        "score_goes_with": regressed(
            [value.tolist() for value in values],
            [[features_of(text, sentiment) for text in group] for group in texts],
        ),
    }


def _rescale(
    stage: Stage,
    training: Training,
    seen: Evaluation,
    data: FeedbackData,
    settings: RewardModelSettings,
) -> dict[str, Any]:
    """Give the score its zero and, unless only the bias is asked for, its unit.

    The reference is the answers of training prompts; with "bias" it is the demonstrations, as in
    the paper (section 3.5), where there are any. The heads keep the unit of the score.
    """
    mean, spread, within = scale_of(seen.scores)
    gain = 1.0
    if settings.normalisation == "bias_and_gain":
        gain = 1.0 / max(spread, 1e-6)
    elif data.demonstrations:
        some = _sample(data.demonstrations, EVALUATED_GROUPS, stage.inputs["seed"])
        scored = score_all(stage, training.model, some, token_budget=settings.token_budget)
        mean = scale_of([group_scores for group_scores, _ in scored])[0]
    training.model.rescale(gain, -mean * gain)
    if training.heads is not None:
        training.heads.set_weight(training.heads.weight * gain)
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
