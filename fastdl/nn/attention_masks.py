"""The masks of `torch.nn.MultiheadAttention`, which hide where they are True, as the one mask that the ops take."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["merge_masks"]


def merge_masks(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, samples: int, heads: int, length: int, keys: int
) -> Tensor | None:
    """The mask of `fastdl.ops.scaled_dot_product_attention` that says what both masks say.

    It is as small as they allow: (N, 1, 1, S) for padding alone, (1, 1, L, S) for one mask of all samples, and
    (N, 1, L, S) for these two together. (N, H, L, S) is built only where ``attn_mask`` has that size already.

    Args:
        attn_mask: (L, S) or (N * H, L, S); boolean, True where a query must not see a key, or a number to be added.
        key_padding_mask: (N, S); boolean, True for a key that nobody must see, or a number to be added.
        samples, heads, length, keys: N, H, L and S.

    Returns:
        None without a mask. If all are boolean a boolean one, True where a query may see a key, else an additive one.

    Raises:
        TypeError, ValueError: a mask has another dtype or shape.
    """
    parts = []
    if attn_mask is not None:
        _check_dtype("attn_mask", attn_mask)
        if attn_mask.shape == (length, keys):
            parts.append(attn_mask.view(1, 1, length, keys))
        elif attn_mask.shape == (samples * heads, length, keys):
            parts.append(attn_mask.unflatten(0, (samples, heads)))
        else:
            raise ValueError(
                f"attn_mask must have shape (L, S), here ({length}, {keys}), or (N * H, L, S), here "
                f"({samples * heads}, {length}, {keys}); got {tuple(attn_mask.shape)}"
            )
    if key_padding_mask is not None:
        _check_dtype("key_padding_mask", key_padding_mask)
        if key_padding_mask.shape != (samples, keys):
            raise ValueError(
                f"key_padding_mask must have shape (N, S), here ({samples}, {keys}); got "
                f"{tuple(key_padding_mask.shape)}"
            )
        parts.append(key_padding_mask.view(samples, 1, 1, keys))
    if not parts:
        return None
    if all(part.dtype == torch.bool for part in parts):
        hidden = parts[0] if len(parts) == 1 else parts[0] | parts[1]
        return ~hidden
    added = [_as_number(part) for part in parts]
    return added[0] if len(added) == 1 else added[0] + added[1]


def let_all_see(mask: Tensor | None, more: int) -> Tensor | None:
    """A merged mask widened by ``more`` keys at its end, which every query may see."""
    if mask is None or more == 0:
        return mask
    return F.pad(mask, (0, more), value=mask.dtype == torch.bool)


def _check_dtype(name: str, mask: Tensor) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a boolean or floating-point tensor; got {found}")


def _as_number(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(mask, -math.inf)
