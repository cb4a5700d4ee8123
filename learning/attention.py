"""Attention for packed rows on a CPU, for models of transformers to use by name.

The blocks of a row are small and most of a row's square is masked. Plain products of matrices over
one group at a time take half the time of PyTorch's fused CPU kernel there, whose backward pass is
slow and visits masked blocks too; rotary positions, heads and caches stay transformers' business.
On other devices, and for very long groups, the fused kernel does the work.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
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
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    group_lengths: Sequence[int] = (),
    **options: Any,  # of other kernels
) -> tuple[Tensor, None]:
    """Attention within each group of a row; the signature is transformers'.

    `query` (1, heads, length, head_dim), `key` and `value` (1, kv_heads, length, head_dim),
    `attention_mask` (1, 1, length, length) to be added; `group_lengths` add up to length.
    Returns (1, length, heads, head_dim).
    """
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
