"""Whether the model learns what others want: raters left out of training, one group after another.

The paper's 72.4 against 69.6 (section 4.1): how often a model is right about unseen pairs of raters
it learned from, and of a group it never heard. Each group costs one more training of the stage.
Groups are made in learning/reward_model/raters.py, trainings run in learning/reward_model/loop.py.
"""

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import RankedGroup
from learning.reward_model.loop import set_up, train
from learning.reward_model.raters import as_heldout, rater_groups, volumes, without
from learning.reward_model.state import Part
from learning.reward_model.steps import trained_rankings
from learning.training.stage import Stage

Measures = Mapping[str, Mapping[str, float]]


def across_raters(
    stage: Stage,
    settings: RewardModelSettings,
    *,
    train_split: Sequence[RankedGroup],
    unseen: Sequence[RankedGroup],
    epoch: int,
    begins: float,
) -> dict[str, Any]:
    """Train once for each group of raters without them; pair accuracy on both kinds of raters.

    `epoch`, from 1, is the one that the real training chose, so that none is chosen by those it is
    tested on. `begins` is the fraction of the stage's time at which this starts. Raises Interrupted
    after a SIGTERM: each training has a checkpoint of its own, and one that is done stays done.
    """
    groups = rater_groups(volumes(train_split), settings.rater_folds)
    if len(groups) < 2:
        return {"groups": len(groups)}
    share = (1.0 - begins) / len(groups)
    measured = []
    for number, raters in enumerate(groups):
        training = set_up(
            stage,
            settings,
            ranked=trained_rankings(without(train_split, raters)),
            judgements=(),
            unseen=as_heldout(unseen, raters),
            part=Part(
                checkpoint=stage.folder / f"checkpoint-raters-{number + 1}",
                begins=begins + share * number,
                ends=begins + share * (number + 1),
                name=f"raters left out, group {number + 1} of {len(groups)}: ",
                scalars=f"raters-{number + 1}",
            ),
        )
        train(stage, training, settings)
        measured.append(training.done.epochs[epoch - 1])
    return {"groups": len(groups), **summary(measured)}


def summary(measured: Sequence[Measures]) -> dict[str, Any]:
    """Accuracy over all pairs of all groups: of raters left out, and of raters learned from.

    `spread` is the standard deviation over groups of the former. What has no pair is left out.
    """
    figures: dict[str, Any] = {}
    for name, key in (
        ("left_out", "validation_heldout_raters"),
        ("learned_from", "validation_training_raters"),
    ):
        found = [one[key] for one in measured if key in one]
        pairs = sum(one["pairs"] for one in found)
        if pairs:
            figures[name] = sum(one["accuracy"] * one["pairs"] for one in found) / pairs
            figures[f"{name}_pairs"] = pairs
        if name == "left_out" and len(found) > 1:
            figures["spread"] = stdev(one["accuracy"] for one in found)
    return figures
