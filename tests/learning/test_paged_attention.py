"""Attention over the paged cache: as plain attention has it, whatever a step is made of."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from learning.training.paged_attention import paged_attention, step_of

HEADS, SHARED, SIZE = 6, 2, 4


class Cache:
    """Keys and values of requests, scattered over more places than they need."""

    def __init__(self, requests, generator) -> None:
        self.tokens = sum(keys for _, keys in requests)
        self.places = torch.randperm(3 * self.tokens, generator=generator)[: self.tokens]
        shape = (3 * self.tokens, SHARED, SIZE)
        self.keys, self.values = torch.full(shape, torch.nan), torch.full(shape, torch.nan)

    def update(self, key, value, layer, options):
        for held, new in ((self.keys, key), (self.values, value)):
            held[options["write_index"][0]] = new[0].transpose(0, 1)
        (index,) = options["read_index"]
        if not len(index):
            return key, value
        return tuple(held[index].transpose(0, 1)[None] for held in (self.keys, self.values))


@pytest.mark.parametrize(
    "requests",
    [
        [(1, 5), (1, 9), (1, 2)],  # all go on with answers
        [(4, 4), (1, 1), (3, 3)],  # all begin
        [(1, 7), (4, 4), (1, 3), (3, 8)],  # one goes on with its prompt
        [(1, 7), (0, 2), (5, 6)],  # one has nothing to read in this step
    ],
)
def test_each_request_meets_its_own_keys_and_no_others(requests) -> None:
    generator = torch.Generator().manual_seed(2)
    cache = Cache(requests, generator)
    query = torch.randn(1, HEADS, sum(q for q, _ in requests), SIZE, generator=generator)
    pairs = [torch.randn(2, SHARED, keys, SIZE, generator=generator) for _, keys in requests]
    begins = all(queries == keys for queries, keys in requests)
    place = torch.split(cache.places, [keys for _, keys in requests])
    for (queries, keys), (key, value), own in zip(requests, pairs, place, strict=True):
        old = keys - queries
        cache.keys[own[:old]] = key[:, :old].transpose(0, 1)
        cache.values[own[:old]] = value[:, :old].transpose(0, 1)
    news = [pair[:, :, keys - q :] for pair, (q, keys) in zip(pairs, requests, strict=True)]
    key, value = torch.cat(news, dim=2)
    written = [own[keys - q :] for own, (q, keys) in zip(place, requests, strict=True)]
    found, _ = paged_attention(
        SimpleNamespace(layer_idx=0), query, key[None], value[None], None,
        step=step_of(requests, cache.places[:0] if begins else cache.places),
        cache=cache, scaling=0.3, write_index=[torch.cat(written)],
    )  # fmt: skip
    parts = torch.split(query, [q for q, _ in requests], dim=2)
    for part, pair, result in zip(
        parts, pairs, torch.split(found, [q for q, _ in requests], dim=1), strict=True
    ):
        count, keys = part.shape[2], pair.shape[2]
        mask = torch.ones(count, keys, dtype=torch.bool).tril(keys - count)
        both = pair.repeat_interleave(HEADS // SHARED, dim=1)
        plain = scaled_dot_product_attention(part, both[:1], both[1:], attn_mask=mask, scale=0.3)
        assert torch.allclose(result, plain.transpose(1, 2), atol=1e-6)
