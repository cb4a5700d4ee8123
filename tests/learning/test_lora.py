"""Adapters in a model: what they begin as, what they leave alone, and what becomes of them."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from learning.policy.experience import row_logprobs
from learning.training.lora import (
    NoSuchLayer,
    adapter_weights,
    adapters,
    add_adapters,
    has_adapters,
    merged,
    without_adapters,
)
from learning.training.models import init_reward_model, load_reward_model, scores
from learning.training.optimizer import MasterAdamW
from learning.training.packing import pack
from tests.learning.packing_cases import GROUPS, tiny_llama
from tests.learning.ppo_loop import write_models

RANK, ALPHA = 5, 7.0
(ROW,) = pack(GROUPS, token_budget=64)


def fresh() -> PreTrainedModel:
    return tiny_llama(seed=4)


def adapted(
    *, dtype: torch.dtype = torch.float32, learned: bool = True, **options
) -> PreTrainedModel:
    """With adapters that say something, unless they have not `learned` yet."""
    model = fresh().to(dtype)
    add_adapters(model, **{"rank": RANK, "alpha": ALPHA, "seed": 3} | options)
    if learned:
        say_something(model)
    return model


def say_something(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def logprobs(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return row_logprobs(model, ROW, temperature=1.0)[0]


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_begin_as_nothing(dtype: torch.dtype) -> None:
    model, base = adapted(dtype=dtype, learned=False), fresh().to(dtype)
    assert torch.equal(logprobs(model), logprobs(base))
    whole = merged(model, lambda: fresh().to(dtype))
    assert_same(state(whole), state(base))


def test_adapters_alone_learn_in_every_layer_of_attention_and_feed_forward() -> None:
    model = adapted()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert adapters(model).keys() == learning.keys()
    assert len(learning) == 2 * 7 * 3  # A and B beside seven matrices of three layers
    assert sum(p.numel() for p in learning.values()) == adapter_weights(fresh(), rank=RANK)
    # by hand: q and o 24 x 24, k and v 24 x 8, gate, up and down 24 x 34
    assert adapter_weights(fresh(), rank=1) == 3 * (2 * 48 + 2 * 32 + 3 * 58)
    assert has_adapters(model)
    assert not has_adapters(fresh())


def test_a_step_moves_the_adapters_and_nothing_else() -> None:
    model = adapted(dtype=torch.bfloat16, learned=False)
    before = state(model)
    optimiser = MasterAdamW(model.parameters())
    for _ in range(2):  # A has no gradient while B is zero
        found, _ = row_logprobs(model, ROW, temperature=1.0)
        torch.autograd.backward(-found.sum())
        optimiser.step(learning_rate=0.01)
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {name for name in before if "lora_" in name}
    assert all(master.dtype == torch.float32 for master in optimiser.masters)


def test_merged_weights_are_those_that_peft_merges() -> None:
    model = adapted()
    names = sorted({name.split(".")[-4] for name in adapters(model)})
    theirs = get_peft_model(fresh(), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names))
    places = dict(theirs.get_base_model().named_parameters())
    with torch.no_grad():
        for name, tensor in adapters(model).items():
            places[name].copy_(tensor)
    whole, expected = state(merged(model, fresh)), state(theirs.merge_and_unload())
    assert whole.keys() == expected.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_the_merged_model_says_what_the_adapted_one_says(dtype: torch.dtype, far: float) -> None:
    model = adapted(dtype=dtype)
    whole = merged(model, lambda: fresh().to(dtype))
    assert not has_adapters(whole)
    assert (logprobs(whole) - logprobs(model)).abs().max() < far
    assert (logprobs(model) - logprobs(fresh().to(dtype))).abs().max() > 2 * far


def test_merging_adds_in_fp32_rounds_once_and_leaves_the_model_that_learns_alone() -> None:
    model = adapted(dtype=torch.bfloat16)
    before = state(model)
    whole = merged(model, lambda: fresh().bfloat16())
    assert_same(state(model), before)
    name = "model.layers.1.mlp.down_proj"  # (24, 34)
    a, b = (before[f"{name}.lora_{part}.default.weight"].double() for part in "AB")
    exact = before[f"{name}.base_layer.weight"].double() + ALPHA / RANK * (b @ a)
    found = whole.get_parameter(f"{name}.weight")
    assert found.dtype == torch.bfloat16
    assert (found == exact.bfloat16()).float().mean() > 0.99  # ties of fp32 sums aside
    other = {n: 2.0 * t.float() if "lora_B" in n else t.float() for n, t in adapters(model).items()}
    twice = merged(model, lambda: fresh().bfloat16(), instead=other)
    exact += ALPHA / RANK * (b @ a)
    assert (twice.get_parameter(f"{name}.weight") == exact.bfloat16()).float().mean() > 0.99


def test_without_its_adapters_a_model_is_what_it_was() -> None:
    model = adapted()
    with_them = logprobs(model)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    with without_adapters(model) as base:
        assert torch.equal(logprobs(base), logprobs(fresh()))
        assert {name for name, p in base.named_parameters() if p.requires_grad} == learning
    assert torch.equal(logprobs(model), with_them)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    with without_adapters(plain := fresh()) as same:
        assert same is plain
        assert all(p.requires_grad for p in same.parameters())


def test_a_value_model_learns_its_head_and_the_top_layers_and_is_still_the_reward_model(
    tmp_path: Path,
) -> None:
    folder = write_models(tmp_path)["reward"]
    before, value = load_reward_model(folder), load_reward_model(folder)
    add_adapters(value.classifier, rank=2, alpha=4.0, seed=0, frozen_share=0.5, heads=["score"])
    learning = [name for name, p in value.named_parameters() if p.requires_grad]
    assert {name.split(".")[3] for name in learning if "lora" in name} == {"2"}  # of 0, 1, 2
    assert [name.split(".")[-1] for name in learning if "lora" not in name] == ["weight", "bias"]
    say_something(value)
    with torch.no_grad():
        assert not torch.equal(scores(value, ROW), scores(before, ROW))
        with without_adapters(value) as reward_model:
            assert torch.equal(reward_model.head, before.head)
            assert torch.equal(scores(reward_model, ROW), scores(before, ROW))
    assert not torch.equal(value.head, before.head)
    assert value.bias.requires_grad


def test_the_last_layer_learns_though_all_should_be_frozen(tmp_path: Path) -> None:
    model = init_reward_model(write_models(tmp_path)["policy"], head_init_std=0.1, seed=1)
    add_adapters(model.classifier, rank=2, alpha=4.0, seed=0, frozen_share=1.0)
    assert {name.split(".")[2] for name in adapters(model.classifier)} == {"2"}


def test_named_layers_alone_get_adapters() -> None:
    model = adapted(targets=["v_proj", "mlp.up_proj"])
    assert {name.split(".")[-4] for name in adapters(model)} == {"v_proj", "up_proj"}
    with pytest.raises(NoSuchLayer, match=r"no linear layers proj, w1 .* down_proj, gate_proj, k_"):
        adapted(targets=["w1", "v_proj", "proj"])


def test_what_is_drawn_follows_from_the_seed_alone() -> None:
    noise = torch.get_rng_state()
    one, other, third = (adapters(adapted(seed=seed, learned=False)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(torch.equal(one[name], third[name]) for name in one if "lora_A" in name)
