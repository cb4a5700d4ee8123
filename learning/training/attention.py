"""Attention for packed rows, for models of transformers to use by name.

The blocks of a row are small and most of a row's square is masked. On a CPU plain products of
matrices over one group at a time take half the time of PyTorch's fused kernel, whose backward pass
is slow and visits masked blocks too. On an accelerator the mask comes by blocks, and FlexAttention,
compiled once, skips those that nobody may see. Very long groups on a CPU are left to the fused
kernel; rotary positions, heads and caches stay transformers' business.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

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


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float | None = None,
    group_lengths: Sequence[int] = (),
    **options: Any,  # of other kernels
) -> tuple[Tensor, None]:
    """Attention within each group of a row; the signature is transformers'.

    `query` (1, heads, length, head_dim), `key` and `value` (1, kv_heads, length, head_dim),
    `attention_mask` (1, 1, length, length) to be added, or by blocks; `group_lengths` add up to
    length. Returns (1, length, heads, head_dim).
    """
    if isinstance(attention_mask, BlockMask):
        return _by_blocks(query, key, value, attention_mask, scaling), None
    plain = query.device.type == "cpu" and max(group_lengths, default=0) <= LONGEST_PLAIN_GROUP
    if not group_lengths or not plain or attention_mask is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = []
    start = 0
    for length in group_lengths:
        at = slice(start, start + length)
        mask = attention_mask[0, 0, at, at]
        groups.append(_within(query[0, :, at] * scale, key[0, :, at], value[0, :, at], mask))
        start += length
    return torch.cat(groups)[None], None  # (1, length, heads, head_dim)


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


def _within(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """One group: (heads, length, head_dim) and (kv_heads, ...) to (length, heads, head_dim).

    Heads that share a key head are stacked, so that keys and values are never copied.
    """
    heads, length, head_dim = query.shape
    kv_heads = key.shape[0]
    stacked = query.reshape(kv_heads, -1, head_dim)  # (kv_heads, shared * length, head_dim)
    logits = torch.bmm(stacked, key.transpose(1, 2)).view(heads, length, length)
    shares = torch.softmax(logits + mask, dim=-1)  # (heads, length, length)
    mixed = torch.bmm(shares.view(kv_heads, -1, length), value)
    return mixed.view(heads, length, head_dim).transpose(0, 1)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
