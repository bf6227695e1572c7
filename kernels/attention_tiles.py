"""Tiles of rows x features: where they lie in memory, how they are read, multiplied and rounded.

Strides come in units of ``UNIT`` values, for the launcher of Triton knows divisibility by 16 alone, and a product with
a constant shows the compiler that 8 values of bfloat16 are one access of 16 bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels import tiles
from fastdl.kernels.tiles import INTERPRETED


@triton.jit
def load_rows(
    base, first, limit, stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """(ROWS, BLOCK) values from row ``first`` on, 0 behind ``limit`` rows (if ``BOUNDED``) and ``WIDTH`` features.

    The start is counted in 64 bits, the way from there in 32 unless ``WIDE``.
    """
    row = tl.arange(0, ROWS)
    feature = tl.arange(0, BLOCK)
    start = base + (first.to(tl.int64) * stride) * UNIT
    if WIDE:
        pointers = start + (row.to(tl.int64) * stride * UNIT)[:, None] + feature[None, :]
    else:
        pointers = start + (row * stride * UNIT)[:, None] + feature[None, :]
    if BOUNDED and WIDTH < BLOCK:
        values = load(pointers, (first + row < limit)[:, None] & (feature < WIDTH)[None, :], True)
    elif BOUNDED:
        values = load(pointers, (first + row < limit)[:, None], True)
    elif WIDTH < BLOCK:
        values = load(pointers, (feature < WIDTH)[None, :], True)
    else:
        values = load(pointers, row[:, None] >= 0, False)
    return values


@triton.jit
def load(pointers, mask, MASKED: tl.constexpr):
    """Operands of a product in their own dtype; float32 under the interpreter, whose bfloat16 products are wrong."""
    if INTERPRETED:
        values = tiles.load(pointers, mask)
    elif MASKED:
        values = tl.load(pointers, mask=mask, other=0.0)
    else:
        values = tl.load(pointers)
    return values


@triton.jit
def store_rows(
    base, first, limit, stride, values,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Writes the first ``limit - first`` rows and ``WIDTH`` features of (ROWS, BLOCK) values."""
    row = tl.arange(0, ROWS)
    feature = tl.arange(0, BLOCK)
    start = base + (first.to(tl.int64) * stride) * UNIT
    pointers = start + (row.to(tl.int64) * stride * UNIT)[:, None] + feature[None, :]
    mask = (first + row < limit)[:, None]
    if WIDTH < BLOCK:
        mask = mask & (feature < WIDTH)[None, :]
    tiles.store(pointers, values, mask)


@triton.jit
def product(a, b, accumulator):
    """accumulator + a b, in float32. TF32 alone would lose half of float32's digits; three products of it keep them."""
    if a.dtype == tl.float32 and not INTERPRETED:
        result = tl.dot(a, b, accumulator, input_precision="tf32x3")
    elif INTERPRETED:
        result = accumulator + tl.dot(a, b, input_precision="ieee")
    else:
        result = tl.dot(a, b, accumulator)
    return result


@triton.jit
def pointers_to_rows(base, first, stride, ROWS: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr):
    """(ROWS,) pointers to the rows from ``first`` on, counted as in `load_rows`."""
    row = tl.arange(0, ROWS)
    start = base + (first.to(tl.int64) * stride) * UNIT
    if WIDE:
        pointers = start + row.to(tl.int64) * stride * UNIT
    else:
        pointers = start + row * stride * UNIT
    return pointers


@triton.jit
def product_by_chunks(left, left_there, right, right_there, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """a b^T of the rows that ``left`` and ``right`` point to, 0 those that are not there, in float32.

    Read ``CHUNK`` of their ``WIDTH`` features at a time, so that neither operand is held whole: as left operands 16
    rows of 256 numbers in float32, and what TF32 has cut off them, were all registers of a thread, and spilled. A loop,
    not chunks in turn: those of the operand that stays would be loaded before the loop around this one, and held.
    """
    feature = tl.arange(0, CHUNK)
    sums = tl.zeros([left.shape[0], right.shape[0]], tl.float32)
    for start in range(0, WIDTH, CHUNK):
        inside = (start + feature < WIDTH)[None, :]
        a = load(left[:, None] + (start + feature)[None, :], left_there[:, None] & inside, True)
        b = load(right[:, None] + (start + feature)[None, :], right_there[:, None] & inside, True)
        sums = product(a, tl.trans(b), sums)
    return sums


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """float32 values as an operand, rounded to the dtype ``dtype``."""
    if dtype == tl.float32:
        result = values
    elif not INTERPRETED:
        result = values.to(dtype)
    elif dtype == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        near = (bits + (0x7FFF + ((bits >> 16) & 1))) & -65536
        result = tl.where(values == values, near.to(tl.float32, bitcast=True), values)
    else:
        result = values.to(dtype).to(tl.float32)
    return result


@triton.jit
def zeros_of(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def visible_blocks(first, last, count, low, high, WIDTH: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Which blocks of ``WIDTH`` others the places from ``first`` to ``last`` see, of ``count`` others in all.

    Place i sees other j where j - i >= low (if ``LEFT``) and j - i <= high (if ``RIGHT``). Gives four numbers of
    blocks: where the seen begin, where those begin that all places see whole, where these end, where the seen end.
    Blocks in the middle need no mask, those on both sides do.
    """
    begin = first * 0
    full_begin = begin
    full_end = begin + count
    end = full_end
    if LEFT:
        begin = tl.minimum(tl.maximum(first + low, 0), count)
        full_begin = tl.maximum(last + low, 0)
    if RIGHT:
        end = tl.maximum(tl.minimum(last + high + 1, count), begin)
        full_end = tl.maximum(tl.minimum(first + high + 1, count), 0)
    begin = begin // WIDTH
    end = tl.cdiv(end, WIDTH)
    full_begin = tl.cdiv(full_begin, WIDTH)
    full_end = full_end // WIDTH
    # Without a whole block all are edges, counted from the beginning.
    full_begin, full_end = (
        tl.where(full_end > full_begin, full_begin, begin),
        tl.where(full_end > full_begin, full_end, begin),
    )
    return begin, full_begin, full_end, end


@triton.jit
def edge_block(index, begin, full_begin, full_end):
    """The number of an edge block: those on the left are counted first, then those on the right."""
    left = full_begin - begin
    return tl.where(index < left, begin + index, full_end + index - left)
