"""The gradient of the convolution's weight: rows are output channels, columns kernel positions x input channels, and
the depth is the positions of all samples, in parts whose sums are merged in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels import attention_tiles
from fastdl.kernels.convolution_tiles import (
    activated_tile,
    integers,
    load_coefficients,
    place_of,
    product,
)
from fastdl.kernels.tiles import store


@triton.jit(
    do_not_specialize=integers(
        "x_sample x_line grad_sample grad_line height width out_height out_width positions outers depth_units "
        "column_units groups tiles splits"
    )
)
def convolve_weight(
    x, grad, table, partials,
    x_sample, x_line, grad_sample, grad_line, height, width, out_height, out_width, positions, outers,
    depth_units, column_units, groups, tiles, splits, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE_HEIGHT: tl.constexpr, STRIDE_WIDTH: tl.constexpr,
    PADDING_HEIGHT: tl.constexpr, PADDING_WIDTH: tl.constexpr,
    DILATION_HEIGHT: tl.constexpr, DILATION_WIDTH: tl.constexpr,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, FLAT: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Float32 ``partials`` (splits, C_out, kernel positions, channels of a group): each split sums ``tiles`` tiles of
    ``DEPTH`` positions.

    ``depth_units`` are of a group's input channels, ``column_units`` of its output channels, as in
    `convolve_forward`. ``FLAT``: a block of columns runs through kernel positions, where channels are few. Programs
    that share positions follow each other.
    """
    members = depth_units * UNIT
    outs = column_units * OUT_UNIT
    TAPS: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    blocks = tl.cdiv(members, COLUMNS)
    column_blocks = tl.cdiv(TAPS * members, COLUMNS) if FLAT else TAPS * blocks
    row_blocks = tl.cdiv(outs, ROWS)
    block = tl.program_id(0) % column_blocks
    rest_of_program = tl.program_id(0) // column_blocks
    row_block = rest_of_program % row_blocks
    group = rest_of_program // row_blocks % groups
    split = rest_of_program // row_blocks // groups

    if FLAT:
        k = block * COLUMNS + tl.arange(0, COLUMNS)
        in_columns = k < TAPS * members
        tap = k // members
        member = k % members
    else:
        tap = block // blocks
        member = block % blocks * COLUMNS + tl.arange(0, COLUMNS)
        in_columns = member < members
        k = tap * members + member
    down = tap // KERNEL_WIDTH * DILATION_HEIGHT - PADDING_HEIGHT
    along = tap % KERNEL_WIDTH * DILATION_WIDTH - PADDING_WIDTH
    if FLAT:
        down, along = down[None, :], along[None, :]
    out = row_block * ROWS + tl.arange(0, ROWS)
    in_outs = out < outs
    channel = group * members + member
    channels = groups * members
    if WIDE:
        grad_sample, grad_line = grad_sample.to(tl.int64), grad_line.to(tl.int64)
        x_sample, x_line = x_sample.to(tl.int64), x_line.to(tl.int64)
    each = tl.cdiv(positions, DEPTH).to(tl.int32)  # tiles of an outer part
    last = tl.minimum((split + 1) * tiles, each * outers)

    mean, rest, scale, shift = 0.0, 0.0, 0.0, 0.0
    if table is not None and not BY_SAMPLE:
        mean, rest, scale, shift = load_coefficients(table, split * 0, outers, channel, channels, in_columns)
        mean, rest, scale, shift = mean[None, :], rest[None, :], scale[None, :], shift[None, :]
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(split * tiles, last):
        outer = tile // each
        first = tile % each * DEPTH
        if WIDE:
            first = (tile % each).to(tl.int64) * DEPTH
        row = first + tl.arange(0, DEPTH)
        in_rows = row < positions
        sample, line, place = place_of(row, outer, out_height, out_width, BY_SAMPLE)
        # Names of their own: a loop may not change the type of what it carries.
        high, low, slope, offset = mean, rest, scale, shift
        if table is not None and BY_SAMPLE:
            high, low, slope, offset = load_coefficients(table, outer, outers, channel, channels, in_columns)
            high, low, slope, offset = high[None, :], low[None, :], slope[None, :], offset[None, :]
        start = sample * (grad_sample * OUT_UNIT) + (line * out_width + place) * (grad_line * OUT_UNIT)
        g = attention_tiles.load(
            grad + group * outs + start[:, None] + out[None, :], in_rows[:, None] & in_outs[None, :], True
        )
        top = (line * STRIDE_HEIGHT)[:, None] + down
        left = (place * STRIDE_WIDTH)[:, None] + along
        inside = (top >= 0) & (top < height) & (left >= 0) & (left < width) & in_rows[:, None]
        offsets = (sample * (x_sample * UNIT))[:, None] + (top * width + left) * (x_line * UNIT) + channel[None, :]
        a = activated_tile(
            x + offsets, inside & in_columns[None, :], high, low, slope, offset, parameter,
            table is not None, ACTIVATION, ACTIVATION_FIRST,
        )  # fmt: skip
        accumulator = product(tl.trans(g), a, accumulator, PRECISION)
    size = TAPS * members
    at = partials + (split.to(tl.int64) * groups * outs + group * outs + out) * size
    tl.store(at[:, None] + k[None, :], accumulator, mask=in_outs[:, None] & in_columns[None, :])


@triton.jit(do_not_specialize=["splits", "outs", "taps", "members", "out_stride", "tap_stride", "member_stride"])
def merge_weight(
    partials, grad_weight, splits, outs, taps, members, out_stride, tap_stride, member_stride, VALUES: tl.constexpr
):
    """``partials`` (splits, C_out, taps, members) added up in float64, first to last, into the weight's own layout."""
    count = outs.to(tl.int64) * taps * members
    number = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    mask = number < count
    total = tl.zeros([VALUES], tl.float64)
    for split in range(splits):
        total += tl.load(partials + split * count + number, mask=mask, other=0.0).to(tl.float64)
    member = number % members
    tap = number // members % taps
    out = number // members // taps
    store(grad_weight + out * out_stride + tap * tap_stride + member * member_stride, total, mask)
