"""The steps of our own on a random model: what they leave for the next ones."""

import json
from dataclasses import asdict

import pytest
from transformers import AutoTokenizer

from deploy.reproduce.sizes import LITTLE
from learning.reward_model.dataset import read_demonstrations, read_feedback
from learning.training.models import init_reward_model, save_reward_model
from learning.training.rollouts import read_prompts
from tests.learning.policy_stage import finish, start
from tests.tiny_model import make_tiny_model


def stage(folder, model, **inputs):
    folder.mkdir()
    asked = {
        "seed": 0,
        "threads": 1,
        "idle_priority": False,
        "model": str(model),
        "size": asdict(LITTLE),
        "judge": "brevity",
        "engine": {
            "kind": "transformers",
            "socket": str(folder / "e.sock"),
            "max_num_seqs": 16,
        },
    }
    (folder / "stage.json").write_text(json.dumps(asked | inputs))
    return folder


def run(module, folder):
    assert finish(start(module, folder), folder) == 0
    return json.loads((folder / "out" / "figures.json").read_text())


@pytest.mark.slow
def test_raters_rank_and_every_policy_answers(tmp_path):
    model = make_tiny_model(tmp_path / "model")
    collected = stage(tmp_path / "c", model)
    figures = run("deploy.reproduce.collect", collected)
    assert figures["prompts"] == LITTLE.demonstrations + LITTLE.comparisons + LITTLE.validation
    assert all(0 < one["agreed"] <= one["pairs"] for one in figures["agreement"].values())

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    snapshot, flan = collected / "out" / "snapshot", collected / "out" / "flan"
    data = read_feedback(snapshot, tokenizer)
    # a ranking that says nothing but "all alike" is left out by who reads it
    asked = LITTLE.demonstrations + LITTLE.comparisons
    assert asked // 2 <= len(data.split("train")) <= asked
    assert max(len(group.rankings) for group in data.ranked) == 2
    assert 1 <= len(data.split("validation")) <= LITTLE.validation
    assert not any(r.heldout_rater for group in data.ranked for r in group.rankings)
    assert len(read_demonstrations(flan, tokenizer, split="train")) == 11
    prompts = read_prompts(snapshot, "train", tokenizer, longest=1024)
    assert len(prompts) == asked
    for group in data.ranked:
        assert len({ranking.rater for ranking in group.rankings}) == len(group.rankings) <= 2

    save_reward_model(
        init_reward_model(model, head_init_std=0.5, seed=1),
        tmp_path / "reward",
        tokenizer_from=model,
    )
    answered = stage(
        tmp_path / "a",
        model,
        policies={"base": str(model), "prompted": str(model), "still": str(model)},
        shots=str(collected / "out" / "shots.json"),
        reward_model=str(tmp_path / "reward"),
    )
    prefixes = run("deploy.reproduce.answer", answered)["prefixes"]
    assert len(set(prefixes)) > 1
    said = json.loads((answered / "out" / "answers.json").read_text())
    assert [len(one["test"]) for one in said.values()] == [LITTLE.test] * 3
    # equal weights, yet not equal answers: a control has to see how much chance does
    assert said["base"]["test"] != said["still"]["test"]
    assert set(said["base"]["toxicity"]) == {"none", "respectful", "biased"}
    assert "words" in said["base"]
    assert "toxicity" not in said["still"]
