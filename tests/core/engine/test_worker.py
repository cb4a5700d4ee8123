"""Exchanging two sets of weights and proving it, on small modules that are packed as vLLM packs."""

import hashlib
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import nn

with patch("core.process.die_with_parent"):  # it would bind the tests' own process
    from core.engine import worker
    from core.engine.worker import Staged, SwapExtension

WIDTH, OUTPUTS, WORDS = 5, 7, 11


def packed(weight: torch.Tensor, *, keep: nn.Parameter | None = None) -> nn.Module:
    """A linear layer whose weight (outputs, inputs) only its closure knows, or one that shares."""
    module = nn.Module()
    gone = nn.Parameter(torch.empty(0), requires_grad=False)
    module.weight = gone if keep is None else keep
    module.input_size_per_partition = weight.shape[1]
    own = weight.clone()
    module.cpu_linear = lambda x, _weight, _bias: x @ own.t()
    return module


def model(seed: int) -> nn.Module:
    """An embedding that is also the output layer, a packed layer, and a norm."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    whole = nn.Module()
    embedding = nn.Parameter(draw(WORDS, WIDTH), requires_grad=False)
    whole.embed = packed(embedding, keep=embedding)
    whole.linear = packed(draw(OUTPUTS, WIDTH))
    whole.norm = nn.LayerNorm(WIDTH, elementwise_affine=True).requires_grad_(False)
    whole.norm.weight.data = draw(WIDTH)
    whole.head = packed(embedding, keep=embedding)
    return whole


def engine(live: nn.Module, staged: nn.Module) -> SwapExtension:
    """A worker with one set live and the other staged and proven."""
    extension = SwapExtension()
    extension.model_runner = SimpleNamespace(
        get_model=lambda: live,
        reset_lora_state=lambda: None,
        reset_encoder_cache=lambda: None,
        reset_mm_cache=lambda: None,
    )
    modules = dict(staged.named_modules())
    proofs = {name: worker._proof(module) for name, module in modules.items()}
    extension.staged = extension.second = Staged(modules, proofs)
    return extension


def sums(of: nn.Module) -> dict[str, str]:
    return worker._finish(worker._checksums(dict(of.named_modules())))


def test_checksums_are_those_of_each_weight_and_of_what_is_packed():
    live = model(0)
    found = sums(live)
    assert found.keys() == {
        *("embed.weight", "embed.weight.packed", "linear.weight.packed"),
        *("norm.weight", "norm.bias", "head.weight", "head.weight.packed"),
    }
    raw = live.embed.weight.numpy().tobytes()
    assert found["embed.weight"] == hashlib.sha256(raw).hexdigest()
    turned = live.embed.weight.t().contiguous().numpy().tobytes()
    assert found["embed.weight.packed"] == hashlib.sha256(turned).hexdigest()


def test_checksums_are_the_same_in_whatever_blocks_they_are_made(monkeypatch):
    whole = sums(model(0))
    monkeypatch.setattr(worker, "_ROWS", 2)
    monkeypatch.setattr(worker, "_HASHED_ROWS", 3)
    assert sums(model(0)) == whole


def test_after_an_exchange_every_layer_is_the_staged_one_and_back_again():
    live, other = model(0), model(1)
    old, new = sums(live), sums(other)
    assert engine(live, other).install() == {}
    assert (sums(live), sums(other)) == (new, old)
    assert live.embed.weight is live.head.weight
    assert engine(live, other).install() == {}
    assert (sums(live), sums(other)) == (old, new)


@pytest.mark.parametrize("layer", ["linear", "embed", "head"])
def test_a_packed_layer_that_was_not_exchanged_is_found_before_anything_is_generated(
    monkeypatch, layer
):
    live, other = model(0), model(1)
    exchange = worker._exchange

    def forgetful(mine, staged):
        kept = mine[layer].cpu_linear
        exchange(mine, staged)
        mine[layer].cpu_linear = kept

    monkeypatch.setattr(worker, "_exchange", forgetful)
    assert engine(live, other).install() == {"wrong": layer}


def test_a_plain_weight_that_was_not_exchanged_is_found_before_anything_is_generated(monkeypatch):
    live, other = model(0), model(1)
    exchange = worker._exchange

    def forgetful(mine, staged):
        kept = mine["norm"].weight.data
        exchange(mine, staged)
        mine["norm"].weight.data = kept

    monkeypatch.setattr(worker, "_exchange", forgetful)
    assert engine(live, other).install() == {"wrong": "norm"}


def test_a_single_wrong_weight_of_a_packed_layer_changes_its_checksum_alone():
    live = model(0)
    before = sums(live)
    linear = live.linear.cpu_linear
    wrong = torch.zeros(WIDTH, OUTPUTS)
    wrong[3, 2] = 1e-3
    live.linear.cpu_linear = lambda x, weight, bias: linear(x, weight, bias) + x @ wrong
    after = sums(live)
    assert [name for name in before if before[name] != after[name]] == ["linear.weight.packed"]


def test_work_goes_on_in_slices_and_its_result_comes_once():
    other = model(1)
    extension = engine(model(0), other)
    extension.begin("checksums")
    assert extension.staged is None  # what was staged before is freed
    assert sums(other) == {}
    replies = [extension.go_on(0.0)]
    while "done" not in replies[-1]:
        assert replies[-1] == {}
        replies.append(extension.go_on(0.0))
    assert len(replies) > 4
    assert replies[-1] == {"done": sums(model(0))}
    assert extension.go_on(1.0) == {}


def test_nothing_is_installed_that_was_not_staged():
    live = model(0)
    extension = engine(live, model(1))
    extension.begin("checksums")
    before = sums(live)
    with pytest.raises(RuntimeError, match="nothing is staged"):
        extension.install()
    assert sums(live) == before
