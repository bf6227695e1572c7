"""From dot products to scores: scale, cap, mask and window, in whatever order of rows and columns.

In half precision scores are counted in base 2, with log2(e) in their scale, since the GPU has 2^x and no e^x. For
float32 they are natural: a log-sum-exp moved to base 2 and back, and the rounded scale, would cost a digit of weights.

Rows are queries and columns keys; their indices come shaped, (R, 1) and (1, C) or the other way round, so that the same
code serves tiles of either orientation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.elementary import hyperbolic_tangent
from fastdl.kernels.tiles import INTERPRETED

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))

# What the mask is: a constant of the compilation.
NO_MASK = tl.constexpr(0)
BOOLEAN = tl.constexpr(1)
ADDITIVE = tl.constexpr(2)


@triton.jit
def scores(
    products, mask, mask_rows, mask_columns, row, column, keys, low, high, scale, cap,
    EDGE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr,
    BOUNDED: tl.constexpr, NATURAL: tl.constexpr,
):  # fmt: skip
    """Scores, -inf where a key is not seen, and the tangents of capped ones (of no use where they are not).

    ``scale`` has the factor log2(e) in it unless ``NATURAL``; with ``CAPPED`` the cap has, and scale is scale / cap.
    ``mask_rows`` and ``mask_columns`` are offsets in the mask. In ``EDGE`` blocks there are keys behind the last or
    outside of the window; the mask is guarded where ``BOUNDED`` says that it has to be.
    """
    values = products * scale
    tangent = values
    if CAPPED:
        tangent = hyperbolic_tangent(values)
        values = tangent * cap
    if MASK != NO_MASK:
        there = load_mask(mask + mask_rows + mask_columns, column < keys, BOUNDED)
        if MASK == BOOLEAN:
            values = tl.where(there != 0, values, -INFINITY)
        else:
            values += there if NATURAL else there * LOG2_E
    if EDGE:
        visible = column < keys
        if LEFT:
            visible = visible & (column - row >= low)
        if RIGHT:
            visible = visible & (column - row <= high)
        values = tl.where(visible, values, -INFINITY)
    return values, tangent


@triton.jit
def power(exponents, NATURAL: tl.constexpr):
    return tl.exp(exponents) if NATURAL else tl.exp2(exponents)


@triton.jit
def log_sum_of(highest, total, NATURAL: tl.constexpr):
    """The natural log-sum-exp from the highest score and the sum of all powers relative to it."""
    return highest + tl.log(total) if NATURAL else (highest + tl.log2(total)) * LN_2


@triton.jit
def load_log_sums(pointers, there, NATURAL: tl.constexpr):
    """Log-sums in the base of the scores; +inf for a query that sees nothing or is none: its weights are then 0."""
    sums = tl.load(pointers, mask=there, other=-INFINITY)
    return tl.where(sums == -INFINITY, INFINITY, sums if NATURAL else sums * LOG2_E)


@triton.jit
def mask_offsets(column, stride, COLUMNS: tl.constexpr):
    """Offsets along the keys: ``COLUMNS`` is 0 where the mask is broadcast along them, 1 for a stride of 1, else 2."""
    if COLUMNS == 0:
        offsets = 0
    elif COLUMNS == 1:
        offsets = column
    else:
        offsets = column.to(tl.int64) * stride
    return offsets


@triton.jit
def load_mask(pointers, inside, BOUNDED: tl.constexpr):
    """Values of the mask, in float32 if additive, as they are if boolean (a byte each)."""
    if BOUNDED:
        raw = tl.load(pointers, mask=inside, other=0)
    else:
        raw = tl.load(pointers)
    if raw.dtype == tl.uint8:
        values = raw
    elif INTERPRETED and raw.dtype == tl.bfloat16:
        values = (raw.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        values = raw.to(tl.float32)
    return values


@triton.jit
def limits_of_sample(query_offset, sample, low, high):
    """The window's limits for the differences key - query: those of the call, moved by the sample's own offset."""
    if query_offset is not None:
        own = tl.load(query_offset + sample).to(tl.int64)
        low = tl.minimum(tl.maximum(low + own, -(1 << 30)), 1 << 30).to(tl.int32)
        high = tl.minimum(tl.maximum(high + own, -(1 << 30)), 1 << 30).to(tl.int32)
    return low, high


@triton.jit
def sequence_of(starts, index, length):
    """Where a sequence starts in a packed batch and how long it is; everything where nothing is packed."""
    if starts is not None:
        start = tl.load(starts + index).to(tl.int64)
        here = (tl.load(starts + index + 1).to(tl.int64) - start).to(tl.int32)
    else:
        start = tl.zeros([], tl.int64)
        here = length
    return start, here
