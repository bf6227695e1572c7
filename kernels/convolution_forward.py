"""The forward convolution as a product of matrices that are never written out (implicit GEMM, Chetlur et al. 2014,
arXiv:1410.0759): rows are output positions, columns output channels, and the depth is kernel positions x channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels import attention_tiles
from fastdl.kernels.convolution_tiles import (
    activated_tile,
    finish_output,
    integers,
    load_coefficients,
    place_of,
    product,
)


@triton.jit(
    do_not_specialize=integers(
        "x_sample x_line height width out_height out_width positions outers depth_units column_units groups"
    )
)
def convolve_forward(
    x, weight, bias, table, y, partials,
    x_sample, x_line, height, width, out_height, out_width, positions, outers, depth_units, column_units, groups,
    parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE_HEIGHT: tl.constexpr, STRIDE_WIDTH: tl.constexpr,
    PADDING_HEIGHT: tl.constexpr, PADDING_WIDTH: tl.constexpr,
    DILATION_HEIGHT: tl.constexpr, DILATION_WIDTH: tl.constexpr,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, FLAT: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``y`` (N, positions, C_out), dense, and the moments of each tile's columns, see `finish_output`.

    ``weight`` is (C_out, kernel positions, channels of a group). Strides and channels come in units of ``UNIT``
    values, output channels in units of ``OUT_UNIT``. ``positions`` are those of an outer part. ``FLAT``: kernel
    positions and channels are one depth, for channels that would leave most of a block empty. Programs that share
    rows follow each other, so that the input comes from memory once and then from the L2 cache.
    """
    depth = depth_units * UNIT
    columns = column_units * OUT_UNIT
    column_blocks = tl.cdiv(columns, COLUMNS)
    chunks = tl.cdiv(positions, ROWS).to(tl.int32)
    block = tl.program_id(0) % column_blocks
    rest_of_program = tl.program_id(0) // column_blocks
    group = rest_of_program % groups
    chunk = rest_of_program // groups % chunks
    outer = rest_of_program // groups // chunks

    first = chunk * ROWS
    if WIDE:
        first = chunk.to(tl.int64) * ROWS
        x_sample, x_line = x_sample.to(tl.int64), x_line.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    sample, line, place = place_of(row, outer, out_height, out_width, BY_SAMPLE)
    top = line * STRIDE_HEIGHT - PADDING_HEIGHT
    left = place * STRIDE_WIDTH - PADDING_WIDTH
    start = sample * (x_sample * UNIT) + (top * width + left) * (x_line * UNIT)
    in_rows = row < positions
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    channel = group * columns + column
    weight_start = channel * (KERNEL_HEIGHT * KERNEL_WIDTH * depth)
    x_group = x + group * depth
    channels = groups * depth

    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    blocks = tl.cdiv(depth, DEPTH)
    total = KERNEL_HEIGHT * KERNEL_WIDTH * depth
    steps = tl.cdiv(total, DEPTH) if FLAT else KERNEL_HEIGHT * KERNEL_WIDTH * blocks
    for step in range(steps):
        if FLAT:
            k = step * DEPTH + tl.arange(0, DEPTH)
            in_depth = k < total
            tap = k // depth
            member = k % depth
            down = (tap // KERNEL_WIDTH * DILATION_HEIGHT)[None, :]
            along = (tap % KERNEL_WIDTH * DILATION_WIDTH)[None, :]
            inside = (top[:, None] + down >= 0) & (top[:, None] + down < height)
            inside = inside & (left[:, None] + along >= 0) & (left[:, None] + along < width) & in_rows[:, None]
            offsets = start[:, None] + (down * width + along) * (x_line * UNIT) + member[None, :]
        else:
            tap = step // blocks
            member = step % blocks * DEPTH + tl.arange(0, DEPTH)
            in_depth = member < depth
            k = tap * depth + member
            down = tap // KERNEL_WIDTH * DILATION_HEIGHT
            along = tap % KERNEL_WIDTH * DILATION_WIDTH
            inside = (top + down >= 0) & (top + down < height) & (left + along >= 0) & (left + along < width)
            inside = (inside & in_rows)[:, None]
            offsets = (start + (down * width + along) * (x_line * UNIT))[:, None] + member[None, :]
        mask = inside & in_depth[None, :]
        mean, rest, scale, shift = 0.0, 0.0, 0.0, 0.0
        if table is not None:
            source = group * depth + member
            mean, rest, scale, shift = load_coefficients(table, outer, outers, source, channels, in_depth)
            mean, rest, scale, shift = mean[None, :], rest[None, :], scale[None, :], shift[None, :]
        a = activated_tile(
            x_group + offsets, mask, mean, rest, scale, shift, parameter,
            table is not None, ACTIVATION, ACTIVATION_FIRST,
        )  # fmt: skip
        b = attention_tiles.load(
            weight + weight_start[None, :] + k[:, None], in_depth[:, None] & in_columns[None, :], True
        )
        accumulator = product(a, b, accumulator, PRECISION)
    finish_output(
        accumulator, y, bias, partials, row, first, positions, outer, outers, chunk, chunks, channel, in_columns,
        groups * columns, ROWS, COLUMNS,
    )  # fmt: skip
