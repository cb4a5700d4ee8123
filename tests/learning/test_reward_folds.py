"""Raters left out in turn: two who want opposite things are each other's opposite."""

import pytest

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import RankedGroup, Ranking
from learning.reward_model.folds import across_raters
from learning.training.packing import Group
from learning.training.stage import Interrupted, Stage
from tests.tiny_model import make_tiny_model


def _ranked(number, split):
    """Ann ranks the shorter answer first, Bob the longer; Hal, who is held out, never counts."""
    answers = [[300 + number % 7] * length + [2] for length in (2, 6, 11)]

    def said(rater, *ranks, heldout=False):
        return Ranking((0, 1, 2), ranks, heldout_rater=heldout, weight=2.0, rater=rater)

    rankings = (said("ann", 1, 2, 3), said("hal", 1, 2, 3, heldout=True))
    if number % 2:
        rankings = (said("bob", 3, 2, 1), said("hal", 3, 2, 1, heldout=True))
    return RankedGroup(Group([10 + number, 4], answers), rankings, split)


@pytest.mark.slow
def test_each_group_is_tested_by_a_model_that_never_heard_it_and_is_not_trained_twice(tmp_path):
    settings = RewardModelSettings(
        learning_rate=3e-3, frozen_share=0.0, rater_folds=5, token_budget=512
    )
    anchor = make_tiny_model(tmp_path / "anchor")
    stage = Stage(folder=tmp_path, inputs={"anchor": str(anchor), "seed": 3})

    def asked():
        return across_raters(
            stage,
            settings,
            train_split=[_ranked(number, "train") for number in range(40)],
            unseen=[_ranked(number, "validation") for number in range(40, 60)],
            epoch=1,
            begins=0.5,
        )

    figures = asked()
    assert (figures["groups"], figures["left_out_pairs"], figures["learned_from_pairs"]) == (
        2, 60, 60,
    )  # fmt: skip
    assert figures["learned_from"] > 0.8
    assert figures["left_out"] < 0.2
    stage.stopping = True  # a training that took a step now would leave
    assert asked() == figures
    (tmp_path / "checkpoint-raters-2").unlink()
    with pytest.raises(Interrupted, match="step 1"):
        asked()


def test_one_rater_alone_cannot_be_left_out(tmp_path):
    ann = [_ranked(number, "train") for number in (0, 2, 4)]
    stage = Stage(folder=tmp_path, inputs={})
    settings = RewardModelSettings(rater_folds=5)
    figures = across_raters(stage, settings, train_split=ann, unseen=ann, epoch=1, begins=0.5)
    assert figures == {"groups": 1}
