"""The split path's statistics: moments by channel of a chunk of positions, then merged to those of each group."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.activations import activate
from fastdl.kernels.tiles import load, outer_part, spread_by_group, sum_by_group, sum_positions, tile_offsets


@triton.jit
def read_normalized_tensor(
    x_start, residual_start, p, c, mask, x_sample, x_line, residual_sample, residual_line, inner, parameter,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """A tile of what is normalised: of x, or of ``act(x) + residual`` where the activation comes first."""
    z = load(x_start + tile_offsets(p, c, x_sample, x_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE), mask)
    if ACTIVATION_FIRST:
        z = activate(z, parameter, ACTIVATION)
        if residual_start is not None:
            offsets = tile_offsets(p, c, residual_sample, residual_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
            z += load(residual_start + offsets, mask)
    return z


@triton.jit(
    do_not_specialize=[
        "x_sample", "x_line", "residual_sample", "residual_line", "positions", "inner", "outer", "channel_units",
        "chunks", "tiles",
    ]
)  # fmt: skip
def partial_moments(
    x, residual, partials,
    x_sample, x_line, residual_sample, residual_line,
    positions, inner, outer, channel_units, chunks, tiles, parameter,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations by channel of a chunk of ``tiles`` tiles, into float64 ``partials``
    (2, outer, chunks, channels).

    Each place of the tile keeps Welford's moments of the values that pass it, with no exchange between threads before
    the end. The values are shifted by the first tile's mean, so that no digit is lost at a mean far above the
    deviation.
    """
    POSITION_UNIT: tl.constexpr = 1 if CHANNELS_LAST else UNIT
    CHANNEL_UNIT: tl.constexpr = UNIT if CHANNELS_LAST else 1
    channels = channel_units * CHANNEL_UNIT
    positions = positions * POSITION_UNIT
    inner = inner * POSITION_UNIT
    blocks = tl.cdiv(channels, CHANNELS)
    block = tl.program_id(0) % blocks
    chunk = tl.program_id(0) // blocks % chunks
    sample = tl.program_id(0) // blocks // chunks
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    in_channels = channel < channels
    c = channel[None, :]
    x_start = outer_part(x, sample, x_sample, UNIT, BY_SAMPLE)
    residual_start = None
    if residual is not None:
        residual_start = outer_part(residual, sample, residual_sample, UNIT, BY_SAMPLE)

    first = chunk * tiles
    if WIDE:
        first = first.to(tl.int64)
    position = first * POSITIONS + tl.arange(0, POSITIONS)
    mask = (position < positions)[:, None] & in_channels[None, :]
    z = read_normalized_tensor(
        x_start, residual_start, position[:, None], c, mask,
        x_sample, x_line, residual_sample, residual_line, inner, parameter,
        UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE, ACTIVATION, ACTIVATION_FIRST,
    )  # fmt: skip
    there = tl.minimum(positions - first * POSITIONS, POSITIONS).to(tl.float32)
    shift = sum_positions(tl.where(mask, z, 0.0), POSITIONS, CHANNELS) / there
    mean = tl.where(mask, z - shift[None, :], 0.0)
    squares = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    for tile in range(1, tiles):
        position = (first + tile) * POSITIONS + tl.arange(0, POSITIONS)
        mask = (position < positions)[:, None] & in_channels[None, :]
        z = read_normalized_tensor(
            x_start, residual_start, position[:, None], c, mask,
            x_sample, x_line, residual_sample, residual_line, inner, parameter,
            UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE, ACTIVATION, ACTIVATION_FIRST,
        )  # fmt: skip
        step = 1.0 / tl.cast(tile + 1, tl.float32)
        deviation = tl.where(mask, (z - shift[None, :]) - mean, 0.0)
        mean += deviation * step
        squares += deviation * deviation * (1.0 - step)

    # How many values passed each place; all have the chunk's tiles but for those beyond the last position.
    left = positions - first * POSITIONS - tl.arange(0, POSITIONS)
    passed = tl.minimum(tl.maximum((left + POSITIONS - 1) // POSITIONS, 0), tiles).to(tl.float32)[:, None]
    count = tl.minimum(positions - first * POSITIONS, tiles * POSITIONS).to(tl.float32)
    middle = sum_positions(mean * passed, POSITIONS, CHANNELS) / count
    deviation = tl.where(passed > 0, mean - middle[None, :], 0.0)
    squares = sum_positions(squares + passed * deviation * deviation, POSITIONS, CHANNELS)
    at = partials + (sample * chunks + chunk).to(tl.int64) * channels + channel
    tl.store(at, shift.to(tl.float64) + middle.to(tl.float64), mask=in_channels)
    plane = (outer * chunks).to(tl.int64) * channels
    tl.store(at + plane, squares.to(tl.float64), mask=in_channels)


@triton.jit(do_not_specialize=["positions", "outer", "groups", "chunks", "chunk_length"])
def merge_moments(
    partials, statistics, positions, outer, groups, chunks, chunk_length,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, TABLE: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Each group's mean and biased variance, (2, outer, groups), from ``partials`` (2, outer, chunks, channels).

    Chan's formula for any number of parts, in float64: the squared deviations add up, and so do those of the parts'
    means from the mean of all. A group wider than a tile is taken in ``BLOCKS`` blocks, and is then alone.
    """
    blocks = tl.cdiv(groups, GROUPS)
    sample = tl.program_id(0) // blocks
    first_group = (tl.program_id(0) % blocks) * GROUPS
    channels = groups * WIDTH
    bound = tl.minimum(GROUPS * WIDTH, channels - first_group * WIDTH)
    start = partials + (sample * chunks).to(tl.int64) * channels + first_group * WIDTH
    plane = (outer * chunks).to(tl.int64) * channels
    PER_TABLE: tl.constexpr = WIDTH if BLOCKS == 1 else CHANNELS

    total = tl.zeros([TABLE], tl.float64)
    for block in range(BLOCKS):
        column = block * CHANNELS + tl.arange(0, CHANNELS)
        sums = tl.zeros([CHANNELS], tl.float64)
        for row in range(0, chunks, ROWS):
            chunk = (row + tl.arange(0, ROWS)).to(tl.int64)
            mask = (chunk < chunks)[:, None] & (column < bound)[None, :]
            at = start + chunk[:, None] * channels + column[None, :]
            count = tl.minimum(positions - chunk * chunk_length, chunk_length).to(tl.float64)[:, None]
            sums += tl.sum(tl.where(mask, tl.load(at, mask=mask, other=0.0) * count, 0.0), axis=0)
        total += sum_by_group(sums, PER_TABLE, TABLE, CHANNELS)
    members = positions.to(tl.float64) * WIDTH
    mean = total / members

    total = tl.zeros([TABLE], tl.float64)
    for block in range(BLOCKS):
        column = block * CHANNELS + tl.arange(0, CHANNELS)
        sums = tl.zeros([CHANNELS], tl.float64)
        middle = spread_by_group(mean, PER_TABLE, TABLE, CHANNELS)[None, :]
        for row in range(0, chunks, ROWS):
            chunk = (row + tl.arange(0, ROWS)).to(tl.int64)
            mask = (chunk < chunks)[:, None] & (column < bound)[None, :]
            at = start + chunk[:, None] * channels + column[None, :]
            count = tl.minimum(positions - chunk * chunk_length, chunk_length).to(tl.float64)[:, None]
            deviation = tl.load(at, mask=mask, other=0.0) - middle
            squares = tl.load(at + plane, mask=mask, other=0.0) + deviation * deviation * count
            sums += tl.sum(tl.where(mask, squares, 0.0), axis=0)
        total += sum_by_group(sums, PER_TABLE, TABLE, CHANNELS)

    table = tl.arange(0, TABLE)
    in_table = (table < GROUPS) & (first_group + table < groups)
    at = statistics + sample * groups + first_group + table
    tl.store(at, mean, mask=in_table)
    tl.store(at + outer * groups, total / members, mask=in_table)
