"""The on-chip path: a program holds whole groups, so that each tensor is read once and each result written once.

A program's tile is all positions by the channels of ``GROUPS`` whole groups of ``WIDTH`` channels. Group norm takes
groups of one sample, batch norm (``WIDTH`` 1) channels over all samples; see `fastdl.kernels.tiles`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.activations import activate, slope_times
from fastdl.kernels.tiles import (
    load,
    load_parameter,
    outer_part,
    reciprocal_deviation,
    split_mean,
    spread_by_group,
    store,
    sum_by_group,
    sum_positions,
    tile_offsets,
)

INTEGERS = [
    "x_sample", "x_line", "residual_sample", "residual_line", "y_sample", "y_line", "grad_sample", "grad_line",
    "weight_stride", "bias_stride", "positions", "inner", "groups", "channel_units",
]  # fmt: skip


@triton.jit(do_not_specialize=[name for name in INTEGERS if not name.startswith("grad")])
def on_chip_forward(
    x, residual, y, weight, bias, statistics,
    x_sample, x_line, residual_sample, residual_line, y_sample, y_line, weight_stride, bias_stride,
    positions, inner, outer, groups, channel_units, eps, parameter,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, TABLE: tl.constexpr,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """y, and each group's mean and biased variance in float64: ``statistics`` is (2, outer, groups).

    ``TABLE`` is ``GROUPS`` as a power of two. ``positions`` and ``inner`` count units in NCHW; ``channel_units`` counts
    them in channels last.
    """
    blocks = tl.cdiv(groups, GROUPS)
    sample = tl.program_id(0) // blocks
    first_group = (tl.program_id(0) % blocks) * GROUPS
    POSITION_UNIT: tl.constexpr = 1 if CHANNELS_LAST else UNIT
    CHANNEL_UNIT: tl.constexpr = UNIT if CHANNELS_LAST else 1

    position = tl.arange(0, POSITIONS)
    column = tl.arange(0, CHANNELS)
    channel = first_group * WIDTH + column
    in_groups = (column < GROUPS * WIDTH) & (channel < channel_units * CHANNEL_UNIT)
    mask = (position < positions * POSITION_UNIT)[:, None] & in_groups[None, :]
    p = position[:, None]
    c = channel[None, :]

    offsets = tile_offsets(p, c, x_sample, x_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
    z = load(outer_part(x, sample, x_sample, UNIT, BY_SAMPLE) + offsets, mask)
    if ACTIVATION_FIRST:
        z = activate(z, parameter, ACTIVATION)
        if residual is not None:
            offsets = tile_offsets(
                p, c, residual_sample, residual_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE
            )
            z += load(outer_part(residual, sample, residual_sample, UNIT, BY_SAMPLE) + offsets, mask)
        z = tl.where(mask, z, 0.0)

    # The mean is taken twice: the first is rounded to float32, and the mean of what it leaves is its remainder.
    count = (positions * (POSITION_UNIT * WIDTH)).to(tl.float32)
    mean = sum_by_group(sum_positions(z, POSITIONS, CHANNELS), WIDTH, TABLE, CHANNELS) / count
    z = tl.where(mask, z - spread_by_group(mean, WIDTH, TABLE, CHANNELS)[None, :], 0.0)
    rest = sum_by_group(sum_positions(z, POSITIONS, CHANNELS), WIDTH, TABLE, CHANNELS) / count
    z = tl.where(mask, z - spread_by_group(rest, WIDTH, TABLE, CHANNELS)[None, :], 0.0)
    variance = sum_by_group(sum_positions(z * z, POSITIONS, CHANNELS), WIDTH, TABLE, CHANNELS) / count

    scale = spread_by_group(reciprocal_deviation(variance, eps), WIDTH, TABLE, CHANNELS)
    scale *= load_parameter(weight, channel, weight_stride, in_groups, 1.0)
    shift = load_parameter(bias, channel, bias_stride, in_groups, 0.0)
    z = z * scale[None, :] + shift[None, :]
    if not ACTIVATION_FIRST:
        if residual is not None:
            offsets = tile_offsets(
                p, c, residual_sample, residual_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE
            )
            z += load(outer_part(residual, sample, residual_sample, UNIT, BY_SAMPLE) + offsets, mask)
        z = activate(z, parameter, ACTIVATION)
    offsets = tile_offsets(p, c, y_sample, y_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
    store(outer_part(y, sample, y_sample, UNIT, BY_SAMPLE) + offsets, z, mask)

    table = tl.arange(0, TABLE)
    in_table = (table < GROUPS) & (first_group + table < groups)
    at = statistics + sample * groups + first_group + table
    tl.store(at, mean.to(tl.float64) + rest.to(tl.float64), mask=in_table)
    tl.store(at + outer * groups, variance.to(tl.float64), mask=in_table)


@triton.jit(do_not_specialize=INTEGERS)
def on_chip_backward(
    grad, x, residual, weight, bias, statistics, grad_x, grad_residual, weight_sums, bias_sums,
    grad_sample, grad_line, x_sample, x_line, residual_sample, residual_line, y_sample, y_line,
    weight_stride, bias_stride, positions, inner, outer, groups, channel_units, eps, parameter,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, TABLE: tl.constexpr,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr, CONSTANT: tl.constexpr,
):  # fmt: skip
    """The gradients, x and the output's gradient read once; ``weight_sums`` and ``bias_sums`` are (outer, channels).

    With gu the gradient of the affine map's result and xhat = (x - mean) d, d the reciprocal deviation,
    gx = d (w gu - mean(w gu) - xhat mean(w gu xhat)), the means over the group; ``CONSTANT`` statistics send nothing
    back, so that these are 0. Any of the four gradients may be absent.
    """
    blocks = tl.cdiv(groups, GROUPS)
    sample = tl.program_id(0) // blocks
    first_group = (tl.program_id(0) % blocks) * GROUPS
    POSITION_UNIT: tl.constexpr = 1 if CHANNELS_LAST else UNIT
    CHANNEL_UNIT: tl.constexpr = UNIT if CHANNELS_LAST else 1

    position = tl.arange(0, POSITIONS)
    column = tl.arange(0, CHANNELS)
    channel = first_group * WIDTH + column
    in_groups = (column < GROUPS * WIDTH) & (channel < channel_units * CHANNEL_UNIT)
    mask = (position < positions * POSITION_UNIT)[:, None] & in_groups[None, :]
    p = position[:, None]
    c = channel[None, :]

    offsets = tile_offsets(p, c, x_sample, x_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
    z = load(outer_part(x, sample, x_sample, UNIT, BY_SAMPLE) + offsets, mask)
    offsets = tile_offsets(p, c, grad_sample, grad_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
    g = load(outer_part(grad, sample, grad_sample, UNIT, BY_SAMPLE) + offsets, mask)
    if ACTIVATION_FIRST:
        z = activate(z, parameter, ACTIVATION)
    if residual is not None:
        offsets = tile_offsets(
            p, c, residual_sample, residual_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE
        )
        r = load(outer_part(residual, sample, residual_sample, UNIT, BY_SAMPLE) + offsets, mask)
        if ACTIVATION_FIRST:
            z += r

    table = tl.arange(0, TABLE)
    in_table = (table < GROUPS) & (first_group + table < groups)
    at = statistics + sample * groups + first_group + table
    mean, rest = split_mean(tl.load(at, mask=in_table, other=0.0))
    deviation = reciprocal_deviation(tl.load(at + outer * groups, mask=in_table, other=1.0), eps)
    z -= spread_by_group(mean, WIDTH, TABLE, CHANNELS)[None, :]
    z -= spread_by_group(rest, WIDTH, TABLE, CHANNELS)[None, :]
    d = spread_by_group(deviation, WIDTH, TABLE, CHANNELS)
    z = tl.where(mask, z * d[None, :], 0.0)
    w = load_parameter(weight, channel, weight_stride, in_groups, 1.0)

    if not ACTIVATION_FIRST:
        u = z * w[None, :] + load_parameter(bias, channel, bias_stride, in_groups, 0.0)[None, :]
        if residual is not None:
            u += r
        g = tl.where(mask, slope_times(g, u, parameter, ACTIVATION), 0.0)
        if grad_residual is not None:
            offsets = tile_offsets(p, c, y_sample, y_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
            store(outer_part(grad_residual, sample, y_sample, UNIT, BY_SAMPLE) + offsets, g, mask)

    sums = sum_positions(g, POSITIONS, CHANNELS)
    products = sum_positions(g * z, POSITIONS, CHANNELS)
    channels = groups * WIDTH
    if weight_sums is not None:
        store(weight_sums + sample * channels + channel, products, in_groups)
    if bias_sums is not None:
        store(bias_sums + sample * channels + channel, sums, in_groups)

    if CONSTANT:
        g = g * (w * d)[None, :]
    else:
        count = (positions * (POSITION_UNIT * WIDTH)).to(tl.float32)
        m1 = sum_by_group(sums * w, WIDTH, TABLE, CHANNELS) / count
        m2 = sum_by_group(products * w, WIDTH, TABLE, CHANNELS) / count
        g = g * w[None, :] - spread_by_group(m1, WIDTH, TABLE, CHANNELS)[None, :]
        g -= z * spread_by_group(m2, WIDTH, TABLE, CHANNELS)[None, :]
        g *= d[None, :]
    if ACTIVATION_FIRST:
        if grad_residual is not None:
            offsets = tile_offsets(p, c, y_sample, y_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
            store(outer_part(grad_residual, sample, y_sample, UNIT, BY_SAMPLE) + offsets, g, mask)
        if grad_x is not None:
            # Read again, from the L2 cache: kept, x would be a third tile in registers, and spill.
            offsets = tile_offsets(p, c, x_sample, x_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
            u = load(outer_part(x, sample, x_sample, UNIT, BY_SAMPLE) + offsets, mask)
            g = slope_times(g, u, parameter, ACTIVATION)
    if grad_x is not None:
        offsets = tile_offsets(p, c, y_sample, y_line, inner * POSITION_UNIT, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
        store(outer_part(grad_x, sample, y_sample, UNIT, BY_SAMPLE) + offsets, g, mask)
