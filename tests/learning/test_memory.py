from dataclasses import replace

import pytest
import torch

from learning.training.memory import (
    GIB,
    Need,
    NotEnoughMemory,
    activation_bytes_per_token,
    announce,
    available_bytes,
    memory_figures,
    need_of,
    require_room,
)
from learning.training.models import load_policy
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_policy(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def need(**changes):
    fields = {"held": 100, "optimiser": 400, "per_token": 7.0, "logits": 90, "token_budget": 30}
    return Need(**{**fields, **changes})


def test_a_need_is_what_is_held_and_what_comes_with_a_tenth_to_spare():
    assert need().total == pytest.approx(870, abs=1)  # 1.1 x (400 + 210 + 90)


def test_the_largest_budget_is_the_largest_that_fits():
    available = 2_000
    largest = need().largest_budget(available)
    assert need(token_budget=largest).total <= available
    assert need(token_budget=largest + 1).total > available


def test_a_copy_for_the_engine_counts():
    assert need(whole=300).total == pytest.approx(870 + 1.1 * 300, abs=1)
    largest = need(whole=300).largest_budget(2_000)
    assert need(whole=300, token_budget=largest).total <= 2_000
    assert need(whole=300, token_budget=largest + 1).total > 2_000


def test_what_fits_is_let_through_and_what_does_not_says_what_to_change():
    require_room(need(), 871)
    big = need(held=GIB, optimiser=2 * GIB, per_token=2.0**20, token_budget=4096)
    with pytest.raises(NotEnoughMemory, match=r"this needs 7\.6 GiB and there are 6\.0: lower"):
        require_room(big, 6 * GIB)
    with pytest.raises(NotEnoughMemory, match="smaller model"):
        require_room(big, 3 * GIB)


def test_lora_is_offered_where_it_would_fit():
    lora = need(held=GIB, optimiser=GIB, per_token=2.0**20, token_budget=1024)
    big = replace(lora, optimiser=20 * GIB, lora=lora)
    offer = r"set lora_rank to 16, with which it needs about 3\.2 GiB$"  # 1 + 1.1 x (1 + 1)
    with pytest.raises(NotEnoughMemory, match=rf"needs 24\.1 GiB and there are 4\.0: {offer}"):
        require_room(big, 4 * GIB)
    with pytest.raises(
        NotEnoughMemory, match=rf"there are 24\.0: lower token_budget .* or {offer}"
    ):
        require_room(big, 24 * GIB)
    with pytest.raises(NotEnoughMemory, match="there are 3.0: take a smaller model"):
        require_room(big, 3 * GIB)


def test_two_models_that_learn_hold_two_states_and_one_gradient_and_a_copy_of_one(model):
    weights = sum(p.numel() for p in model.parameters())
    both = need_of([model, model], model, token_budget=512, chunk=0, copy_bytes=4)
    assert both.optimiser == (12 + 12 + 4 + 4) * weights
    assert both.logits == 0


def test_what_is_needed_is_said_before_it_is_refused(model, caplog):
    caplog.set_level("INFO")
    cpu = torch.device("cpu")
    announce(need(held=GIB, optimiser=GIB // 10), cpu)
    assert "needs about 1.11 GiB, " in caplog.text
    with pytest.raises(NotEnoughMemory, match="this needs .* lower token_budget from 1048576 to"):
        announce(need(held=GIB, per_token=2.0**22, token_budget=2**20), cpu)
    assert "needs about 4506.60 GiB, " in caplog.text  # 1 + 1.1 x 4096


def test_frozen_weights_need_no_optimiser(model):
    everything = need_of([model], model, token_budget=512)
    assert everything.optimiser == 16 * sum(p.numel() for p in model.parameters())
    model.get_input_embeddings().requires_grad_(False)
    less = need_of([model], model, token_budget=512)
    model.requires_grad_(True)
    assert everything.optimiser - less.optimiser == 16 * 49152 * 64


def test_weights_that_nobody_has_read_yet_count_as_held(model, tmp_path):
    size = 1 << 25  # numbers of two bytes each
    (tmp_path / "weights").write_bytes(bytes(2 * size))
    mapped = torch.from_file(str(tmp_path / "weights"), size=size, dtype=torch.bfloat16)
    other = torch.nn.Module()
    other.weight = torch.nn.Parameter(mapped, requires_grad=False)
    before = need_of([model], model, token_budget=512)
    with_other = need_of([model], model, token_budget=512, beside=[other])
    assert with_other.held - before.held == pytest.approx(2 * size, rel=0.2)
    assert with_other.optimiser == before.optimiser


def test_what_a_backward_pass_keeps_grows_with_the_layers_and_not_with_the_weights(model):
    both = activation_bytes_per_token(model)
    layers = model.base_model.layers
    model.base_model.layers = layers[:1]
    try:
        one = activation_bytes_per_token(model)
    finally:
        model.base_model.layers = layers
    assert one < both < 2 * one
    # at least the inputs of the seven projections of two layers, in bf16
    assert both > 2 * 2 * (5 * 64 + 96 + 128)
    assert both < 49152 * 64


def test_the_real_peak_is_reported_beside_the_predicted_one(model):
    figures = memory_figures(need(held=3 * GIB), torch.device("cpu"))
    assert figures["predicted_gib"] == 3.0
    assert 0.1 < figures["peak_gib"] < 64
    assert available_bytes(torch.device("cpu")) > 0.1 * GIB
