"""Attention for packed rows, for models of transformers to use by name.

Most of a row's square is masked: an answer sees its prompt and itself. On a CPU all answers of a
prompt therefore meet its keys and their own in one product of matrices, which takes a fraction of
the time of PyTorch's fused kernel: that one's backward pass is slow and visits masked blocks too.
On an accelerator the mask comes by blocks, and FlexAttention, compiled once, skips those that
nobody may see. Very long groups on a CPU are left to the fused kernel; rotary positions, heads and
caches stay transformers' business.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "packed"
"""Pass as `attn_implementation` when loading a model."""
LONGEST_PLAIN_GROUP = 1024
"""Tokens above which the weights of a group (heads x length x length) would take too much room."""
_MOST_PADDING = 0.5


class Block(NamedTuple):
    """Sequences of a row that are attended to at once; answers are made as long as the longest."""

    lengths: tuple[int, ...]
    """Tokens of each, not 0"""
    behind_prompt: bool
    """Whether each sees all of the last block that is not, too"""

    @property
    def longest(self) -> int:
        """Tokens of each when padded."""
        return max(self.lengths)


@dataclass(frozen=True)
class Spans:
    """Where the groups of a row are: the tokens of each prompt and of the answers behind it."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @cached_property
    def group_lengths(self) -> tuple[int, ...]:
        """Tokens of each group; they add up to those of the row."""
        return tuple(prompt + sum(answers) for prompt, answers in self.groups)

    @property
    def are_short(self) -> bool:
        """Whether no group is too long for the plain products."""
        return max(self.group_lengths) <= LONGEST_PLAIN_GROUP

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """One block for each group with a single answer, else the prompt's and the answers'.

        Answers of very different lengths get a block each: padding would be most of theirs.
        """
        found: list[Block] = []
        for prompt, answers in self.groups:
            if len(answers) == 1:
                found.append(Block((prompt + answers[0],), behind_prompt=False))
            else:
                found.append(Block((prompt,), behind_prompt=False))
                alike = _padding_share(prompt, answers) <= _MOST_PADDING
                together = [answers] if alike else [(answer,) for answer in answers]
                found += [Block(lengths, behind_prompt=True) for lengths in together]
        return tuple(found)

    @cached_property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Of each sequence of the blocks, its tokens and those that make it as long as others."""
        return tuple(
            (length, block.longest - length) for block in self.blocks for length in block.lengths
        )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float | None = None,
    spans: Spans | None = None,
    **options: Any,  # of other kernels
) -> tuple[Tensor, None]:
    """Attention within each group of a row; the signature is transformers'.

    `query` (1, heads, length, head_dim), `key` and `value` (1, kv_heads, length, head_dim),
    `attention_mask` (1, 1, length, length) to be added, or by blocks. A CPU goes by `spans`, of
    `length` tokens together, where they are short, and by the mask where not. Returns
    (1, length, heads, head_dim).
    """
    if isinstance(attention_mask, BlockMask):
        return _by_blocks(query, key, value, attention_mask, scaling), None
    is_left_out = attention_mask is not None and attention_mask.shape[-1] < key.shape[2]
    if spans is None and is_left_out:
        raise TypeError(
            f"{type(module).__name__} does not hand on where groups are: load it with "
            "attn_implementation='sdpa'"
        )
    if spans is None or not spans.are_short or query.device.type != "cpu":
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (states[0].transpose(0, 1) for states in (query * scale, key, value))
    if not any(missing for _, missing in spans.padding):
        return torch.cat(list(_by_span(q, k, v, spans)))[None], None
    q, k, v = (_padded(states, spans) for states in (q, k, v))
    return _unpadded(torch.cat(list(_by_span(q, k, v, spans))), spans)[None], None


def _by_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None
) -> Tensor:
    """FlexAttention over the whole row; key heads are shared, not copied."""
    attend: Callable[..., Any] = flex_attention
    if query.device.type != "cpu":
        attend = _compiled_flex()
    mixed: Tensor = attend(
        query,
        key,
        value,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2).contiguous()  # (1, length, heads, head_dim)


@cache
def _compiled_flex() -> Callable[..., Any]:
    """The fused kernel; compiled for any length of row, because no two rows are alike."""
    return torch.compile(flex_attention, dynamic=True)


def _padding_share(prompt: int, answers: Sequence[int]) -> float:
    """Of the weights that answers get when all are as long as the longest."""
    needed = sum(answer * (prompt + answer) for answer in answers)
    return 1.0 - needed / (len(answers) * max(answers) * (prompt + max(answers)))


def _padded(states: Tensor, spans: Spans) -> Tensor:
    """(length, heads, head_dim) with zeros behind each sequence shorter than others of its block.

    Splitting and joining, whose backward passes are the same, is faster than an index.
    """
    longest = max(missing for _, missing in spans.padding)
    zeros = states.new_zeros(longest, *states.shape[1:])
    pieces = torch.split(states, [length for length, _ in spans.padding])
    both = zip(pieces, spans.padding, strict=True)
    return torch.cat([part for piece, (_, missing) in both for part in (piece, zeros[:missing])])


def _unpadded(states: Tensor, spans: Spans) -> Tensor:
    """The inverse of `_padded`."""
    return torch.cat(torch.split(states, [n for both in spans.padding for n in both])[::2])


def _by_span(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Iterator[Tensor]:
    """Block after block of (padded length, heads or kv_heads, head_dim)."""
    sizes = [len(block.lengths) * block.longest for block in spans.blocks]
    prompt: tuple[Tensor, Tensor] | None = None
    pieces = (torch.split(states, sizes) for states in (query, key, value))
    for block, queries, keys, values in zip(spans.blocks, *pieces, strict=True):
        seen = prompt if block.behind_prompt else None
        yield _attended(queries, keys, values, seen, count=len(block.lengths))
        prompt = seen or (keys, values)


def _attended(
    query: Tensor, key: Tensor, value: Tensor, prompt: tuple[Tensor, Tensor] | None, *, count: int
) -> Tensor:
    """Of `count` sequences one after the other, which see themselves and the prompt before them.

    `query` (count * length, heads, head_dim), the others (..., kv_heads, head_dim); returns what
    `query` is like. Heads that share a key head are stacked, so that keys are not copied for them.
    Padding comes last in each sequence and is seen by padding only.
    """
    tokens, heads, head_dim = query.shape
    length, kv_heads, times = tokens // count, key.shape[1], heads // key.shape[1]
    apart = query.reshape(count, length, kv_heads, times, head_dim).permute(2, 0, 3, 1, 4)
    stacked = apart.reshape(kv_heads * count, times * length, head_dim)
    keys = _behind(None if prompt is None else prompt[0], key, count)
    values = _behind(None if prompt is None else prompt[1], value, count)
    mask = _causal(length, keys.shape[1], times, query.dtype)
    logits = torch.bmm(stacked, keys.transpose(1, 2)).add_(mask)
    mixed = torch.bmm(torch.softmax(logits, dim=-1), values)
    together = mixed.view(kv_heads, count, times, length, head_dim).permute(1, 3, 0, 2, 4)
    return together.reshape(tokens, heads, head_dim)


def _behind(prompt: Tensor | None, states: Tensor, count: int) -> Tensor:
    """(kv_heads * count, prompt and length, head_dim): the prompt before each of the sequences."""
    own = states.reshape(count, -1, *states.shape[1:]).permute(2, 0, 1, 3)
    if prompt is not None:
        before = prompt.transpose(0, 1)[:, None].expand(-1, count, -1, -1)
        own = torch.cat((before, own), dim=2)
    return torch.flatten(own, 0, 1)


@lru_cache(maxsize=32)
def _causal(length: int, seen: int, times: int, dtype: torch.dtype) -> Tensor:
    """(times * length, seen), to be added: each sees the tokens before the last `length`, and those
    up to itself."""
    mask = torch.full((length, seen), -torch.inf, dtype=dtype).triu_(seen - length + 1)
    return mask.repeat(times, 1)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
