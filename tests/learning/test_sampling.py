"""Drawing tokens: as often as they are likely, and by each request's own numbers."""

from types import SimpleNamespace

import pytest
import torch

from core.errors import NotFinite
from learning.training.sampling import Draw, drawn, uniform


def test_numbers_spread_evenly_draw_each_token_as_often_as_it_is_likely() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0, 0.9]])
    numbers = torch.arange(1000) / 1000
    for row in probabilities:
        tokens = drawn(row.log().expand(1000, 6), numbers)
        counts = torch.bincount(tokens[:, 0], minlength=6) / 1000
        assert torch.allclose(counts, row, atol=0.0011)
        assert int(counts[row == 0.0].sum()) == 0
    largest = torch.tensor([1.0 - 2.0**-24])
    assert drawn(probabilities[:1].log(), largest).tolist() == [[4]]


def begin(draw: Draw, *names: str) -> None:
    requests = [
        SimpleNamespace(state=SimpleNamespace(request_id=name), has_new_token=bool(name))
        for name in names
    ]
    draw.prepare_tensor_args(requests, torch.empty(0))


def test_each_request_draws_by_its_own_numbers_in_whatever_company() -> None:
    logits = torch.linspace(-1.0, 1.0, 50).repeat(3, 1)
    draw = Draw(seed=20, temperature=0.5)
    for number, name in enumerate(("a", "b", "c")):
        draw.expect(name, number, 2)
    begin(draw, "c", "", "a")  # one is still reading its prompt
    first = draw(torch.empty(0), logits, torch.empty(0)).argmax(-1)
    begin(draw, "b", "a")
    second = draw(torch.empty(0), logits[:2], torch.empty(0)).argmax(-1)
    logprobs = (logits[0] / 0.5).log_softmax(-1)
    numbers = {name: uniform(20 + number, 2) for number, name in enumerate(("a", "b", "c"))}
    expected = [numbers["c"][0], numbers["a"][0], numbers["b"][0], numbers["a"][1]]
    tokens = [*first[:2].tolist(), *second.tolist()]
    assert tokens == drawn(logprobs.expand(4, 50), torch.tensor(expected))[:, 0].tolist()
    assert draw.taken("a") == pytest.approx([float(logprobs[tokens[k]]) for k in (1, 3)])
    assert draw.taken("c") == pytest.approx([float(logprobs[tokens[0]])])


def test_logits_that_are_no_numbers_are_named() -> None:
    draw = Draw(seed=1, temperature=1.0)
    draw.expect("a", 0, 3)
    begin(draw, "a")
    with pytest.raises(NotFinite):
        draw(torch.empty(0), torch.full((1, 9), torch.nan), torch.empty(0))
