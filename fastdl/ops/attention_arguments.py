"""Checks of the arguments of attention, and their common form: four dimensions, two limits of a window, an offset."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdl.ops.arguments import FLOATING

MOST_FEATURES = 256
_INTEGERS = frozenset({torch.int32, torch.int64})


def check_tensors(op: str, query: Tensor, key: Tensor, value: Tensor, dimensions: int | None = None) -> None:
    """Query, key and value must be floating-point tensors of one dtype, device and number of dimensions."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor; got {type(tensor).__name__}")
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64; got {tensor.dtype}")
        if dimensions is not None and tensor.ndim != dimensions:
            raise ValueError(f"{op}: {name} must have {dimensions} dimensions; got shape {tuple(tensor.shape)}")
        if tensor.ndim < 2:
            raise ValueError(f"{op}: {name} must have at least 2 dimensions; got shape {tuple(tensor.shape)}")
        if tensor.ndim != query.ndim:
            raise ValueError(
                f"{op}: {name} must have as many dimensions as query, {query.ndim}; got shape {tuple(tensor.shape)}"
            )
        if tensor.dtype != query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise TypeError(f"{op}: {name} must have the dtype of query, {query.dtype}; got {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{op}: {name} must be on the query's device {query.device}; got {tensor.device}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"{op}: key must have the query's {query.shape[-1]} features in its last dimension; got {key.shape[-1]}"
        )
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"{op}: value must have the key's length {key.shape[-2]}; got {value.shape[-2]}")


def check_numbers(op: str, dropout_p: float, scale: float | None, softcap: float) -> None:
    """Probability, scale and cap must be numbers in their ranges."""
    for name, number in (("dropout_p", dropout_p), ("scale", scale), ("softcap", softcap)):
        if number is None and name == "scale":
            continue
        if not isinstance(number, (float, int)) or isinstance(number, bool):
            raise TypeError(f"{op}: {name} must be a number; got {type(number).__name__}")
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"{op}: dropout_p must be a probability from 0 to 1; got {dropout_p!r}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{op}: scale must be finite; got {scale!r}")
    if not 0 <= softcap < math.inf:
        raise ValueError(f"{op}: softcap must be positive, or 0 for none; got {softcap!r}")


def resolve_window(op: str, window: tuple[int, int] | None, is_causal: bool) -> tuple[int, int]:
    """How many keys a query sees to the left and to the right of its position; -1 for no limit."""
    if not isinstance(is_causal, bool):
        raise TypeError(f"{op}: is_causal must be a bool; got {type(is_causal).__name__}")
    if window is None:
        return -1, 0 if is_causal else -1
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"{op}: window must be a pair (left, right) or None; got {window!r}")
    left, right = window
    for side in (left, right):
        if not isinstance(side, (int, torch.SymInt)) or isinstance(side, bool):
            raise TypeError(f"{op}: window must hold two ints; got {window!r}")
        if side < -1:
            raise ValueError(f"{op}: window must hold lengths of at least 0, or -1 for no limit; got {window!r}")
    return left, 0 if is_causal else right


def cast_for_autocast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Inside of ``torch.autocast`` attention runs in its dtype, as torch's does; float64 stays as it is."""
    device = query.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or query.dtype == torch.float64:
        return query, key, value, mask
    dtype = torch.get_autocast_dtype(device)
    return query.to(dtype), key.to(dtype), value.to(dtype), mask


def broadcast_leading(op: str, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> torch.Size:
    """All of the output's dimensions but length and features; with ``enable_gqa`` the heads are the query's."""
    if not isinstance(enable_gqa, bool):
        raise TypeError(f"{op}: enable_gqa must be a bool; got {type(enable_gqa).__name__}")
    end = -3 if enable_gqa else -2
    shapes = [tensor.shape[:end] for tensor in (query, key, value)]
    if shapes[0] == shapes[1] == shapes[2]:
        return query.shape[:-2]
    try:
        leading = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        advice = "" if enable_gqa else " (a query with a multiple of the key's heads needs enable_gqa=True)"
        raise ValueError(
            f"{op}: the leading dimensions of query, key and value must broadcast; got {tuple(query.shape)}, "
            f"{tuple(key.shape)} and {tuple(value.shape)}{advice}"
        ) from None
    return torch.Size((*leading, *query.shape[end:-2]))


def with_four_dimensions(
    op: str, query: Tensor, key: Tensor, value: Tensor, leading: torch.Size, enable_gqa: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as (N, H, L, E), their leading dimensions broadcast; views wherever strides allow."""
    q, k, v = (_broadcast(tensor, leading, enable_gqa) for tensor in (query, key, value))
    if query.ndim == 2:
        q, k, v = q[None, None], k[None, None], v[None, None]
    elif query.ndim == 3:  # (N, L, E); with grouped heads (H, L, E)
        q, k, v = (tensor.unsqueeze(0 if enable_gqa else 1) for tensor in (q, k, v))
    elif query.ndim > 4:
        q, k, v = q.flatten(0, -4), k.flatten(0, -4), v.flatten(0, -4)
    check_shapes(op, q, k, v, enable_gqa)
    return q, k, v


def _broadcast(tensor: Tensor, leading: torch.Size, enable_gqa: bool) -> Tensor:
    if enable_gqa:
        leading = torch.Size((*leading[:-1], tensor.shape[-3])) if tensor.ndim > 2 else leading
    return tensor if tensor.shape[:-2] == leading else tensor.expand(*leading, *tensor.shape[-2:])


def check_shapes(op: str, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    """The heads of (N, H, L, E) must fit, and the features must be 1 to 256."""
    heads, key_heads = query.shape[1], key.shape[1]
    if value.shape[1] != key_heads:
        raise ValueError(f"{op}: value must have the key's {key_heads} heads; got {value.shape[1]}")
    if heads != key_heads and (not enable_gqa or key_heads == 0 or heads % key_heads):
        raise ValueError(f"{op}: query must have a multiple of the key's {key_heads} heads; got {heads}")
    for name, tensor in (("query", query), ("value", value)):
        if not 1 <= tensor.shape[3] <= MOST_FEATURES:
            raise ValueError(f"{op}: {name} must have 1 to {MOST_FEATURES} features a head; got {tensor.shape[3]}")


def mask_with_four_dimensions(
    op: str, mask: Tensor | None, rows: torch.Size, query: Tensor, key: Tensor, enable_gqa: bool
) -> Tensor | None:
    """The mask as (N or 1, H or 1, L or 1, S or 1): boolean, in the query's dtype, or float32 for half precision.

    ``rows`` are the output's dimensions without its features, as the caller sees them.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"{op}: attn_mask must be a torch.Tensor or None; got {type(mask).__name__}")
    if mask.dtype != torch.bool and mask.dtype not in FLOATING:
        raise TypeError(f"{op}: attn_mask must be boolean or floating-point; got {mask.dtype}")
    if mask.device != query.device:
        raise ValueError(f"{op}: attn_mask must be on the query's device {query.device}; got {mask.device}")
    weights = (*rows, key.shape[2])
    fits = mask.ndim <= len(weights) and all(
        size in (1, full) for size, full in zip(reversed(mask.shape), reversed(weights), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{op}: attn_mask must broadcast to the weights' shape {tuple(weights)}; got {tuple(mask.shape)}"
        )
    if mask.dtype not in (torch.bool, query.dtype):
        mask = mask.to(torch.float64 if query.dtype == torch.float64 else torch.float32)
    if mask.ndim == 3 and len(rows) == 2 and not enable_gqa:  # (N, L, S) beside (N, H = 1, L, E)
        mask = mask.unsqueeze(1)
    while mask.ndim < max(4, len(weights)):
        mask = mask.unsqueeze(0)
    if mask.ndim > 4:
        samples = mask.shape[:-3]
        mask = mask if math.prod(samples) == 1 else mask.expand(*rows[:-2], *mask.shape[-3:])
        mask = mask.flatten(0, -4)
    return mask


def resolve_query_offset(op: str, query_offset: int | Tensor, query: Tensor) -> tuple[int, Tensor | None]:
    """The offset as an int, and as a tensor (N,) where it is one."""
    if isinstance(query_offset, Tensor):
        if query_offset.dtype not in _INTEGERS:
            raise TypeError(f"{op}: query_offset must be an int, or an int32 or int64 tensor; got {query_offset.dtype}")
        if query_offset.shape != query.shape[:1]:
            raise ValueError(
                f"{op}: query_offset must have shape ({query.shape[0]},), one value a sample; got "
                f"{tuple(query_offset.shape)}"
            )
        if query_offset.device != query.device:
            raise ValueError(
                f"{op}: query_offset must be on the query's device {query.device}; got {query_offset.device}"
            )
        return 0, query_offset
    if not isinstance(query_offset, (int, torch.SymInt)) or isinstance(query_offset, bool):
        raise TypeError(f"{op}: query_offset must be an int or a tensor; got {type(query_offset).__name__}")
    return query_offset, None


def check_sequences(
    op: str, query: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int
) -> None:
    """The starts of sequences must be two int tensors (B + 1,) on the query's device, and lengths ints from 0."""
    for name, starts in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if not isinstance(starts, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor; got {type(starts).__name__}")
        if starts.dtype not in _INTEGERS:
            raise TypeError(f"{op}: {name} must be int32 or int64; got {starts.dtype}")
        if starts.ndim != 1 or starts.shape[0] < 1:
            raise ValueError(f"{op}: {name} must have shape (B + 1,); got {tuple(starts.shape)}")
        if starts.device != query.device:
            raise ValueError(f"{op}: {name} must be on the query's device {query.device}; got {starts.device}")
    if cu_seqlens_q.shape != cu_seqlens_k.shape or cu_seqlens_q.dtype != cu_seqlens_k.dtype:
        raise ValueError(
            f"{op}: cu_seqlens_k must have the shape and dtype of cu_seqlens_q, {tuple(cu_seqlens_q.shape)} "
            f"{cu_seqlens_q.dtype}; got {tuple(cu_seqlens_k.shape)} {cu_seqlens_k.dtype}"
        )
    for name, length in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        if not isinstance(length, (int, torch.SymInt)) or isinstance(length, bool):
            raise TypeError(f"{op}: {name} must be an int; got {type(length).__name__}")
        if length < 0:
            raise ValueError(f"{op}: {name} must be at least 0; got {length}")


def draw_seed(dropout_p: float, query: Tensor) -> Tensor | None:
    """A seed from torch's default generator, int64 (1,), where there is dropout.

    From the CPU's, so that one ``torch.manual_seed`` gives the same choices on every device; but from the query's own
    device where its work is being recorded (CUDA graphs, the compiler), since a replay must draw anew.
    """
    if dropout_p == 0:
        return None
    recorded = torch.compiler.is_compiling() or (query.is_cuda and torch.cuda.is_current_stream_capturing())
    device = query.device if recorded else torch.device("cpu")
    return torch.randint(-(1 << 63), (1 << 63) - 1, (1,), dtype=torch.int64, device=device)
