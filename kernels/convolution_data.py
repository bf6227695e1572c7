"""The gradient of the convolution's input, as an implicit product: rows are input positions, the depth is kernel
positions x output channels, the columns are input channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels import attention_tiles
from fastdl.kernels.convolution_tiles import finish_gradient, integers, place_of, product


@triton.jit
def first_tap(phase, PADDING: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, PERIOD: tl.constexpr,
              KERNEL: tl.constexpr):  # fmt: skip
    """The first of the kernel positions k that meet an input position p of this phase (p modulo the stride): those for
    which the stride divides p + PADDING - k DILATION. They lie ``PERIOD`` apart; ``KERNEL`` where there are none."""
    found = phase * 0 + KERNEL
    for k in tl.static_range(PERIOD):
        found = tl.where((phase + PADDING - k * DILATION + STRIDE * DILATION * PERIOD) % STRIDE == 0, k, found)
    return found


@triton.jit
def phase_place(
    row, outer, phase, height, width, STRIDE_HEIGHT: tl.constexpr, STRIDE_WIDTH: tl.constexpr, BY_SAMPLE: tl.constexpr
):
    """Sample, line and column, in steps of the stride, of the rows of a phase, and the phase's own line and column."""
    top_phase = phase // STRIDE_WIDTH
    left_phase = phase % STRIDE_WIDTH
    lines = tl.maximum(tl.cdiv(height - top_phase, STRIDE_HEIGHT), 1)
    places = tl.maximum(tl.cdiv(width - left_phase, STRIDE_WIDTH), 1)
    sample, line, place = place_of(row, outer, lines, places, BY_SAMPLE)
    return sample, line, place, top_phase, left_phase


@triton.jit
def rows_of_phase(phase, height, width, samples, STRIDE_HEIGHT: tl.constexpr, STRIDE_WIDTH: tl.constexpr,
                  BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """How many rows a phase has, in an outer part."""
    count = tl.cdiv(height - phase // STRIDE_WIDTH, STRIDE_HEIGHT) * tl.cdiv(width - phase % STRIDE_WIDTH, STRIDE_WIDTH)
    if WIDE:
        count = count.to(tl.int64)
    if not BY_SAMPLE:
        count = count * samples
    return count


@triton.jit(
    do_not_specialize=integers(
        "grad_sample grad_line x_sample x_line height width out_height out_width samples outers depth_units "
        "column_units groups chunks"
    )
)
def convolve_data(
    grad, weight, x, table, grad_x, partials,
    grad_sample, grad_line, x_sample, x_line, height, width, out_height, out_width, samples, outers,
    depth_units, column_units, groups, chunks, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE_HEIGHT: tl.constexpr, STRIDE_WIDTH: tl.constexpr,
    PADDING_HEIGHT: tl.constexpr, PADDING_WIDTH: tl.constexpr,
    DILATION_HEIGHT: tl.constexpr, DILATION_WIDTH: tl.constexpr,
    PERIOD_HEIGHT: tl.constexpr, PERIOD_WIDTH: tl.constexpr,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr, CONSTANT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``grad_x`` (N, positions, C), dense, as `finish_gradient` has it.

    With a stride the input's positions fall into phases, height x width of the stride. Those of one phase meet the same
    kernel positions, and no others are visited. ``chunks`` tiles of rows are counted out to each phase, as many as the
    largest has. ``depth_units`` are of output channels, in units of ``OUT_UNIT``; ``column_units`` of input channels.
    """
    depth = depth_units * OUT_UNIT
    columns = column_units * UNIT
    column_blocks = tl.cdiv(columns, COLUMNS)
    PHASES: tl.constexpr = STRIDE_HEIGHT * STRIDE_WIDTH
    block = tl.program_id(0) % column_blocks
    rest_of_program = tl.program_id(0) // column_blocks
    group = rest_of_program % groups
    phase = rest_of_program // groups % PHASES
    chunk = rest_of_program // groups // PHASES % chunks
    outer = rest_of_program // groups // PHASES // chunks

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
    in_columns = column < columns

    top_tap = first_tap(top_phase, PADDING_HEIGHT, STRIDE_HEIGHT, DILATION_HEIGHT, PERIOD_HEIGHT, KERNEL_HEIGHT)
    left_tap = first_tap(left_phase, PADDING_WIDTH, STRIDE_WIDTH, DILATION_WIDTH, PERIOD_WIDTH, KERNEL_WIDTH)
    top_taps = tl.cdiv(KERNEL_HEIGHT - top_tap, PERIOD_HEIGHT)
    left_taps = tl.cdiv(KERNEL_WIDTH - left_tap, PERIOD_WIDTH)
    # Output positions that the first of the taps meets; each further tap is a step back.
    TOP_STEP: tl.constexpr = PERIOD_HEIGHT * DILATION_HEIGHT // STRIDE_HEIGHT
    LEFT_STEP: tl.constexpr = PERIOD_WIDTH * DILATION_WIDTH // STRIDE_WIDTH
    top = line + (top_phase + PADDING_HEIGHT - top_tap * DILATION_HEIGHT) // STRIDE_HEIGHT
    left = place + (left_phase + PADDING_WIDTH - left_tap * DILATION_WIDTH) // STRIDE_WIDTH
    start = sample * (grad_sample * OUT_UNIT) + (top * out_width + left) * (grad_line * OUT_UNIT)
    grad_group = grad + group * depth
    run = KERNEL_HEIGHT * KERNEL_WIDTH * columns  # of an output channel's weight
    weight_group = weight + group * depth * run

    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    blocks = tl.cdiv(depth, DEPTH)
    steps = top_taps * left_taps * blocks
    steps = tl.where(first < count, steps, 0)
    for step in range(steps):
        tap = step // blocks
        member = step % blocks * DEPTH + tl.arange(0, DEPTH)
        in_depth = member < depth
        down = tap // left_taps
        along = tap % left_taps
        inside = (top >= down * TOP_STEP) & (top - down * TOP_STEP < out_height)
        inside = inside & (left >= along * LEFT_STEP) & (left - along * LEFT_STEP < out_width) & in_rows
        offsets = start - (down * TOP_STEP * out_width + along * LEFT_STEP) * (grad_line * OUT_UNIT)
        a = attention_tiles.load(
            grad_group + offsets[:, None] + member[None, :], inside[:, None] & in_depth[None, :], True
        )
        number = (top_tap + down * PERIOD_HEIGHT) * KERNEL_WIDTH + left_tap + along * PERIOD_WIDTH
        b = attention_tiles.load(
            weight_group + (member * run + number * columns)[:, None] + column[None, :],
            in_depth[:, None] & in_columns[None, :], True,
        )  # fmt: skip
        accumulator = product(a, b, accumulator, PRECISION)
    position = (line * STRIDE_HEIGHT + top_phase) * width + place * STRIDE_WIDTH + left_phase
    write_phase(
        accumulator, x, grad_x, table, partials, sample, position, in_rows, x_sample, x_line, height * width, outer,
        outers, chunk * PHASES + phase, chunks * PHASES, group * columns + column, in_columns, groups * columns,
        parameter, ROWS, COLUMNS, UNIT, ACTIVATION, ACTIVATION_FIRST, CONSTANT,
    )  # fmt: skip


@triton.jit
def write_phase(
    g, x, grad_x, table, partials, sample, position, in_rows, x_sample, x_line, area, outer, outers, chunk, chunks,
    channel, in_columns, channels, parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr, CONSTANT: tl.constexpr,
):  # fmt: skip
    """`finish_gradient` for rows of a phase: ``position`` is that in the sample."""
    mask = in_rows[:, None] & in_columns[None, :]
    offsets = (sample * (x_sample * UNIT) + position * (x_line * UNIT))[:, None] + channel[None, :]
    place = ((sample * area + position) * channels)[:, None] + channel[None, :]
    finish_gradient(
        g, x, grad_x, table, partials, offsets, place, mask, outer, outers, chunk, chunks, channel, in_columns,
        channels, parameter, ROWS, COLUMNS, ACTIVATION, ACTIVATION_FIRST, CONSTANT,
    )  # fmt: skip
