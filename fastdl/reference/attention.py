"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), with its masks, as one reads it there.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V

Everything is computed as written, the whole L x S matrix of weights included. The kernels compute the same without ever
holding that matrix (Dao et al. 2022, arXiv:2205.14135).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdl.reference.dropout import keep, scale_of_kept


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    softcap: float = 0.0,
    window: tuple[int, int] | None = None,
    query_offset: int = 0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale Q K^T + mask) V, and the logarithm of each row's softmax denominator.

    ``query`` is (N, H, L, E), ``key`` (N, H_k, S, E) and ``value`` (N, H_k, S, E_v), with H a multiple of H_k; the
    output is (N, H, L, E_v). ``attn_mask`` broadcasts to (N, H, L, S): True where a query may see a key, or a number
    that is added. Query i stands at position i + query_offset; it sees the keys up to there if ``is_causal``, and those
    from ``left`` before to ``right`` after with ``window=(left, right)``, where -1 is no limit.
    """
    left, right = window if window is not None else (-1, -1)
    if is_causal:
        right = 0
    return attention(
        query, key, value, attn_mask, None, None, None, seed,
        1 / math.sqrt(query.shape[-1]) if scale is None else scale,
        softcap, left, right, query_offset, dropout_p, 0, 0,
    )  # fmt: skip


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    query_offset: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    seed: Tensor | None,
    scale: float,
    softcap: float,
    window_left: int,
    window_right: int,
    offset: int,
    dropout_p: float,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> tuple[Tensor, Tensor]:
    """`scaled_dot_product_attention` with all that the op takes; half precision is computed in float32.

    ``query_offset`` (N,) is added to ``offset``. With ``cu_seqlens_q`` and ``cu_seqlens_k`` the one sample, N = 1,
    holds sequences one after another, sequence b from ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``; a query sees the keys
    of its own sequence alone, and positions count from the sequence's start. The maximal lengths are for kernels.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = query.to(wide), key.to(wide), value.to(wide)
    groups = query.shape[1] // max(key.shape[1], 1)
    if groups > 1:  # grouped-query attention (Ainslie et al. 2023): head h reads key and value head h // groups
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)

    scores = scale * (q @ k.transpose(-2, -1))  # (N, H, L, S)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores = scores + attn_mask.to(wide)
    places = Places(query, key, cu_seqlens_q, cu_seqlens_k)
    visible = places.visible(window_left, window_right, offset, query_offset)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        visible = visible & attn_mask
    scores = scores.masked_fill(~visible, -math.inf)

    # A query that may see no key: its softmax is 0/0, and by convention its output is zero.
    sees_nothing = (scores == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(sees_nothing, 0.0), dim=-1).masked_fill(sees_nothing, 0.0)
    log_sum = torch.logsumexp(scores.masked_fill(sees_nothing, 0.0), dim=-1)
    log_sum = log_sum.masked_fill(sees_nothing.squeeze(-1), -math.inf)
    if dropout_p > 0:
        assert seed is not None
        kept = keep(seed, dropout_p, places.sequence, places.head, places.row, places.column)
        weights = weights.masked_fill(~kept, 0.0) * scale_of_kept(dropout_p)
    return (weights @ v).to(query.dtype), log_sum


class Places:
    """Where each query and each key stands: indices that broadcast to (N, H, L, S)."""

    def __init__(self, query: Tensor, key: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None) -> None:
        device = query.device
        samples, heads, length, keys = *query.shape[:3], key.shape[2]
        self.sequence = torch.arange(samples, device=device).view(-1, 1, 1, 1)
        self.head = torch.arange(heads, device=device).view(-1, 1, 1)
        self.row = torch.arange(length, device=device).view(-1, 1)
        self.column = torch.arange(keys, device=device)
        self.same_sequence: Tensor | None = None
        if cu_seqlens_q is not None and cu_seqlens_k is not None:
            sequence_of_row, self.row = _within_sequences(self.row, cu_seqlens_q)
            sequence_of_column, self.column = _within_sequences(self.column, cu_seqlens_k)
            self.same_sequence = (sequence_of_row == sequence_of_column) & (sequence_of_row >= 0)
            self.sequence = sequence_of_row.clamp_min(0)

    def visible(self, left: int, right: int, offset: int, offsets: Tensor | None) -> Tensor:
        """Which keys a query may see: those of its own sequence, and inside the window around its position."""
        position = self.row + offset
        if offsets is not None:
            position = position + offsets.to(torch.int64).view(-1, 1, 1, 1)
        visible = torch.ones_like(position - self.column, dtype=torch.bool)
        if left >= 0:
            visible = visible & (self.column >= position - left)
        if right >= 0:
            visible = visible & (self.column <= position + right)
        return visible if self.same_sequence is None else visible & self.same_sequence


def _within_sequences(place: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The sequence of each place in a packed batch, -1 behind the last, and its index within the sequence."""
    starts = cu_seqlens.to(torch.int64)
    sequence = torch.searchsorted(starts, place, right=True) - 1
    inside = (sequence >= 0) & (sequence < starts.shape[0] - 1)
    return torch.where(inside, sequence, -1), place - starts[sequence.clamp(min=0)]
