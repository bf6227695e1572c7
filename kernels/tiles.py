"""Tiles of positions x channels: where their values lie in memory, how they are read, written, and summed by group.

Every kernel of the norms sees its tensors as (outer, positions, channels). Group norm: outer is the sample. Batch norm:
outer is 1, and the positions run through all samples. One of the two inner strides is 1, by which the compiler chooses
the order of a tile: channels next to each other (channels last), or positions (NCHW).
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

# The interpreter cuts float32 off to bfloat16 and takes a slow way back, so both are done there by integers.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def tile_offsets(
    position, channel, sample_stride, line_stride, inner,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Offsets of positions (P, 1) x channels (1, C) in a tensor, from the start of its outer part.

    Strides come in units of ``UNIT`` values: the launcher of Triton knows divisibility by 16 alone, and a product with
    a constant shows the compiler that 8 values of bfloat16 are one access of 16 bytes. ``BY_SAMPLE``: positions run
    through samples of ``inner`` positions each. ``WIDE``: in 64 bits.
    """
    if WIDE:
        position = position.to(tl.int64)
        channel = channel.to(tl.int64)
        sample_stride = sample_stride.to(tl.int64)
        line_stride = line_stride.to(tl.int64)
    if BY_SAMPLE:
        start = (position // inner) * (sample_stride * UNIT)
        position = position % inner
        if CHANNELS_LAST:
            offsets = start + position * (line_stride * UNIT) + channel
        else:
            offsets = start + channel * (line_stride * UNIT) + position
    else:
        if CHANNELS_LAST:
            offsets = position * (line_stride * UNIT) + channel
        else:
            offsets = channel * (line_stride * UNIT) + position
    return offsets


@triton.jit
def outer_part(pointer, index, sample_stride, UNIT: tl.constexpr, BY_SAMPLE: tl.constexpr):
    """The start of an outer part: of sample ``index``, or the tensor's own where positions run through the samples."""
    if BY_SAMPLE:
        return pointer
    return pointer + index.to(tl.int64) * (sample_stride.to(tl.int64) * UNIT)


@triton.jit
def load(pointers, mask):
    """Values in float32, 0 where masked off."""
    return widened(tl.load(pointers, mask=mask, other=0.0))


@triton.jit
def widened(values):
    """Values in float32."""
    if INTERPRETED and values.dtype == tl.bfloat16:
        return (values.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return values.to(tl.float32)


@triton.jit
def load_wide(pointers, mask, default: tl.constexpr):
    """Values of any floating dtype in float64."""
    if pointers.dtype.element_ty == tl.float64:
        return tl.load(pointers, mask=mask, other=default)
    return tl.where(mask, load(pointers, mask), default).to(tl.float64)


@triton.jit
def store(pointers, values, mask):
    """Writes float32 or float64 values, rounded to nearest even."""
    if pointers.dtype.element_ty == tl.bfloat16:
        values = values.to(tl.float32)
        if INTERPRETED:
            bits = values.to(tl.int32, bitcast=True)
            rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
            rounded = tl.where(values == values, rounded, 0x7FC0)
            tl.store(pointers, rounded.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=mask)
        else:
            tl.store(pointers, values.to(tl.bfloat16), mask=mask)
    else:
        tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def sum_positions(values, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """(POSITIONS, CHANNELS) summed over the positions.

    A GPU adds a few values in each thread and then in a tree; the interpreter would add thousands one after another,
    at a multiple of the rounding error, so there the tree is spelled out.
    """
    if INTERPRETED and POSITIONS > 1:
        pairs = tl.sum(tl.reshape(values, [POSITIONS // 2, 2, CHANNELS]), axis=1)
        return sum_positions(pairs, POSITIONS // 2, CHANNELS)
    return tl.sum(values, axis=0)


@triton.jit
def load_parameter(pointer, channel, stride, mask, default: tl.constexpr):
    """A parameter of (C,) at ``channel``, in float32; ``default`` where there is none."""
    if pointer is None:
        values = tl.full(channel.shape, default, tl.float32)
    else:
        values = load(pointer + channel * stride, mask)
    return values


@triton.jit
def sum_by_group(values, WIDTH: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """From (CHANNELS,) values, 0 where masked off, to the sums (GROUPS,) of ``WIDTH`` channels in turn."""
    if WIDTH == 1:
        totals = values
    elif GROUPS == 1:
        totals = tl.sum(tl.reshape(values, [1, CHANNELS]), axis=1)
    elif WIDTH * GROUPS == CHANNELS:
        totals = tl.sum(tl.reshape(values, [GROUPS, WIDTH]), axis=1)
    else:
        mine = (tl.arange(0, CHANNELS) // WIDTH)[:, None] == tl.arange(0, GROUPS)[None, :]
        totals = tl.sum(tl.where(mine, values[:, None], 0.0), axis=0)
    return totals


@triton.jit
def spread_by_group(totals, WIDTH: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """From (GROUPS,) values to (CHANNELS,), each channel with that of its group."""
    if WIDTH == 1:
        values = totals
    elif GROUPS == 1:
        values = tl.broadcast_to(totals, [CHANNELS])
    elif WIDTH * GROUPS == CHANNELS:
        values = tl.reshape(tl.broadcast_to(totals[:, None], [GROUPS, WIDTH]), [CHANNELS])
    else:
        mine = (tl.arange(0, CHANNELS) // WIDTH)[:, None] == tl.arange(0, GROUPS)[None, :]
        values = tl.sum(tl.where(mine, totals[None, :], 0.0), axis=1)
    return values


@triton.jit
def split_mean(mean):
    """A float64 mean as float32 and its remainder: at a mean of 1e4, float32 alone would be off by 5e-4."""
    high = mean.to(tl.float32)
    return high, (mean - high.to(tl.float64)).to(tl.float32)


@triton.jit
def reciprocal_deviation(variance, eps):
    """1 / sqrt(variance + eps) in float32; eps is cast here, since a compiler may hand it over in float64."""
    return 1.0 / tl.sqrt_rn(variance.to(tl.float32) + tl.cast(eps, tl.float32))
