"""The split path's passes over the tensors, for groups too large to be kept on chip, in chunks of positions.

Forward: partial moments, merge (`fastdl.kernels.moments`), `apply_forward`. Backward: `partial_sums`, `merge_sums`,
`apply_backward`. A program takes a block of channels, whatever their groups, and a chunk of ``tiles`` tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.activations import activate, slope_times
from fastdl.kernels.moments import read_normalized_tensor
from fastdl.kernels.tiles import (
    load,
    load_parameter,
    load_wide,
    outer_part,
    reciprocal_deviation,
    split_mean,
    store,
    sum_by_group,
    sum_positions,
    tile_offsets,
)

INTEGERS = [
    "x_sample", "x_line", "residual_sample", "residual_line", "y_sample", "y_line", "grad_sample", "grad_line",
    "weight_stride", "bias_stride", "mean_stride", "var_stride", "positions", "inner", "outer", "groups",
    "channel_units", "chunks", "tiles",
]  # fmt: skip


def integers(*missing: str) -> list[str]:
    """The integer arguments of a kernel that lacks those whose names begin so: none is worth a compilation of its own.

    What alignment needs to know is in ``UNIT``.
    """
    return [name for name in INTEGERS if not name.startswith(missing)]


@triton.jit
def load_statistics(statistics, index, count, mask, eps):
    """Mean in two parts and reciprocal deviation, from float64 ``statistics`` (2, count)."""
    mean, rest = split_mean(tl.load(statistics + index, mask=mask, other=0.0))
    return mean, rest, reciprocal_deviation(tl.load(statistics + count + index, mask=mask, other=1.0), eps)


@triton.jit(do_not_specialize=integers("grad"))
def apply_forward(
    x, residual, y, weight, bias, statistics, running_mean, running_var,
    x_sample, x_line, residual_sample, residual_line, y_sample, y_line,
    weight_stride, bias_stride, mean_stride, var_stride,
    positions, inner, outer, groups, channel_units, chunks, tiles, eps, parameter,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """y from known statistics: of ``statistics`` (2, outer, groups), or the running ones, which are then copied there
    in float64 by the first program of each block of channels."""
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

    if running_mean is not None:
        mean64 = load_wide(running_mean + channel * mean_stride, in_channels, 0.0)
        var64 = load_wide(running_var + channel * var_stride, in_channels, 1.0)
        if chunk == 0:
            tl.store(statistics + channel, mean64, mask=in_channels)
            tl.store(statistics + groups + channel, var64, mask=in_channels)
        mean, rest = split_mean(mean64)
        deviation = reciprocal_deviation(var64, eps)
    else:
        index = sample * groups + channel // WIDTH
        mean, rest, deviation = load_statistics(statistics, index, outer * groups, in_channels, eps)
    scale = deviation * load_parameter(weight, channel, weight_stride, in_channels, 1.0)
    shift = load_parameter(bias, channel, bias_stride, in_channels, 0.0) - rest * scale

    x_start = outer_part(x, sample, x_sample, UNIT, BY_SAMPLE)
    residual_start = None
    if residual is not None:
        residual_start = outer_part(residual, sample, residual_sample, UNIT, BY_SAMPLE)
    y_start = outer_part(y, sample, y_sample, UNIT, BY_SAMPLE)
    first = chunk * tiles
    if WIDE:
        first = first.to(tl.int64)
    for tile in range(tiles):
        position = (first + tile) * POSITIONS + tl.arange(0, POSITIONS)
        mask = (position < positions)[:, None] & in_channels[None, :]
        p = position[:, None]
        z = read_normalized_tensor(
            x_start, residual_start, p, c, mask, x_sample, x_line, residual_sample, residual_line, inner, parameter,
            UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE, ACTIVATION, ACTIVATION_FIRST,
        )  # fmt: skip
        z = (z - mean[None, :]) * scale[None, :] + shift[None, :]
        if not ACTIVATION_FIRST:
            if residual is not None:
                offsets = tile_offsets(
                    p, c, residual_sample, residual_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE
                )
                z += load(residual_start + offsets, mask)
            z = activate(z, parameter, ACTIVATION)
        store(y_start + tile_offsets(p, c, y_sample, y_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE), z, mask)


@triton.jit
def gradient_of_affine(
    g, x_start, residual_start, p, c, mask, mean, rest, deviation, w, b,
    x_sample, x_line, residual_sample, residual_line, inner, parameter,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """The gradient of the affine map's result, and xhat = (x - mean) d, of a tile."""
    z = read_normalized_tensor(
        x_start, residual_start, p, c, mask, x_sample, x_line, residual_sample, residual_line, inner, parameter,
        UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE, ACTIVATION, ACTIVATION_FIRST,
    )  # fmt: skip
    z = ((z - mean[None, :]) - rest[None, :]) * deviation[None, :]
    if not ACTIVATION_FIRST:
        u = z * w[None, :] + b[None, :]
        if residual_start is not None:
            offsets = tile_offsets(p, c, residual_sample, residual_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
            u += load(residual_start + offsets, mask)
        g = slope_times(g, u, parameter, ACTIVATION)
    return g, z


@triton.jit(do_not_specialize=integers("y_", "mean", "var"))
def partial_sums(
    grad, x, residual, weight, bias, statistics, partials,
    grad_sample, grad_line, x_sample, x_line, residual_sample, residual_line, weight_stride, bias_stride,
    positions, inner, outer, groups, channel_units, chunks, tiles, eps, parameter,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """By channel of a chunk: the sums of gu and of gu xhat, into float32 ``partials`` (2, outer, chunks, channels)."""
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
    index = sample * groups + channel // WIDTH
    mean, rest, deviation = load_statistics(statistics, index, outer * groups, in_channels, eps)
    w = load_parameter(weight, channel, weight_stride, in_channels, 1.0)
    b = load_parameter(bias, channel, bias_stride, in_channels, 0.0)

    grad_start = outer_part(grad, sample, grad_sample, UNIT, BY_SAMPLE)
    x_start = outer_part(x, sample, x_sample, UNIT, BY_SAMPLE)
    residual_start = None
    if residual is not None:
        residual_start = outer_part(residual, sample, residual_sample, UNIT, BY_SAMPLE)
    sums = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    products = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    first = chunk * tiles
    if WIDE:
        first = first.to(tl.int64)
    for tile in range(tiles):
        position = (first + tile) * POSITIONS + tl.arange(0, POSITIONS)
        mask = (position < positions)[:, None] & in_channels[None, :]
        p = position[:, None]
        offsets = tile_offsets(p, c, grad_sample, grad_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
        g, z = gradient_of_affine(
            load(grad_start + offsets, mask), x_start, residual_start, p, c, mask, mean, rest, deviation, w, b,
            x_sample, x_line, residual_sample, residual_line, inner, parameter,
            UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE, ACTIVATION, ACTIVATION_FIRST,
        )  # fmt: skip
        sums += g  # 0 where masked off, as the output's gradient is there
        products += g * z
    at = partials + (sample * chunks + chunk).to(tl.int64) * channels + channel
    plane = (outer * chunks).to(tl.int64) * channels
    tl.store(at, sum_positions(sums, POSITIONS, CHANNELS), mask=in_channels)
    tl.store(at + plane, sum_positions(products, POSITIONS, CHANNELS), mask=in_channels)


@triton.jit(do_not_specialize=["outer", "groups", "chunks", "weight_stride"])
def merge_sums(
    partials, weight, totals, weight_sums, bias_sums, weight_stride, outer, groups, chunks,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, TABLE: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """From ``partials`` by chunk to each group's sums of w gu and w gu xhat, float32 ``totals`` (2, outer, groups),
    and to each channel's sums of gu xhat and gu, ``weight_sums`` and ``bias_sums`` (outer, channels)."""
    blocks = tl.cdiv(groups, GROUPS)
    sample = tl.program_id(0) // blocks
    first_group = (tl.program_id(0) % blocks) * GROUPS
    channels = groups * WIDTH
    bound = tl.minimum(GROUPS * WIDTH, channels - first_group * WIDTH)
    start = partials + (sample * chunks).to(tl.int64) * channels + first_group * WIDTH
    plane = (outer * chunks).to(tl.int64) * channels
    PER_TABLE: tl.constexpr = WIDTH if BLOCKS == 1 else CHANNELS

    total = tl.zeros([TABLE], tl.float64)
    total_product = tl.zeros([TABLE], tl.float64)
    for block in range(BLOCKS):
        column = block * CHANNELS + tl.arange(0, CHANNELS)
        in_bound = column < bound
        sums = tl.zeros([CHANNELS], tl.float64)
        products = tl.zeros([CHANNELS], tl.float64)
        for row in range(0, chunks, ROWS):
            chunk = row + tl.arange(0, ROWS)
            mask = (chunk < chunks)[:, None] & in_bound[None, :]
            at = start + chunk.to(tl.int64)[:, None] * channels + column[None, :]
            sums += tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float64), axis=0)
            products += tl.sum(tl.load(at + plane, mask=mask, other=0.0).to(tl.float64), axis=0)
        channel = first_group * WIDTH + column
        at = sample.to(tl.int64) * channels + channel
        if bias_sums is not None:
            store(bias_sums + at, sums, in_bound)
        if weight_sums is not None:
            store(weight_sums + at, products, in_bound)
        w = load_parameter(weight, channel, weight_stride, in_bound, 1.0).to(tl.float64)
        total += sum_by_group(tl.where(in_bound, sums * w, 0.0), PER_TABLE, TABLE, CHANNELS)
        total_product += sum_by_group(tl.where(in_bound, products * w, 0.0), PER_TABLE, TABLE, CHANNELS)
    table = tl.arange(0, TABLE)
    in_table = (table < GROUPS) & (first_group + table < groups)
    at = totals + sample * groups + first_group + table
    tl.store(at, total.to(tl.float32), mask=in_table)
    tl.store(at + outer * groups, total_product.to(tl.float32), mask=in_table)


@triton.jit(do_not_specialize=integers("mean", "var"))
def apply_backward(
    grad, x, residual, weight, bias, statistics, totals, grad_x, grad_residual,
    grad_sample, grad_line, x_sample, x_line, residual_sample, residual_line, y_sample, y_line,
    weight_stride, bias_stride, positions, inner, outer, groups, channel_units, chunks, tiles, eps, parameter,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """The gradients of x and residual, given ``totals`` of `merge_sums`; without them the statistics are constants."""
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
    index = sample * groups + channel // WIDTH
    mean, rest, deviation = load_statistics(statistics, index, outer * groups, in_channels, eps)
    w = load_parameter(weight, channel, weight_stride, in_channels, 1.0)
    b = load_parameter(bias, channel, bias_stride, in_channels, 0.0)
    if totals is not None:
        count = positions.to(tl.float32) * WIDTH
        m1 = tl.load(totals + index, mask=in_channels, other=0.0) / count
        m2 = tl.load(totals + outer * groups + index, mask=in_channels, other=0.0) / count

    grad_start = outer_part(grad, sample, grad_sample, UNIT, BY_SAMPLE)
    x_start = outer_part(x, sample, x_sample, UNIT, BY_SAMPLE)
    residual_start = None
    if residual is not None:
        residual_start = outer_part(residual, sample, residual_sample, UNIT, BY_SAMPLE)
    first = chunk * tiles
    if WIDE:
        first = first.to(tl.int64)
    for tile in range(tiles):
        position = (first + tile) * POSITIONS + tl.arange(0, POSITIONS)
        mask = (position < positions)[:, None] & in_channels[None, :]
        p = position[:, None]
        offsets = tile_offsets(p, c, grad_sample, grad_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
        g, z = gradient_of_affine(
            load(grad_start + offsets, mask), x_start, residual_start, p, c, mask, mean, rest, deviation, w, b,
            x_sample, x_line, residual_sample, residual_line, inner, parameter,
            UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE, ACTIVATION, ACTIVATION_FIRST,
        )  # fmt: skip
        offsets = tile_offsets(p, c, y_sample, y_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
        if not ACTIVATION_FIRST and grad_residual is not None:
            store(outer_part(grad_residual, sample, y_sample, UNIT, BY_SAMPLE) + offsets, g, mask)
        g *= w[None, :]
        if totals is not None:
            g -= m1[None, :] + z * m2[None, :]
        g *= deviation[None, :]
        if ACTIVATION_FIRST:
            if grad_residual is not None:
                store(outer_part(grad_residual, sample, y_sample, UNIT, BY_SAMPLE) + offsets, g, mask)
            if grad_x is not None:
                x_offsets = tile_offsets(p, c, x_sample, x_line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
                g = slope_times(g, load(x_start + x_offsets, mask), parameter, ACTIVATION)
        if grad_x is not None:
            store(outer_part(grad_x, sample, y_sample, UNIT, BY_SAMPLE) + offsets, g, mask)
