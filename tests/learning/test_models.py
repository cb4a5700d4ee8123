"""Reward models: read where they should be, and the same to anybody who loads the folder."""

import json

import pytest
import torch
from transformers import AutoModelForTokenClassification

from learning.training.models import (
    ending_tokens,
    init_reward_model,
    load_policy,
    load_reward_model,
    save_folder,
    save_reward_model,
    scores,
    token_scores,
)
from learning.training.packing import attend, pack
from tests.learning.packing_cases import GROUPS, WIDTH, tiny_llama

ENDED = [(g.prompt, a) for g in GROUPS for a in g.answers]


@pytest.fixture
def anchor(tmp_path):
    folder = tmp_path / "anchor"
    tiny_llama().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("template")
    return folder


@pytest.fixture
def reward_model(anchor):
    return init_reward_model(anchor, head_init_std=0.5, seed=4, dtype=torch.float32)


def _scores(model, budget=99):
    with torch.no_grad():
        return torch.cat([scores(model, row) for row in pack(GROUPS, token_budget=budget)])


def test_the_body_is_the_anchors_and_the_head_is_drawn_from_the_seed(anchor, reward_model):
    policy = load_policy(anchor, dtype=torch.float32)
    (row,) = pack(GROUPS, token_budget=99)
    torch.testing.assert_close(attend(reward_model.classifier, row), attend(policy, row))
    again = init_reward_model(anchor, head_init_std=0.5, seed=4, dtype=torch.float32)
    other = init_reward_model(anchor, head_init_std=0.5, seed=5, dtype=torch.float32)
    assert torch.equal(again.head, reward_model.head)
    assert not torch.equal(other.head, reward_model.head)
    assert reward_model.head.std().item() == pytest.approx(0.5, rel=0.5)


def test_a_head_of_zeros_scores_zero(anchor):
    model = init_reward_model(anchor, head_init_std=0.0, seed=0, dtype=torch.float32)
    assert _scores(model).tolist() == [0.0] * 6


def test_a_score_is_the_mean_of_the_projection_over_the_answers_tokens(reward_model):
    (row,) = pack(GROUPS, token_budget=99)
    with torch.no_grad():
        every = token_scores(reward_model, row)
        hidden = attend(reward_model.classifier, row)[0]
    assert every.shape == (28,)
    torch.testing.assert_close(every, (hidden @ reward_model.head.T).squeeze(-1))
    by_hand = [every[row.answer_index == number].mean() for number in row.answer_ids]
    torch.testing.assert_close(_scores(reward_model), torch.stack(by_hand))


def test_padding_has_an_id_that_ends_no_answer(anchor, reward_model):
    config = reward_model.classifier.config
    assert ending_tokens(config) == {2}
    assert config.pad_token_id == 0
    anchor_config = json.loads((anchor / "config.json").read_text())
    assert anchor_config["pad_token_id"] == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_saved_folder_scores_alike_in_transformers_own_class(
    tmp_path, anchor, reward_model, side
):
    reward_model.rescale(1.7, -0.3)
    save_reward_model(reward_model, tmp_path / "saved", tokenizer_from=anchor)
    library = AutoModelForTokenClassification.from_pretrained(
        tmp_path / "saved", dtype=torch.float32
    )
    pad = library.config.pad_token_id
    sequences = [[*prompt, *answer] for prompt, answer in ENDED]
    longest = max(map(len, sequences))
    fill = [[pad] * (longest - len(s)) for s in sequences]
    rows = [f + s if side == "left" else s + f for f, s in zip(fill, sequences, strict=True)]
    ids = torch.tensor(rows)
    # positions by hand: the library counts them from the row's start, padding included
    positions = torch.tensor(
        [
            [0] * len(f) + list(range(len(s))) if side == "left" else list(range(longest))
            for f, s in zip(fill, sequences, strict=True)
        ]
    )
    with torch.no_grad():
        logits = library(ids, attention_mask=ids != pad, position_ids=positions).logits
    means = [
        logits[i, len(f) + len(prompt) : len(f) + len(prompt) + len(answer), 0].mean()
        if side == "left"
        else logits[i, len(prompt) : len(prompt) + len(answer), 0].mean()
        for i, (f, (prompt, answer)) in enumerate(zip(fill, ENDED, strict=True))
    ]
    assert library.num_labels == 1
    torch.testing.assert_close(torch.stack(means), _scores(reward_model), rtol=1e-4, atol=1e-5)


def test_loading_gives_back_the_same_scores(tmp_path, anchor, reward_model):
    reward_model.rescale(0.8, 2.5)
    save_reward_model(reward_model, tmp_path / "saved", tokenizer_from=anchor)
    loaded = load_reward_model(tmp_path / "saved", dtype=torch.float32)
    torch.testing.assert_close(_scores(loaded), _scores(reward_model))
    assert loaded.bias.item() == pytest.approx(2.5)
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == "template"


def test_rescaling_turns_every_score_into_gain_times_score_plus_bias(reward_model):
    reward_model.rescale(1.0, 0.4)
    before = _scores(reward_model)
    reward_model.rescale(-2.0, 3.0)
    torch.testing.assert_close(_scores(reward_model), -2.0 * before + 3.0)


def test_in_bf16_the_head_stays_fp32_and_the_saved_one_is_rounded(tmp_path, anchor):
    model = init_reward_model(anchor, head_init_std=0.5, seed=4)
    assert model.classifier.dtype == torch.bfloat16
    assert model.head.dtype == torch.float32
    save_reward_model(model, tmp_path / "saved", tokenizer_from=anchor)
    assert model.head.dtype == torch.float32
    loaded = load_reward_model(tmp_path / "saved")
    assert loaded.head.dtype == torch.float32
    assert torch.equal(loaded.head, model.head.bfloat16().float())
    torch.testing.assert_close(_scores(loaded), _scores(model), rtol=0.02, atol=0.02)


def test_the_end_tokens_embedding_learns_though_the_config_calls_it_padding(anchor):
    policy = load_policy(anchor, dtype=torch.float32)
    (row,) = pack(GROUPS, token_budget=99)
    attend(policy, row).square().sum().backward()
    gradient = policy.get_input_embeddings().weight.grad
    assert policy.config.pad_token_id == 2
    assert gradient.shape == (61, WIDTH)
    assert gradient[2].abs().max() > 0


def test_a_saved_policy_loads_again_with_its_tokenizer_files(tmp_path, anchor):
    policy = load_policy(anchor)
    with torch.no_grad():
        policy.model.norm.weight.fill_(2.0)
    save_folder(policy, tmp_path / "next", tokenizer_from=anchor)
    again = load_policy(tmp_path / "next")
    assert again.dtype == torch.bfloat16
    for (name, one), (_, other) in zip(
        policy.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert (tmp_path / "next" / "tokenizer.json").is_file()
