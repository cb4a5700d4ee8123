"""A model whose config asks for dropout learns without it: else no ratio begins at 1."""

import torch

from learning.training.models import init_reward_model, load_policy, scores
from learning.training.packing import Group, attend, pack
from tests.learning.packing_cases import tiny_llama


def test_models_of_every_stage_say_the_same_thing_twice_though_their_config_has_dropout(tmp_path):
    model = tiny_llama()
    model.config.attention_dropout = 0.5
    model.save_pretrained(tmp_path)
    (row,) = pack([Group([3, 4, 5], [[6, 7, 8, 9], [10, 11]])], token_budget=64)
    policy = load_policy(tmp_path)
    assert policy.config.attention_dropout == 0.5
    assert not any(module.training for module in policy.modules())
    assert torch.equal(attend(policy, row), attend(policy, row))
    reward_model = init_reward_model(tmp_path, head_init_std=0.3, seed=1)
    assert not any(module.training for module in reward_model.classifier.modules())
    assert torch.equal(scores(reward_model, row), scores(reward_model, row))
