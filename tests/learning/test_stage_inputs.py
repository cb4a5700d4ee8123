"""What a stage is told, and which earlier runs a run in the middle builds on."""

import json

import pytest

from core.errors import Unprocessable
from core.records import STAGES, Run
from learning.rounds.folders import Folders
from learning.rounds.stage_inputs import CHILD_STAGES, Sources, choose_sources, stage_inputs


@pytest.fixture
def folders(state_dir):
    return Folders.of(state_dir)


def run(name, *stages, parent="v0003"):
    stages = stages or STAGES
    return Run(id=name, stages=stages, created_at=0.0, stage=stages[0], parent=parent)


def finish(folders, name, *stages):
    for stage in stages:
        folders.out(name, stage).mkdir(parents=True)


def test_a_whole_round_builds_on_nothing_but_itself(folders):
    assert choose_sources(folders, run("new"), ["new", "old"]) == Sources("new", "new", "new")


def test_a_policy_run_takes_the_newest_finished_reward_model_and_its_snapshot(folders):
    for name in ("r1", "r2"):
        choose_sources(folders, run(name, "snapshot", "reward_model"), [])
        finish(folders, name, "snapshot", "reward_model")
    choose_sources(folders, run("r3", "snapshot", "reward_model"), [])
    finish(folders, "r3", "snapshot")  # its reward model failed
    found = choose_sources(folders, run("r4", "policy"), ["r4", "r3", "r2", "r1"])
    assert found == Sources("r2", "r2", "r4")


def test_an_evaluation_takes_the_newest_candidate_with_all_that_it_was_made_of(folders):
    choose_sources(folders, run("r1", "snapshot", "reward_model"), [])
    finish(folders, "r1", "snapshot", "reward_model")
    choose_sources(folders, run("r2", "policy"), ["r1"])
    finish(folders, "r2", "policy")
    evaluation = run("r3", "evaluate", "vote", "gate")
    assert choose_sources(folders, evaluation, ["r2", "r1"]) == Sources("r1", "r1", "r2")


def test_sources_stay_as_chosen_when_newer_ones_appear(folders):
    choose_sources(folders, run("r1", "snapshot", "reward_model"), [])
    finish(folders, "r1", "snapshot", "reward_model")
    chosen = choose_sources(folders, run("r2", "policy"), ["r1"])
    choose_sources(folders, run("r3", "snapshot", "reward_model"), [])
    finish(folders, "r3", "snapshot", "reward_model")
    assert choose_sources(folders, run("r2", "policy"), ["r3", "r1"]) == chosen


def test_without_anything_to_build_on_the_refusal_says_what_to_run_first(folders):
    with pytest.raises(Unprocessable, match="train --stage reward-model"):
        choose_sources(folders, run("r1", "policy"), [])
    with pytest.raises(Unprocessable, match="train --stage policy"):
        choose_sources(folders, run("r2", "evaluate", "vote", "gate"), ["r1"])
    assert not (folders.run("r1") / "sources.json").exists()


def inputs(stage, folders, settings):
    sources = Sources("r1", "r1", "r2")
    return stage_inputs(stage, run("r3"), sources, folders, settings)


@pytest.mark.parametrize("stage", sorted(CHILD_STAGES))
def test_inputs_are_plain_json_with_absolute_paths_and_without_secrets(folders, settings, stage):
    told = inputs(stage, folders, settings)
    assert json.loads(json.dumps(told)) == told
    assert told.pop("device") == settings.learning.device
    paths = [value for name, value in told.items() if isinstance(value, str)]
    assert paths
    assert all(path.startswith("/") for path in paths)
    assert "secrets" not in json.dumps(told)


def test_every_stage_gets_its_own_settings_and_folders(folders, settings):
    reward = inputs("reward_model", folders, settings)
    assert reward["anchor"] == str(folders.policy("v0000"))
    assert reward["snapshot"] == str(folders.out("r1", "snapshot"))
    assert reward["settings"]["epochs"] == settings.learning.reward_model.epochs
    assert "parent" not in reward
    policy = inputs("policy", folders, settings)
    assert policy["parent"] == str(folders.policy("v0003"))
    assert policy["reward_model"] == str(folders.out("r1", "reward_model") / "model")
    assert policy["settings"]["kl_coef"] == settings.learning.policy.kl_coef
    assert policy["engine"]["socket"] == str(folders.engine_socket)
    assert policy["engine"]["kind"] == settings.learning.rollout_engine == "auto"
    evaluation = inputs("evaluate", folders, settings)
    assert evaluation["candidate"] == str(folders.out("r2", "policy") / "model")
    assert evaluation["settings"]["best_of"] == settings.learning.evaluation.best_of


def test_a_pretraining_text_of_ones_own_goes_to_the_stages_that_learn_from_it(
    folders, settings, tmp_path
):
    assert "pretraining_text" not in inputs("policy", folders, settings)
    learning = settings.learning.model_copy(update={"pretraining_text": tmp_path / "corpus"})
    settings = settings.model_copy(update={"learning": learning})
    for stage in CHILD_STAGES:
        told = inputs(stage, folders, settings)
        given = str(tmp_path / "corpus") if stage in ("sft", "policy") else None
        assert told.get("pretraining_text") == given
