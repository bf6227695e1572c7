"""Small kernels over channels: the gradients of weight and bias from sums by sample, and the running statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.tiles import load, store


@triton.jit(do_not_specialize=["rows", "channels"])
def sum_rows(
    weight_sums, bias_sums, grad_weight, grad_bias, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """(rows, channels) to (channels,), added up in float64 in a fixed order; either pair may be absent."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    in_channels = channel < channels
    by_weight = tl.zeros([CHANNELS], tl.float64)
    by_bias = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & in_channels[None, :]
        at = row.to(tl.int64)[:, None] * channels + channel[None, :]
        if grad_weight is not None:
            by_weight += tl.sum(tl.load(weight_sums + at, mask=mask, other=0.0).to(tl.float64), axis=0)
        if grad_bias is not None:
            by_bias += tl.sum(tl.load(bias_sums + at, mask=mask, other=0.0).to(tl.float64), axis=0)
    if grad_weight is not None:
        store(grad_weight + channel, by_weight, in_channels)
    if grad_bias is not None:
        store(grad_bias + channel, by_bias, in_channels)


@triton.jit
def move_towards(running, batch, channel, stride, mask, momentum):
    """running = (1 - momentum) running + momentum batch, for one block of channels."""
    if running.dtype.element_ty == tl.float64:
        old = tl.load(running + channel * stride, mask=mask, other=0.0)
        store(running + channel * stride, old * (1.0 - momentum) + batch * momentum, mask)
    else:
        old = load(running + channel * stride, mask)
        store(running + channel * stride, old * (1.0 - momentum) + batch.to(tl.float32) * momentum, mask)


@triton.jit(do_not_specialize=["mean_stride", "var_stride", "channels"])
def move_running_statistics(
    running_mean, running_var, statistics, mean_stride, var_stride, channels, momentum, unbiased,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Both running statistics towards those of the batch; ``unbiased`` is count / (count - 1)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mask = channel < channels
    if running_mean is not None:
        batch = tl.load(statistics + channel, mask=mask, other=0.0)
        move_towards(running_mean, batch, channel, mean_stride, mask, momentum)
    if running_var is not None:
        batch = tl.load(statistics + channels + channel, mask=mask, other=0.0) * unbiased
        move_towards(running_var, batch, channel, var_stride, mask, momentum)
