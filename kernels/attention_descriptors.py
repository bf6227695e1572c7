"""Tiles read through tensor descriptors: from Hopper on an engine copies them, and no thread counts addresses.

A descriptor holds what a pointer leaves to the threads: sizes and strides of (N, H, L, E), and the tile. What lies
outside comes as zeros, so the rest of a sequence needs no guard. The host makes descriptors anew for every launch, so
that they are for loops of many tiles. On sm_90 the forward pass of 64 features needs 149 registers a thread where
pointers took 170 (128 features: 169 for 252), and the gradient of the queries 124 for 152, which lets a second program
of 8 warps onto an SM. Tiles that are read once stay with pointers: by descriptors they went through registers into the
products, and the gradient of the keys took 199 for 171.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fastdl.kernels import tiles
from fastdl.kernels.attention_layout import Operand
from fastdl.kernels.attention_tiles import load_rows
from fastdl.kernels.tiles import INTERPRETED

# What the driver takes: addresses and strides of 16 bytes, strides below 2^40 bytes, a dimension's no shorter than the
# next one's (CUDA Driver API, cuTensorMapEncodeTiled).
ALIGNMENT = 16
FARTHEST = 1 << 40


def describe(one: Operand, rows: int, features: int) -> TensorDescriptor:
    """The descriptor of ``rows`` x ``features`` tiles; of dimensions in the order in which they lie in memory."""
    order, sizes, strides = _dimensions(one)
    tile = [1, 1, 1, features]
    tile[order.index(2)] = rows
    return TensorDescriptor(one.tensor, sizes, strides, tile)


def can_describe(one: Operand) -> bool:
    """Whether the tensor's address, sizes and strides are such as a descriptor holds."""
    _, sizes, strides = _dimensions(one)
    size = one.tensor.element_size()
    return (
        one.tensor.data_ptr() % ALIGNMENT == 0
        and all(stride * size % ALIGNMENT == 0 and 0 < stride * size < FARTHEST for stride in strides[:-1])
        and strides[2] >= sizes[3]
        and strides[0] >= strides[1] >= strides[2]
        and max(sizes) < 1 << 31
    )


def _dimensions(one: Operand) -> tuple[list[int], list[int], list[int]]:
    """Which dimension comes where, with sizes and strides: heads before the length or after it, features last.

    Dimensions of one are given the least stride that is allowed.
    """
    samples, heads, length, features = one.tensor.shape
    order = [0, 2, 1, 3] if heads > 1 and (length == 1 or one.head < one.row) else [0, 1, 2, 3]
    sizes = [(samples, heads, length, features)[at] for at in order]
    strides = [(one.sample, one.head, one.row, 1)[at] for at in order]
    aligned = ALIGNMENT // one.tensor.element_size()
    least = -(-features // aligned) * aligned
    for at in (2, 1, 0):
        if sizes[at] == 1:
            strides[at] = least
        least = strides[at]
    return order, sizes, strides


@triton.jit
def head_of(
    source, sample, head, first, sample_stride, head_stride, row_stride, UNIT: tl.constexpr, DESCRIBED: tl.constexpr
):
    """A pointer to row ``first`` of one head, or the descriptor of all as it is."""
    if not DESCRIBED:
        source += (sample * sample_stride + head * head_stride + first * row_stride) * UNIT
    return source


@triton.jit
def load_head_rows(
    source, sample, head, first, limit, stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    BOUNDED: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """(ROWS, BLOCK) values of one head from row ``first`` on; ``source`` is what `head_of` gives."""
    if DESCRIBED:
        values = load_tile(source, sample.to(tl.int32), head.to(tl.int32), first, ROWS, BLOCK)
    else:
        values = load_rows(source, first, limit, stride, ROWS, WIDTH, BLOCK, UNIT, WIDE, BOUNDED)
    return values


@triton.jit
def load_tile(descriptor, sample, head, first, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(ROWS, BLOCK) values by a descriptor, 0 behind the last row and the last feature."""
    if descriptor.block_shape[1] == ROWS:
        values = descriptor.load([sample, first, head, 0])
    else:
        values = descriptor.load([sample, head, first, 0])
    values = values.reshape(ROWS, BLOCK)
    return tiles.widened(values) if INTERPRETED else values
