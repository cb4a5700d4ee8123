"""Attention over transformers' paged cache for requests of different lengths, without its waste.

A step of continuous batching has the queries of all requests in one row. The library's own way
where there is no flash attention is one product of all queries with all keys, of which a mask
leaves a request's own: with 32 requests 31 in 32 products are thrown away. Here the requests with
one query, which are those that go on with an answer, each meet their own keys, in one batch; a
prompt's queries meet theirs by themselves. It reads and writes through the library's cache, whose
read index it lays out anew. Knows full attention only, no requests and no sampling:
learning/training/transformers_engine.py says what a step is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PAGED_ATTENTION = "paged_by_request"
"""The name by which a model of transformers is told to use it."""


@dataclass(frozen=True)
class Step:
    """Which queries and keys of a row belong together; `requests` are in the order of the row."""

    singles: Tensor
    """(num_singles,) int64: where the queries of requests with one query are"""
    longest: int
    """Keys that each of these has when padded"""
    mask: Tensor
    """(num_singles, 1, 1, longest) bool, False at padding"""
    prompts: tuple[tuple[int, int, int], ...]
    """(first query, queries, keys) of each other request"""
    read_index: Tensor
    """Places in the cache: those of the singles, padded, then those of the prompts; empty where no
    request has anything in the cache yet"""


def step_of(requests: Sequence[tuple[int, int]], read_index: Tensor) -> Step:
    """The step of requests with so many (queries, keys), whose keys stand in `read_index`.

    Keys count the queries' own. `read_index` is (all keys,), request by request, or empty where
    every request begins in this step: then keys are as many as queries and come with them.
    """
    device = read_index.device
    cached = read_index.numel() > 0
    queries, keys, first_query, first_key = _beginnings(requests)
    singles = [i for i, count in enumerate(queries) if count == 1 and cached]
    others = [i for i in range(len(requests)) if queries[i] and i not in set(singles)]
    longest = max((keys[i] for i in singles), default=0)
    lengths = torch.tensor([keys[i] for i in singles], dtype=torch.int64, device=device)
    first = torch.tensor([first_key[i] for i in singles], dtype=torch.int64, device=device)
    place = torch.arange(longest, device=device)[None]
    # padding repeats a request's last key, which the mask then hides
    padded = first[:, None] + torch.minimum(place, lengths[:, None] - 1)
    parts = [padded.flatten()]
    parts += [torch.arange(first_key[i], first_key[i] + keys[i], device=device) for i in others]
    return Step(
        singles=torch.tensor([first_query[i] for i in singles], dtype=torch.int64, device=device),
        longest=longest,
        mask=(place < lengths[:, None])[:, None, None],
        prompts=tuple((first_query[i], queries[i], keys[i]) for i in others),
        read_index=read_index[torch.cat(parts)] if cached else read_index,
    )


def _beginnings(
    requests: Sequence[tuple[int, int]],
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Queries and keys of each request, and where those of each begin."""
    queries, keys = [q for q, _ in requests], [k for _, k in requests]
    return queries, keys, [0, *accumulate(queries)], [0, *accumulate(keys)]


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    step: Step,
    cache: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """(1, heads, queries, size) and (1, key-value heads, queries, size) -> (1, queries, heads,
    size): the step's new keys and values go into the cache, and each request meets its own."""
    options["read_index"] = [step.read_index]
    key, value = cache.update(key, value, module.layer_idx, options)
    found = torch.empty_like(query).transpose(1, 2)  # (1, queries, heads, size)
    padded = len(step.singles) * step.longest
    if padded:
        found[0, step.singles] = _one_each(
            query[0, :, step.singles], key[0, :, :padded], value[0, :, :padded], step, scaling
        )
    for first, queries, keys in step.prompts:
        own = slice(padded, padded + keys)
        part = query[:, :, first : first + queries]
        found[:, first : first + queries] = _causal(part, key[:, :, own], value[:, :, own], scaling)
        padded += keys
    return found, None


def _one_each(
    query: Tensor, key: Tensor, value: Tensor, step: Step, scaling: float | None
) -> Tensor:
    """(heads, singles, size) and (key-value heads, singles x longest, size) -> (singles, heads,
    size). Heads that share keys are the queries of one product, so keys are not repeated."""
    heads, count, size = query.shape
    shared = key.shape[0]
    keys, values = (
        cached.reshape(shared, count, step.longest, size).transpose(0, 1) for cached in (key, value)
    )  # (singles, key-value heads, longest, size)
    queries = query.transpose(0, 1).reshape(count, shared, heads // shared, size)
    found = scaled_dot_product_attention(queries, keys, values, attn_mask=step.mask, scale=scaling)
    return found.reshape(count, heads, size)


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """(1, heads, queries, size) and (1, key-value heads, keys, size) -> (1, queries, heads, size):
    the last query sees all keys, each before it one fewer."""
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if keys > queries:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    ).transpose(1, 2)


AttentionInterface.register(PAGED_ATTENTION, paged_attention)
