"""What the convolutions' kernels have in common: rows of positions, the prologue that norm and activation are, and the
epilogues.

The prologue is computed on the values of a tile as they come from memory, so that act(norm(x)) never lies there.
``table`` holds, float32 (5, outer, C): the mean in two parts, the scale, the shift and the reciprocal deviation of each
channel (see `fastdl.kernels.convolution_statistics`); None where there is no norm. Outer parts are samples under group
norm, and there is one where statistics are by channel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels import attention_tiles, tiles
from fastdl.kernels.activations import IDENTITY, activate, slope_times
from fastdl.kernels.attention_tiles import rounded
from fastdl.kernels.tiles import INTERPRETED, load_parameter, store, sum_positions

# No integer is worth a compilation of its own: what alignment needs to know is in the units.
INTEGERS = [
    "x_sample", "x_line", "grad_sample", "grad_line", "height", "width", "out_height", "out_width", "samples",
    "positions", "outers", "depth_units", "column_units", "in_units", "out_units", "groups", "chunks", "tiles",
    "splits",
]  # fmt: skip


def integers(kernel_arguments: str) -> list[str]:
    """Those of ``INTEGERS`` that a kernel takes, told by its arguments' names."""
    return [name for name in INTEGERS if name in kernel_arguments.split()]


@triton.jit
def place_of(row, outer, height, width, BY_SAMPLE: tl.constexpr):
    """Sample, line and column of positions that are counted through the samples, or through one (``BY_SAMPLE``)."""
    area = height * width
    if BY_SAMPLE:
        sample = row * 0 + outer
        rest = row
    else:
        sample = row // area
        rest = row % area
    return sample, rest // width, rest % width


@triton.jit
def load_coefficients(table, outer, outers, channel, channels, mask):
    """Mean in two parts, scale and shift of a block of channels."""
    plane = outers.to(tl.int64) * channels
    at = table + outer.to(tl.int64) * channels + channel
    mean = tl.load(at, mask=mask, other=0.0)
    rest = tl.load(at + plane, mask=mask, other=0.0)
    scale = tl.load(at + 2 * plane, mask=mask, other=0.0)
    shift = tl.load(at + 3 * plane, mask=mask, other=0.0)
    return mean, rest, scale, shift


@triton.jit
def normalized_activation(
    z, mean, rest, scale, shift, parameter,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """act(norm(z)), or norm(act(z)), of a float32 tile; the coefficients spread to its shape."""
    if ACTIVATION_FIRST or not NORM:
        z = activate(z, parameter, ACTIVATION)
    if NORM:
        z = ((z - mean) - rest) * scale + shift
        if not ACTIVATION_FIRST:
            z = activate(z, parameter, ACTIVATION)
    return z


@triton.jit
def activated_tile(
    pointers, mask, mean, rest, scale, shift, parameter,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr,
):  # fmt: skip
    """An operand of a product from the convolution's input: 0 where masked off, which padding is after the activation.

    Rounded to the input's dtype, as the tensor in memory would be. Without norm and activation the values pass as
    they are, and may go from memory to the matrix units by no register.
    """
    if not NORM and ACTIVATION == IDENTITY:
        values = attention_tiles.load(pointers, mask, True)
    else:
        z = tiles.load(pointers, mask)
        z = normalized_activation(z, mean, rest, scale, shift, parameter, NORM, ACTIVATION, ACTIVATION_FIRST)
        values = rounded(tl.where(mask, z, 0.0), pointers.dtype.element_ty)
    return values


@triton.jit
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a b in float32; ``PRECISION`` is of float32 operands alone."""
    if INTERPRETED:
        result = accumulator + tl.dot(a, b, input_precision="ieee")
    else:
        result = tl.dot(a, b, accumulator, input_precision=PRECISION)
    return result


@triton.jit
def finish_output(
    accumulator, y, bias, partials, row, first, positions, outer, outers, chunk, chunks, channel, in_columns,
    out_channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds the bias and writes a tile of the output; into float64 ``partials`` (2, outer, chunks, C_out) each channel's
    mean and sum of squared deviations over the tile's rows.

    They are those of the values as rounded to the output's dtype, which is what the next norm reads. The sum is taken
    twice: the first mean is rounded, and what it leaves is the second's to find.
    """
    mask = (row < positions)[:, None] & in_columns[None, :]
    accumulator += load_parameter(bias, channel, 1, in_columns, 0.0)[None, :]
    start = y + outer.to(tl.int64) * positions * out_channels
    store(start + row[:, None] * out_channels + channel[None, :], accumulator, mask)
    if partials is not None:
        z = rounded(accumulator, y.dtype.element_ty).to(tl.float32)
        count = tl.minimum(positions - first, ROWS).to(tl.float32)
        shift = sum_positions(tl.where(mask, z, 0.0), ROWS, COLUMNS) / count
        z = tl.where(mask, z - shift[None, :], 0.0)
        middle = sum_positions(z, ROWS, COLUMNS) / count
        squares = sum_positions(z * z, ROWS, COLUMNS) - middle * middle * count
        squares = tl.where(squares < 0, 0.0, squares)
        at = partials + (outer.to(tl.int64) * chunks + chunk) * out_channels + channel
        tl.store(at, shift.to(tl.float64) + middle.to(tl.float64), mask=in_columns)
        plane = outers.to(tl.int64) * chunks * out_channels
        tl.store(at + plane, squares.to(tl.float64), mask=in_columns)


@triton.jit
def finish_gradient(
    g, x, grad_x, table, partials, offsets, place, mask, outer, outers, chunk, chunks, channel, in_columns, channels,
    parameter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVATION_FIRST: tl.constexpr, CONSTANT: tl.constexpr,
):  # fmt: skip
    """From a tile of the gradient of the convolution's input to that of the norm's affine map, or to the call's own.

    With gu the gradient of the affine map's result, ``partials`` (2, outer, chunks, C) float32 gets the tile's sums of
    gu and gu xhat. What is written into ``grad_x`` is gu where the statistics are the batch's, and the gradient of x
    where they are ``CONSTANT`` or there is no norm. ``offsets`` lead to x, ``place`` to grad_x.
    """
    if table is not None or ACTIVATION != IDENTITY:
        z = tiles.load(x + offsets, mask)
    if table is None:
        if ACTIVATION != IDENTITY:
            g = slope_times(g, z, parameter, ACTIVATION)
    else:
        mean, rest, scale, shift = load_coefficients(table, outer, outers, channel, channels, in_columns)
        centred = z
        if ACTIVATION_FIRST:
            centred = activate(z, parameter, ACTIVATION)
        centred = (centred - mean[None, :]) - rest[None, :]
        if not ACTIVATION_FIRST:
            g = slope_times(g, centred * scale[None, :] + shift[None, :], parameter, ACTIVATION)
        if partials is not None:
            plane = outers.to(tl.int64) * channels
            at = table + 4 * plane + outer.to(tl.int64) * channels + channel
            deviation = tl.load(at, mask=in_columns, other=0.0)
            kept = tl.where(mask, g, 0.0)
            at = partials + (outer.to(tl.int64) * chunks + chunk) * channels + channel
            tl.store(at, sum_positions(kept, ROWS, COLUMNS), mask=in_columns)
            products = sum_positions(tl.where(mask, g * centred, 0.0), ROWS, COLUMNS) * deviation
            tl.store(at + plane * chunks, products, mask=in_columns)
        if CONSTANT:
            g *= scale[None, :]
            if ACTIVATION_FIRST:
                g = slope_times(g, z, parameter, ACTIVATION)
    if grad_x is not None:
        store(grad_x + place, g, mask)
