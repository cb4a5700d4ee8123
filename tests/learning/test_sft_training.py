import pytest
import torch
from torch.nn import functional

from learning.sft.steps import (
    add_gradient,
    batches,
    mean_loss,
    residual_dropout,
    with_pretraining_text,
)
from learning.training.models import load_policy
from learning.training.packing import Group
from tests.tiny_model import make_tiny_model

EXAMPLES = [
    Group(prompt=[5, 9, 11, 4], answers=[[7, 8, 2]]),
    Group(prompt=[6, 3], answers=[[12, 13, 14, 15, 2]]),
    Group(prompt=[21, 22, 23], answers=[[24, 2]]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_policy(make_tiny_model(tmp_path_factory.mktemp("tiny")), dtype=torch.float32)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_the_loss_is_the_mean_over_answer_tokens_of_plain_cross_entropy(model):
    sums, tokens = 0.0, 0
    for example in EXAMPLES:
        ids = torch.tensor([[*example.prompt, *example.answers[0]]])
        labels = ids.clone()
        labels[0, : len(example.prompt)] = -100
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        sums += float(functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum"))
        tokens += len(example.answers[0])
    assert mean_loss(model, EXAMPLES, token_budget=64) == pytest.approx(sums / tokens, rel=1e-4)


def test_rows_of_another_size_change_neither_loss_nor_gradient(model):
    loss = add_gradient(model, EXAMPLES, token_budget=64)
    together = gradients(model)
    apart_loss = add_gradient(model, EXAMPLES, token_budget=1)
    apart = gradients(model)
    assert apart_loss == pytest.approx(loss, rel=1e-5)
    assert loss == pytest.approx(mean_loss(model, EXAMPLES, token_budget=8), rel=1e-5)
    for name, gradient in together.items():
        torch.testing.assert_close(apart[name], gradient, rtol=1e-3, atol=1e-6)


def test_dropout_acts_only_within_and_is_gone_after(model):
    plain = mean_loss(model, EXAMPLES, token_budget=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with residual_dropout(model, 0.5):
            dropped = [mean_loss(model, EXAMPLES, token_budget=64) for _ in range(2)]
        with residual_dropout(model, 0.0):
            none = mean_loss(model, EXAMPLES, token_budget=64)
    assert len({plain, *dropped}) == 3
    assert none == plain
    assert mean_loss(model, EXAMPLES, token_budget=64) == plain


def test_dropout_keeps_the_mean_of_what_a_branch_adds(model):
    seen = []
    layer = model.base_model.layers[0].mlp
    states = torch.ones(1, 400, 64) * 0.1
    kept = layer(states)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with residual_dropout(model, 0.2):
            seen = layer(states)
    share = float((seen == 0).float().mean())
    assert share == pytest.approx(0.2, abs=0.02)
    torch.testing.assert_close(seen[seen != 0], (kept / 0.8)[seen != 0])


def test_a_model_of_another_build_is_refused_with_a_way_out(model):
    layers = model.base_model.layers
    model.base_model.layers = torch.nn.ModuleList([torch.nn.Linear(3, 4) for _ in layers])
    try:
        with pytest.raises(ValueError, match="residual_dropout"), residual_dropout(model, 0.2):
            pass
    finally:
        model.base_model.layers = layers


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    examples = [Group(prompt=[1], answers=[[n]]) for n in range(7)]
    planned = batches(examples, epochs=3, batch_size=3, seed=5)
    assert [len(batch) for batch in planned] == [3, 3, 1] * 3
    orders = [sum(planned[at : at + 3], ()) for at in (0, 3, 6)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(orders)) == 3
    assert planned == batches(examples, epochs=3, batch_size=3, seed=5)


@pytest.mark.parametrize(("share", "added"), [(0.0, 0), (0.1, 2), (0.5, 18)])
def test_plain_text_is_so_large_a_share_of_all_examples(share, added):
    demonstrations = [Group(prompt=[1, 4], answers=[[2]])] * 18
    text = [[n, n + 1, n + 2] for n in range(40)]
    mixed = with_pretraining_text(demonstrations, text, share=share)
    assert len(mixed) == 18 + added
    assert [(list(g.prompt), list(g.answers[0])) for g in mixed[18:20]] == [
        ([n], [n + 1, n + 2]) for n in range(min(added, 2))
    ]
