"""Multi-head attention: scaled dot products, softmax and the weighted sum in one op, without the matrix of weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdl.ops import attention_arguments as arguments
from fastdl.ops.layout import empty_with_heads, has_heads_inside
from fastdl.ops.operator import FusedOperator
from fastdl.reference.attention import attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    softcap: float = 0.0,
    window: tuple[int, int] | None = None,
    query_offset: int | Tensor = 0,
    return_lse: bool = False,
) -> Any:
    r"""``softmax(scale * query @ key^T + mask) @ value`` (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    The L x S matrix of weights is never held: softmax runs along blocks of keys (Dao et al. 2022, arXiv:2205.14135),
    in float32 or wider, and backward computes the weights again from the log-sum-exp of each row. Kept for backward are
    the arguments, the output and one number a row.

    Args:
        query: (N, ..., H, L, E), float32, float16, bfloat16 or float64, any strides: a slice of a packed projection,
            transposed, is read where it is. Three dimensions are (N, L, E), two are (L, E).
        key: (N, ..., H, S, E); value: (N, ..., H, S, E_v). Leading dimensions broadcast to the query's.
        attn_mask: broadcasts to (N, ..., H, L, S). Boolean: True where a query may see a key. Floating-point: added to
            the scaled scores; it has a gradient.
        dropout_p: probability of dropping a weight, 0 to 1, applied whatever the mode; in steps of 2^-16. Choices are a
            function (Philox 4x32-10) of a seed drawn from torch's default CPU generator and of the position, the same
            on every backend.
        is_causal: a query sees no key behind its own position. It may be combined with attn_mask, where torch refuses.
        scale: factor of the dot products; 1 / sqrt(E) by default.
        enable_gqa: the query may have a multiple of the key's heads; head h then reads head h // (H / H_k), in place
            (Ainslie et al. 2023, arXiv:2305.13245).
        softcap: scores become ``softcap * tanh(score / softcap)`` before the mask (Gemma 2, arXiv:2408.00118); 0 is
            none.
        window: ``(left, right)``: a query sees the keys from ``left`` before its position to ``right`` after it; -1 is
            no limit on that side.
        query_offset: key position of the first query, an int or an int tensor (N,): query i stands at
            i + query_offset. 0 aligns causal masks at the upper left, as torch does, S - L at the lower right; the
            length of a cache of keys serves decoding.
        return_lse: also return the log-sum-exp of each row.

    Returns:
        (N, ..., H, L, E_v) in the query's dtype, heads inside of lengths in memory if the query has them so, so that
        ``output.transpose(1, 2).flatten(2)`` of a packed projection costs no copy. A query that may see no key gets
        zeros. With ``return_lse`` a tuple with the log-sum-exp (N, ..., H, L), natural, in float32 (float64 for
        float64), -inf where no key is seen, itself differentiable.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        BackendError: a backend asked for by name cannot serve this call.
    """
    op = "scaled_dot_product_attention"
    arguments.check_tensors(op, query, key, value)
    arguments.check_numbers(op, dropout_p, scale, softcap)
    left, right = arguments.resolve_window(op, window, is_causal)
    query, key, value, attn_mask = arguments.cast_for_autocast(query, key, value, attn_mask)
    leading = arguments.broadcast_leading(op, query, key, value, enable_gqa)
    q, k, v = arguments.with_four_dimensions(op, query, key, value, leading, enable_gqa)
    rows = torch.Size((*leading, query.shape[-2]))
    mask = arguments.mask_with_four_dimensions(op, attn_mask, rows, q, k, enable_gqa)
    offset, offsets = arguments.resolve_query_offset(op, query_offset, q)
    output, log_sum = ATTENTION(
        (q, k, v, mask, offsets, None, None, arguments.draw_seed(dropout_p, q)),
        (
            1 / math.sqrt(max(q.shape[3], 1)) if scale is None else float(scale),
            float(softcap), left, right, offset, float(dropout_p), q.shape[2], k.shape[2],
        ),
    )  # fmt: skip
    output = output.reshape(*rows, v.shape[3])
    return (output, log_sum.reshape(rows)) if return_lse else output


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
) -> Tensor:
    r"""Attention within sequences of different lengths that lie one after another, with no padding between them.

    Args:
        query: (T_q, H, E); key: (T_k, H_k, E); value: (T_k, H_k, E_v), with H a multiple of H_k.
        cu_seqlens_q, cu_seqlens_k: int32 or int64 (B + 1,), rising from 0: sequence b holds the queries from
            ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]`` and the keys likewise. What lies behind the last is in no
            sequence: its output is zero. Their values are not checked, which would wait for the GPU.
        max_seqlen_q, max_seqlen_k: at least the length of the longest sequence.
        dropout_p, is_causal, scale, window: as for `scaled_dot_product_attention`; positions count from each
            sequence's first query and first key.

    Returns:
        (T_q, H, E_v) in the query's dtype.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        BackendError: a backend asked for by name cannot serve this call.
    """
    op = "varlen_attention"
    arguments.check_tensors(op, query, key, value, dimensions=3)
    arguments.check_numbers(op, dropout_p, scale, 0.0)
    left, right = arguments.resolve_window(op, window, is_causal)
    arguments.check_sequences(op, query, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    query, key, value, _ = arguments.cast_for_autocast(query, key, value, None)
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
    arguments.check_shapes(op, q, k, v, True)
    output, _ = ATTENTION(
        (q, k, v, None, None, cu_seqlens_q, cu_seqlens_k, arguments.draw_seed(dropout_p, q)),
        (
            1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale),
            0.0, left, right, 0, float(dropout_p), max_seqlen_q, max_seqlen_k,
        ),
    )  # fmt: skip
    merged: Tensor = output.squeeze(0).transpose(0, 1)
    return merged


def _empty_output(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return empty_with_heads(query, (*query.shape[:3], value.shape[3]))


def _empty_log_sums(query: Tensor, *_: Any) -> Tensor:
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return torch.empty(query.shape[:3], dtype=dtype, device=query.device)


def _gradient_like(tensor: Tensor, query: Tensor) -> Tensor:
    return empty_with_heads(tensor, tuple(tensor.shape))


def _layout_of(query: Tensor) -> str:
    return "packed" if has_heads_inside(query) else "separate"


def _reference(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    # Its products are in float32 on purpose, which autocast would undo.
    with torch.autocast(query.device.type, enabled=False):
        return attention(query, *rest)


ATTENTION = FusedOperator(
    "attention",
    tensors="Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? query_offset, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k, Tensor? seed",
    statics="float scale, float softcap, SymInt window_left, SymInt window_right, SymInt offset, float dropout_p, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k",
    differentiable=4,
    reference=_reference,
    empty_statistics=_empty_log_sums,
    output_like=_empty_output,
    gradient_like=_gradient_like,
    differentiable_statistics=True,
    layout_of=_layout_of,
)
