"""What surrounds the convolutions' kernels: the coefficients that the prologue reads, and merged partial results."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.tiles import (
    load,
    load_parameter,
    load_wide,
    reciprocal_deviation,
    split_mean,
    store,
    sum_positions,
)


@triton.jit(
    do_not_specialize=["mean_stride", "var_stride", "weight_stride", "bias_stride", "outers", "groups", "channels"]
)
def norm_coefficients(
    statistics, mean, variance, weight, bias, table,
    mean_stride, var_stride, weight_stride, bias_stride, outers, groups, channels, eps,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Float32 ``table`` (5, outer, C): the mean in two parts, scale, shift and reciprocal deviation of each channel.

    From float64 ``statistics`` (2, outer, groups); ``mean`` and ``variance`` (C,), where given, are those instead and
    are copied there.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    outer = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    mask = channel < channels
    index = outer.to(tl.int64) * groups + channel // WIDTH
    plane = outers.to(tl.int64) * groups
    if mean is not None:
        mean64 = load_wide(mean + channel * mean_stride, mask, 0.0)
        var64 = load_wide(variance + channel * var_stride, mask, 1.0)
        tl.store(statistics + index, mean64, mask=mask)
        tl.store(statistics + plane + index, var64, mask=mask)
    else:
        mean64 = tl.load(statistics + index, mask=mask, other=0.0)
        var64 = tl.load(statistics + plane + index, mask=mask, other=1.0)
    high, low = split_mean(mean64)
    deviation = reciprocal_deviation(var64, eps)
    at = table + outer.to(tl.int64) * channels + channel
    plane = outers.to(tl.int64) * channels
    tl.store(at, high, mask=mask)
    tl.store(at + plane, low, mask=mask)
    tl.store(at + 2 * plane, deviation * load_parameter(weight, channel, weight_stride, mask, 1.0), mask=mask)
    tl.store(at + 3 * plane, load_parameter(bias, channel, bias_stride, mask, 0.0), mask=mask)
    tl.store(at + 4 * plane, deviation, mask=mask)


@triton.jit
def values_before(item, each, total, chunks, positions, length):
    """How many positions lie before an item of ``each`` chunks, of ``total`` chunks in all. Each outer part has
    ``chunks`` of them, of ``length`` positions, and the last of these the rest."""
    chunk = tl.minimum(item.to(tl.int64) * each, total)
    return chunk // chunks * positions + chunk % chunks * length


@triton.jit(do_not_specialize=["positions", "chunks", "length", "total_chunks", "items", "each", "parts", "channels"])
def merge_output_moments(
    partials, merged, positions, chunks, length, total_chunks, items, each, parts, channels,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """``items`` means and sums of squared deviations a channel, float64 (2, items, C), to those of ``parts`` parts.

    An item covers ``each`` chunks, see `values_before`, a part up to ``ITEMS`` items. Chan's formula (Chan, Golub &
    LeVeque 1979) for any number of parts: squared deviations add up, and so do those of the means from the mean of
    all. ``LAST``: the variance is written, not the sum.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(0) // blocks
    in_channels = channel < channels
    plane = items.to(tl.int64) * channels
    positions = positions.to(tl.int64)
    end = tl.minimum((part + 1) * ITEMS, items)
    members = values_before(end, each, total_chunks, chunks, positions, length)
    members -= values_before(part * ITEMS, each, total_chunks, chunks, positions, length)
    members = members.to(tl.float64)

    total = tl.zeros([CHANNELS], tl.float64)
    for row in range(part * ITEMS, end, ROWS):
        item = (row + tl.arange(0, ROWS)).to(tl.int64)
        mask = (item < end)[:, None] & in_channels[None, :]
        count = values_before(item + 1, each, total_chunks, chunks, positions, length)
        count = (count - values_before(item, each, total_chunks, chunks, positions, length)).to(tl.float64)
        at = partials + item[:, None] * channels + channel[None, :]
        total += tl.sum(tl.where(mask, tl.load(at, mask=mask, other=0.0) * count[:, None], 0.0), axis=0)
    mean = total / members
    total = tl.zeros([CHANNELS], tl.float64)
    for row in range(part * ITEMS, end, ROWS):
        item = (row + tl.arange(0, ROWS)).to(tl.int64)
        mask = (item < end)[:, None] & in_channels[None, :]
        count = values_before(item + 1, each, total_chunks, chunks, positions, length)
        count = (count - values_before(item, each, total_chunks, chunks, positions, length)).to(tl.float64)
        at = partials + item[:, None] * channels + channel[None, :]
        deviation = tl.load(at, mask=mask, other=0.0) - mean[None, :]
        squares = tl.load(at + plane, mask=mask, other=0.0) + deviation * deviation * count[:, None]
        total += tl.sum(tl.where(mask, squares, 0.0), axis=0)
    if LAST:
        total = total / members
    at = merged + part.to(tl.int64) * channels + channel
    tl.store(at, mean, mask=in_channels)
    tl.store(at + parts.to(tl.int64) * channels, total, mask=in_channels)


@triton.jit(do_not_specialize=["chunks", "parts", "channels"])
def sum_chunks(
    partials, sums, chunks, parts, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr
):
    """(planes, chunks, C) float32 to (planes, parts, C), ``ITEMS`` chunks to a part, added up in float64 in order."""
    blocks = tl.cdiv(channels, CHANNELS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(0) // blocks % parts
    plane = tl.program_id(0) // blocks // parts
    in_channels = channel < channels
    start = partials + plane.to(tl.int64) * chunks * channels
    end = tl.minimum((part + 1) * ITEMS, chunks)
    total = tl.zeros([CHANNELS], tl.float64)
    for row in range(part * ITEMS, end, ROWS):
        item = row + tl.arange(0, ROWS)
        mask = (item < end)[:, None] & in_channels[None, :]
        at = start + item.to(tl.int64)[:, None] * channels + channel[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float64), axis=0)
    store(sums + (plane.to(tl.int64) * parts + part) * channels + channel, total, in_channels)


@triton.jit(do_not_specialize=["grad_sample", "grad_line", "area", "positions", "channel_units", "chunks", "tiles"])
def channel_sums(
    grad, partials, grad_sample, grad_line, area, positions, channel_units, chunks, tiles,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The sums of the output's gradient by channel, the bias's gradient, over ``tiles`` tiles: (chunks, C) float32."""
    channels = channel_units * UNIT
    blocks = tl.cdiv(channels, CHANNELS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    chunk = tl.program_id(0) // blocks
    in_channels = channel < channels
    if WIDE:
        grad_sample, grad_line = grad_sample.to(tl.int64), grad_line.to(tl.int64)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for tile in range(chunk * tiles, (chunk + 1) * tiles):
        first = tile * ROWS
        if WIDE:
            first = tl.cast(tile, tl.int64) * ROWS
        position = first + tl.arange(0, ROWS)
        offsets = position // area * (grad_sample * UNIT) + position % area * (grad_line * UNIT)
        mask = (position < positions)[:, None] & in_channels[None, :]
        total += load(grad + offsets[:, None] + channel[None, :], mask)
    at = partials + chunk.to(tl.int64) * channels + channel
    tl.store(at, sum_positions(total, ROWS, CHANNELS), mask=in_channels)
