"""The weights of attention, written out as a matrix, for who wants to see them; the ops never hold it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdl.reference.attention import Places

__all__ = ["attention_weights"]


def attention_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    query_offset: int | Tensor = 0,
) -> Tensor:
    """``softmax(scale * query @ key^T + mask)`` (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    Costs memory of the size of the result, and as much again for backward. A query that may see no key has weights of
    zero.

    Args:
        query: (N, H, L, E); key: (N, H, S, E).
        attn_mask: broadcasts to (N, H, L, S): True where a query may see a key, or a number that is added.
        is_causal, scale, query_offset: as for `fastdl.ops.scaled_dot_product_attention`.

    Returns:
        (N, H, L, S), in float32, or float64 for that.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = factor * (query.to(wide) @ key.to(wide).transpose(-2, -1))
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores = scores + attn_mask.to(wide)
    elif attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    if is_causal:
        offset, offsets = (0, query_offset) if isinstance(query_offset, Tensor) else (query_offset, None)
        visible = Places(query, key, None, None).visible(-1, 0, offset, offsets)
        scores = scores.masked_fill(~visible, -math.inf)
    elif attn_mask is None:
        return torch.softmax(scores, dim=-1)
    sees_nothing = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(sees_nothing, 0.0), dim=-1).masked_fill(sees_nothing, 0.0)
