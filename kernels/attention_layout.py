"""How attention's tensors lie in memory: what is read in place, what is copied, and where results go."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor


class Operand(NamedTuple):
    """A tensor (N, H, L, E) with a stride of 1 along E, and its other strides, 0 where there is only one."""

    tensor: Tensor
    sample: int
    head: int
    row: int


def operand(tensor: Tensor) -> Operand:
    """The tensor where it is, or a copy where its innermost stride is not 1."""
    samples, heads, rows, features = tensor.shape
    sample, head, row, feature = tensor.stride()
    if feature != 1 and features > 1:
        return operand(tensor.contiguous())
    return Operand(tensor, sample if samples > 1 else 0, head if heads > 1 else 0, row if rows > 1 else 0)


def unit_of(itemsize: int, operands: tuple[Operand, ...]) -> int:
    """What all strides are multiples of, up to 16 bytes."""
    unit = 16 // itemsize
    for _, sample, head, row in operands:
        unit = gcd(unit, sample, head, row)
    return unit


def steps(unit: int, *operands: Operand | None) -> tuple[int, ...]:
    """Sample, head and row strides in units, of one operand after the other; zeros for what is absent."""
    found: list[int] = []
    for one in operands:
        found += (0, 0, 0) if one is None else (one.sample // unit, one.head // unit, one.row // unit)
    return tuple(found)


# From here on the way from a tile's first row to its last may not fit into 31 bits.
FARTHEST_ROW = 2**31 // 512


def is_wide(operands: tuple[Operand, ...]) -> bool:
    return any(one.row >= FARTHEST_ROW for one in operands)


def has_heads_inside(tensor: Tensor) -> bool:
    """Whether a step to the next head of (N, H, L, E) is shorter than one along the length."""
    return tensor.shape[1] > 1 and tensor.shape[2] > 1 and tensor.stride(1) < tensor.stride(2)


def empty_with_heads(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised (N, H, L, E), in memory (N, L, H, E) where ``like`` has heads inside, as on every backend."""
    if not has_heads_inside(like):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    samples, heads, length, features = shape
    return torch.empty((samples, length, heads, features), dtype=like.dtype, device=like.device).transpose(1, 2)


def is_packed(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the three are the slices of one (N, L, 3, H, E) in memory."""
    if not query.shape == key.shape == value.shape or not query.stride() == key.stride() == value.stride():
        return False
    samples, heads, length, features = query.shape
    part = heads * features
    sample, head, row, feature = query.stride()
    dense = (
        (feature == 1 or features == 1)
        and (head == features or heads == 1)
        and (row == 3 * part or length == 1)
        and (sample == 3 * part * length or samples == 1)
    )
    return (
        dense
        and query.untyped_storage().data_ptr() == key.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        and key.storage_offset() - query.storage_offset() == part
        and value.storage_offset() - key.storage_offset() == part
    )


def empty_gradients(query: Tensor, key: Tensor, value: Tensor, zero: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the three, each in its own layout; of a packed projection, the slices of one packed gradient.

    Autograd then adds them up into the projection's gradient without moving what lies there already. ``zero``: filled
    with zeros, where kernels do not come to every row.
    """
    if is_packed(query, key, value):
        samples, heads, length, features = query.shape
        shape = (samples, length, 3, heads, features)
        packed = torch.empty(shape, dtype=query.dtype, device=query.device)
        if zero:
            packed.zero_()
        q, k, v = (part.transpose(1, 2) for part in packed.unbind(2))
        return q, k, v
    q, k, v = (empty_with_heads(tensor, tuple(tensor.shape)) for tensor in (query, key, value))
    if zero:
        for gradient in (q, k, v):
            gradient.zero_()
    return q, k, v


class Mask(NamedTuple):
    """A mask's bytes or numbers, its strides in units (0 along what is broadcast), and what kernels are compiled for.

    ``kind`` and ``columns`` as in `fastdl.kernels.attention_scores`.
    """

    tensor: Tensor | None
    strides: tuple[int, int, int, int]
    unit: int
    kind: int
    columns: int


NO_MASK = Mask(None, (0, 0, 0, 0), 1, 0, 0)


def mask_of(mask: Tensor | None) -> Mask:
    if mask is None:
        return NO_MASK
    boolean = mask.dtype == torch.bool
    sample, head, row, column = (
        stride if size > 1 else 0 for size, stride in zip(mask.shape, mask.stride(), strict=True)
    )
    unit = gcd(16 // mask.element_size(), sample, head, row)
    kind = 0 if column == 0 else 1 if column == 1 else 2
    tensor = mask.view(torch.uint8) if boolean else mask
    return Mask(tensor, (sample // unit, head // unit, row // unit, column), unit, 1 if boolean else 2, kind)
