"""Convolutions of many groups of few channels, depthwise ones above all, whose products are too narrow for the matrix
units: a tile is positions x channels of all groups, and each kernel position is a product by element.

``weight`` is (kernel positions, channels of a group, C_out). ``IN_GROUP`` and ``OUT_GROUP`` are a group's channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.attention_tiles import rounded
from fastdl.kernels.convolution_data import first_tap, phase_place, rows_of_phase, write_phase
from fastdl.kernels.convolution_tiles import (
    finish_output,
    integers,
    load_coefficients,
    normalized_activation,
    place_of,
)
from fastdl.kernels.tiles import load


@triton.jit(
    do_not_specialize=integers("x_sample x_line height width out_height out_width positions outers in_units out_units")
)
def direct_forward(
    x, weight, bias, table, y, partials,
    x_sample, x_line, height, width, out_height, out_width, positions, outers, in_units, out_units, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, IN_GROUP: tl.constexpr, OUT_GROUP: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE_HEIGHT: tl.constexpr, STRIDE_WIDTH: tl.constexpr,
    PADDING_HEIGHT: tl.constexpr, PADDING_WIDTH: tl.constexpr,
    DILATION_HEIGHT: tl.constexpr, DILATION_WIDTH: tl.constexpr,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """As `convolve_forward`; ``in_units`` and ``out_units`` count all channels."""
    channels = in_units * UNIT
    out_channels = out_units * OUT_UNIT
    blocks = tl.cdiv(out_channels, COLUMNS)
    chunks = tl.cdiv(positions, ROWS).to(tl.int32)
    block = tl.program_id(0) % blocks
    chunk = tl.program_id(0) // blocks % chunks
    outer = tl.program_id(0) // blocks // chunks
    first = chunk * ROWS
    if WIDE:
        first = chunk.to(tl.int64) * ROWS
        x_sample, x_line = x_sample.to(tl.int64), x_line.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    in_rows = row < positions
    sample, line, place = place_of(row, outer, out_height, out_width, BY_SAMPLE)
    top = line * STRIDE_HEIGHT - PADDING_HEIGHT
    left = place * STRIDE_WIDTH - PADDING_WIDTH
    start = sample * (x_sample * UNIT) + (top * width + left) * (x_line * UNIT)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < out_channels

    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for member in range(IN_GROUP):
        channel = column // OUT_GROUP * IN_GROUP + member
        mean, rest, scale, shift = 0.0, 0.0, 0.0, 0.0
        if table is not None:
            mean, rest, scale, shift = load_coefficients(table, outer, outers, channel, channels, in_columns)
            mean, rest, scale, shift = mean[None, :], rest[None, :], scale[None, :], shift[None, :]
        for tap in range(KERNEL_HEIGHT * KERNEL_WIDTH):
            down = tap // KERNEL_WIDTH * DILATION_HEIGHT
            along = tap % KERNEL_WIDTH * DILATION_WIDTH
            inside = (top + down >= 0) & (top + down < height) & (left + along >= 0) & (left + along < width) & in_rows
            mask = inside[:, None] & in_columns[None, :]
            offsets = (start + (down * width + along) * (x_line * UNIT))[:, None] + channel[None, :]
            z = load(x + offsets, mask)
            z = normalized_activation(
                z, mean, rest, scale, shift, parameter, table is not None, ACTIVATION, ACTIVATION_FIRST
            )
            z = rounded(tl.where(mask, z, 0.0), x.dtype.element_ty).to(tl.float32)
            w = load(weight + (tap * IN_GROUP + member) * out_channels + column, in_columns)
            accumulator += z * w[None, :]
    finish_output(
        accumulator, y, bias, partials, row, first, positions, outer, outers, chunk, chunks, column, in_columns,
        out_channels, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=integers(
        "grad_sample grad_line x_sample x_line height width out_height out_width samples outers in_units out_units "
        "chunks"
    )
)
def direct_data(
    grad, weight, x, table, grad_x, partials,
    grad_sample, grad_line, x_sample, x_line, height, width, out_height, out_width, samples, outers,
    in_units, out_units, chunks, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, IN_GROUP: tl.constexpr, OUT_GROUP: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE_HEIGHT: tl.constexpr, STRIDE_WIDTH: tl.constexpr,
    PADDING_HEIGHT: tl.constexpr, PADDING_WIDTH: tl.constexpr,
    DILATION_HEIGHT: tl.constexpr, DILATION_WIDTH: tl.constexpr,
    PERIOD_HEIGHT: tl.constexpr, PERIOD_WIDTH: tl.constexpr,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr, CONSTANT: tl.constexpr,
):  # fmt: skip
    """As `convolve_data`; ``in_units`` and ``out_units`` count all channels."""
    channels = in_units * UNIT
    out_channels = out_units * OUT_UNIT
    PHASES: tl.constexpr = STRIDE_HEIGHT * STRIDE_WIDTH
    blocks = tl.cdiv(channels, COLUMNS)
    block = tl.program_id(0) % blocks
    phase = tl.program_id(0) // blocks % PHASES
    chunk = tl.program_id(0) // blocks // PHASES % chunks
    outer = tl.program_id(0) // blocks // PHASES // chunks
    first = chunk * ROWS
    if WIDE:
        first = chunk.to(tl.int64) * ROWS
        grad_sample, grad_line = grad_sample.to(tl.int64), grad_line.to(tl.int64)
        x_sample, x_line = x_sample.to(tl.int64), x_line.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    count = rows_of_phase(phase, height, width, samples, STRIDE_HEIGHT, STRIDE_WIDTH, BY_SAMPLE, WIDE)
    sample, line, place, top_phase, left_phase = phase_place(
        row, outer, phase, height, width, STRIDE_HEIGHT, STRIDE_WIDTH, BY_SAMPLE
    )
    in_rows = row < count
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < channels
    top_tap = first_tap(top_phase, PADDING_HEIGHT, STRIDE_HEIGHT, DILATION_HEIGHT, PERIOD_HEIGHT, KERNEL_HEIGHT)
    left_tap = first_tap(left_phase, PADDING_WIDTH, STRIDE_WIDTH, DILATION_WIDTH, PERIOD_WIDTH, KERNEL_WIDTH)
    left_taps = tl.cdiv(KERNEL_WIDTH - left_tap, PERIOD_WIDTH)
    taps = tl.cdiv(KERNEL_HEIGHT - top_tap, PERIOD_HEIGHT) * left_taps
    taps = tl.where(first < count, taps, 0)
    TOP_STEP: tl.constexpr = PERIOD_HEIGHT * DILATION_HEIGHT // STRIDE_HEIGHT
    LEFT_STEP: tl.constexpr = PERIOD_WIDTH * DILATION_WIDTH // STRIDE_WIDTH
    top = line + (top_phase + PADDING_HEIGHT - top_tap * DILATION_HEIGHT) // STRIDE_HEIGHT
    left = place + (left_phase + PADDING_WIDTH - left_tap * DILATION_WIDTH) // STRIDE_WIDTH
    start = sample * (grad_sample * OUT_UNIT) + (top * out_width + left) * (grad_line * OUT_UNIT)

    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for member in range(OUT_GROUP):
        channel = column // IN_GROUP * OUT_GROUP + member
        for tap in range(taps):
            down = tap // left_taps
            along = tap % left_taps
            inside = (top >= down * TOP_STEP) & (top - down * TOP_STEP < out_height)
            inside = inside & (left >= along * LEFT_STEP) & (left - along * LEFT_STEP < out_width) & in_rows
            offsets = start - (down * TOP_STEP * out_width + along * LEFT_STEP) * (grad_line * OUT_UNIT)
            g = load(grad + offsets[:, None] + channel[None, :], inside[:, None] & in_columns[None, :])
            number = (top_tap + down * PERIOD_HEIGHT) * KERNEL_WIDTH + left_tap + along * PERIOD_WIDTH
            w = load(weight + (number * IN_GROUP + column % IN_GROUP) * out_channels + channel, in_columns)
            accumulator += g * w[None, :]
    position = (line * STRIDE_HEIGHT + top_phase) * width + place * STRIDE_WIDTH + left_phase
    write_phase(
        accumulator, x, grad_x, table, partials, sample, position, in_rows, x_sample, x_line, height * width, outer,
        outers, chunk * PHASES + phase, chunks * PHASES, column, in_columns, channels, parameter,
        ROWS, COLUMNS, UNIT, ACTIVATION, ACTIVATION_FIRST, CONSTANT,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=integers(
        "x_sample x_line grad_sample grad_line height width out_height out_width positions outers in_units out_units "
        "tiles splits"
    )
)
def direct_weight(
    x, grad, table, partials,
    x_sample, x_line, grad_sample, grad_line, height, width, out_height, out_width, positions, outers,
    in_units, out_units, tiles, splits, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr, IN_GROUP: tl.constexpr, OUT_GROUP: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE_HEIGHT: tl.constexpr, STRIDE_WIDTH: tl.constexpr,
    PADDING_HEIGHT: tl.constexpr, PADDING_WIDTH: tl.constexpr,
    DILATION_HEIGHT: tl.constexpr, DILATION_WIDTH: tl.constexpr,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """As `convolve_weight`. A program has one line of the kernel, ``TAPS`` (a power of two) positions long at least,
    and one channel of each group: a tile in three dimensions, whose positions are added up at the end."""
    channels = in_units * UNIT
    out_channels = out_units * OUT_UNIT
    blocks = tl.cdiv(out_channels, COLUMNS)
    block = tl.program_id(0) % blocks
    rest_of_program = tl.program_id(0) // blocks
    kernel_line = rest_of_program % KERNEL_HEIGHT
    member = rest_of_program // KERNEL_HEIGHT % IN_GROUP
    split = rest_of_program // KERNEL_HEIGHT // IN_GROUP
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < out_channels
    channel = column // OUT_GROUP * IN_GROUP + member
    tap = tl.arange(0, TAPS)
    along = (tap * DILATION_WIDTH - PADDING_WIDTH)[:, None]
    down = kernel_line * DILATION_HEIGHT - PADDING_HEIGHT
    if WIDE:
        grad_sample, grad_line = grad_sample.to(tl.int64), grad_line.to(tl.int64)
        x_sample, x_line = x_sample.to(tl.int64), x_line.to(tl.int64)
    each = tl.cdiv(positions, ROWS).to(tl.int32)
    last = tl.minimum((split + 1) * tiles, each * outers)

    mean, rest, scale, shift = 0.0, 0.0, 0.0, 0.0
    if table is not None and not BY_SAMPLE:
        mean, rest, scale, shift = load_coefficients(table, split * 0, outers, channel, channels, in_columns)
        mean, rest = mean[None, None, :], rest[None, None, :]
        scale, shift = scale[None, None, :], shift[None, None, :]
    accumulator = tl.zeros([TAPS, ROWS, COLUMNS], tl.float32)
    for tile in range(split * tiles, last):
        outer = tile // each
        first = tile % each * ROWS
        if WIDE:
            first = (tile % each).to(tl.int64) * ROWS
        row = first + tl.arange(0, ROWS)
        in_rows = row < positions
        sample, line, place = place_of(row, outer, out_height, out_width, BY_SAMPLE)
        high, low, slope, offset = mean, rest, scale, shift
        if table is not None and BY_SAMPLE:
            high, low, slope, offset = load_coefficients(table, outer, outers, channel, channels, in_columns)
            high, low = high[None, None, :], low[None, None, :]
            slope, offset = slope[None, None, :], offset[None, None, :]
        start = sample * (grad_sample * OUT_UNIT) + (line * out_width + place) * (grad_line * OUT_UNIT)
        g = load(grad + start[:, None] + column[None, :], in_rows[:, None] & in_columns[None, :])
        top = line * STRIDE_HEIGHT + down
        left = (place * STRIDE_WIDTH)[None, :] + along
        inside = ((top >= 0) & (top < height) & in_rows)[None, :] & (left >= 0) & (left < width)
        inside = inside & (tap < KERNEL_WIDTH)[:, None]
        offsets = (sample * (x_sample * UNIT) + top * width * (x_line * UNIT))[None, :] + left * (x_line * UNIT)
        mask = inside[:, :, None] & in_columns[None, None, :]
        z = load(x + offsets[:, :, None] + channel[None, None, :], mask)
        z = normalized_activation(
            z, high, low, slope, offset, parameter, table is not None, ACTIVATION, ACTIVATION_FIRST
        )
        z = rounded(tl.where(mask, z, 0.0), x.dtype.element_ty).to(tl.float32)
        accumulator += z * g[None, :, :]
    total = tl.sum(accumulator, axis=1)
    size = KERNEL_HEIGHT * KERNEL_WIDTH * IN_GROUP
    number = (kernel_line * KERNEL_WIDTH + tap) * IN_GROUP + member
    at = partials + (split.to(tl.int64) * out_channels + column)[None, :] * size + number[:, None]
    tl.store(at, total, mask=(tap < KERNEL_WIDTH)[:, None] & in_columns[None, :])
