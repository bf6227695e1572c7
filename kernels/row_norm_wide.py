"""Rows too wide to be kept on chip: a program goes along a row, or a part of one, in steps of ``COLUMNS`` values.

First it takes the row's sums, then it reads the row again, which is then in the L2 cache. Where rows are few, several
programs share each: one launch leaves the sums of each part, and in the next every program merges those of its row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.row_norm_on_chip import integers, load_columns, rounded, row_starts
from fastdl.kernels.tiles import load, reciprocal_deviation, split_mean, store

PARTS = ("parts", "tiles")


@triton.jit
def part_of_row(parts, tiles, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Row, part, and the first of the part's values."""
    row = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    first = part * tiles
    if WIDE:
        row = row.to(tl.int64)
        first = first.to(tl.int64)
    return row, part, first * COLUMNS


@triton.jit
def load_sum(x_row, residual_row, column, mask):
    """x + residual as it comes back from memory."""
    s = load(x_row + column, mask)
    if residual_row is not None:
        s = rounded(s + load(residual_row + column, mask), x_row.dtype.element_ty)
    return s


@triton.jit
def take_moments(x_row, residual_row, sum_row, first, tiles, width, COLUMNS: tl.constexpr, CENTERED: tl.constexpr):
    """Mean in two parts and sum of squared deviations of ``tiles`` steps, writing the sum; RMS norm has the squares
    alone.

    Each place of the tile keeps Welford's moments of the values that pass it. They are shifted by the first tile's
    mean, so that no digit is lost at a mean far above the deviation.
    """
    place = tl.arange(0, COLUMNS)
    squares = tl.zeros([COLUMNS], tl.float32)
    shift = 0.0
    middle = 0.0
    if CENTERED:
        column = first + place
        s = load_sum(x_row, residual_row, column, column < width)
        there = tl.minimum(width - first, COLUMNS).to(tl.float32)
        shift = tl.sum(s, axis=0) / there
        mean = tl.zeros([COLUMNS], tl.float32)
    for tile in range(tiles):
        column = first + tile * COLUMNS + place
        mask = column < width
        s = load_sum(x_row, residual_row, column, mask)
        if residual_row is not None:
            store(sum_row + column, s, mask)
        if CENTERED:
            step = 1.0 / tl.cast(tile + 1, tl.float32)
            deviation = tl.where(mask, (s - shift) - mean, 0.0)
            mean += deviation * step
            squares += deviation * deviation * (1.0 - step)
        else:
            squares += s * s
    if CENTERED:
        # How many values passed each place; all have the part's steps but for those beyond the row's end.
        passed = (width - first - place + (COLUMNS - 1)) // COLUMNS
        passed = tl.minimum(tl.maximum(passed, 0), tiles).to(tl.float32)
        count = tl.minimum(width - first, tiles * COLUMNS).to(tl.float32)
        middle = tl.sum(mean * passed, axis=0) / count
        deviation = tl.where(passed > 0, mean - middle, 0.0)
        squares += passed * deviation * deviation
    return shift, middle, tl.sum(squares, axis=0)


@triton.jit
def write_normalized(
    s_row, residual_row, y_row, weight, bias, first, tiles, width, mean, rest, scale,
    COLUMNS: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    for tile in range(tiles):
        column = first + tile * COLUMNS + tl.arange(0, COLUMNS)
        mask = column < width
        s = load_sum(s_row, residual_row, column, mask)
        if CENTERED:
            s = (s - mean) - rest
        s *= scale
        if weight is not None:
            s *= load_columns(weight, column, mask, 1.0)
        if bias is not None:
            s += load_columns(bias, column, mask, 0.0)
        store(y_row + column, s, mask)


@triton.jit
def store_row_statistics(statistics, row, rows, mean, rest, scale, CENTERED: tl.constexpr):
    if CENTERED:
        tl.store(statistics + row, mean + rest)
        tl.store(statistics + rows + row, scale)
    else:
        tl.store(statistics + row, scale)


@triton.jit(do_not_specialize=integers("grad"))
def wide_forward(
    x, residual, y, sum, weight, bias, statistics,
    x_outer, x_inner, residual_outer, residual_inner, rows, inner, width_units, eps,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """A row to a program: y, the statistics, and s = x + residual into ``sum``."""
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
        width_units = width_units.to(tl.int64)
    width = width_units * UNIT
    tiles = tl.cdiv(width, COLUMNS)
    out = row.to(tl.int64) * (width_units.to(tl.int64) * UNIT)
    x_row = x + row_starts(row, x_outer, x_inner, inner, UNIT, BY_OUTER)
    residual_row = None
    sum_row = None
    if residual is not None:
        residual_row = residual + row_starts(row, residual_outer, residual_inner, inner, UNIT, BY_OUTER)
        sum_row = sum + out
    mean, rest, squares = take_moments(x_row, residual_row, sum_row, width * 0, tiles, width, COLUMNS, CENTERED)
    scale = reciprocal_deviation(squares / width.to(tl.float32), eps)
    write_normalized(
        x_row, residual_row, y + out, weight, bias, width * 0, tiles, width, mean, rest, scale, COLUMNS, CENTERED
    )
    store_row_statistics(statistics, row, rows, mean, rest, scale, CENTERED)


@triton.jit(do_not_specialize=[*integers("grad"), *PARTS])
def wide_moments(
    x, residual, sum, partials,
    x_outer, x_inner, residual_outer, residual_inner, rows, inner, width_units, parts, tiles,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each part, into float64 ``partials`` (2, rows, parts); and the sum."""
    if WIDE:
        width_units = width_units.to(tl.int64)
    width = width_units * UNIT
    row, part, first = part_of_row(parts, tiles, COLUMNS, WIDE)
    x_row = x + row_starts(row, x_outer, x_inner, inner, UNIT, BY_OUTER)
    residual_row = None
    sum_row = None
    if residual is not None:
        residual_row = residual + row_starts(row, residual_outer, residual_inner, inner, UNIT, BY_OUTER)
        sum_row = sum + row.to(tl.int64) * (width_units.to(tl.int64) * UNIT)
    mean, rest, squares = take_moments(x_row, residual_row, sum_row, first, tiles, width, COLUMNS, CENTERED)
    at = partials + row.to(tl.int64) * parts + part
    if CENTERED:
        tl.store(at, mean.to(tl.float64) + rest.to(tl.float64))
    tl.store(at + rows.to(tl.int64) * parts, squares.to(tl.float64))


@triton.jit(do_not_specialize=[*integers("grad", "residual"), *PARTS])
def wide_apply_forward(
    x, y, weight, bias, partials, statistics, x_outer, x_inner, rows, inner, width_units, parts, tiles, eps,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr, CENTERED: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """y, from the moments of the row's parts, ``PARTS`` at most; the first part's program leaves the statistics.

    Chan's formula for any number of parts, in float64: the squared deviations add up, and so do those of the parts'
    means from the mean of all.
    """
    if WIDE:
        width_units = width_units.to(tl.int64)
    width = width_units * UNIT
    row, part, first = part_of_row(parts, tiles, COLUMNS, WIDE)
    of_part = tl.arange(0, PARTS)
    there = of_part < parts
    at = partials + row.to(tl.int64) * parts + of_part
    squares = tl.load(at + rows.to(tl.int64) * parts, mask=there, other=0.0)
    count = width.to(tl.float64)
    mean = 0.0
    rest = 0.0
    if CENTERED:
        length = (tiles * COLUMNS).to(width.dtype)
        members = tl.where(there, tl.minimum(width - of_part * length, length), 0).to(tl.float64)
        means = tl.load(at, mask=there, other=0.0)
        middle = tl.sum(means * members, axis=0) / count
        deviation = means - middle
        squares += members * deviation * deviation
        mean, rest = split_mean(middle)
    scale = reciprocal_deviation(tl.sum(squares, axis=0) / count, eps)
    x_row = x + row_starts(row, x_outer, x_inner, inner, UNIT, BY_OUTER)
    y_row = y + row.to(tl.int64) * (width_units.to(tl.int64) * UNIT)
    write_normalized(x_row, None, y_row, weight, bias, first, tiles, width, mean, rest, scale, COLUMNS, CENTERED)
    if part == 0:
        store_row_statistics(statistics, row, rows, mean, rest, scale, CENTERED)


# -- backward ----------------------------------------------------------------------------------------------------------


@triton.jit
def load_statistics(statistics, row, rows, CENTERED: tl.constexpr):
    """A row's mean, 0 for RMS norm, and reciprocal deviation."""
    mean = 0.0
    if CENTERED:
        mean = tl.load(statistics + row)
        statistics += rows
    return mean, tl.load(statistics + row)


@triton.jit
def load_scaled_gradient(grad_row, x_row, weight, column, mask, mean, scale, CENTERED: tl.constexpr):
    """g = grad * weight, and xhat."""
    g = load(grad_row + column, mask)
    z = load(x_row + column, mask)
    if weight is not None:
        g *= load_columns(weight, column, mask, 1.0)
    if CENTERED:
        z = tl.where(mask, z - mean, 0.0)
    return g, z * scale


@triton.jit
def sum_products(
    grad_row, x_row, weight, first, tiles, width, mean, scale, COLUMNS: tl.constexpr, CENTERED: tl.constexpr
):
    """The sums of g, of xhat and of g xhat over ``tiles`` steps; RMS norm needs the last alone."""
    sums = tl.zeros([COLUMNS], tl.float32)
    rests = tl.zeros([COLUMNS], tl.float32)
    products = tl.zeros([COLUMNS], tl.float32)
    for tile in range(tiles):
        column = first + tile * COLUMNS + tl.arange(0, COLUMNS)
        g, z = load_scaled_gradient(grad_row, x_row, weight, column, column < width, mean, scale, CENTERED)
        if CENTERED:
            sums += g
            rests += z
        products += g * z
    return tl.sum(sums, axis=0), tl.sum(rests, axis=0), tl.sum(products, axis=0)


@triton.jit
def write_gradient(
    grad_row, x_row, grad_sum_row, grad_x_row, weight, first, tiles, width, mean, scale, middle, rest, product,
    COLUMNS: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """d (g - mean(g) - xhat mean(g xhat)) + grad_sum, from the means over the row of g, xhat and g xhat."""
    if CENTERED:
        product -= rest * middle
        middle -= rest * product
    for tile in range(tiles):
        column = first + tile * COLUMNS + tl.arange(0, COLUMNS)
        mask = column < width
        g, z = load_scaled_gradient(grad_row, x_row, weight, column, mask, mean, scale, CENTERED)
        if CENTERED:
            g -= middle
        g = (g - z * product) * scale
        if grad_sum_row is not None:
            g += load(grad_sum_row + column, mask)
        store(grad_x_row + column, g, mask)


@triton.jit(do_not_specialize=integers("residual"))
def wide_backward(
    grad, x, grad_sum, weight, statistics, grad_x, rests,
    grad_outer, grad_inner, x_outer, x_inner, grad_sum_outer, grad_sum_inner, rows, inner, width_units,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """A row to a program: the gradient of s, and ``rests``, as in `fastdl.kernels.row_norm_on_chip`."""
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
        width_units = width_units.to(tl.int64)
    width = width_units * UNIT
    tiles = tl.cdiv(width, COLUMNS)
    mean, scale = load_statistics(statistics, row, rows, CENTERED)
    grad_row = grad + row_starts(row, grad_outer, grad_inner, inner, UNIT, BY_OUTER)
    x_row = x + row_starts(row, x_outer, x_inner, inner, UNIT, BY_OUTER)
    sums, rest, products = sum_products(
        grad_row, x_row, weight, width * 0, tiles, width, mean, scale, COLUMNS, CENTERED
    )
    count = width.to(tl.float32)
    rest /= count
    if rests is not None:
        tl.store(rests + row, rest)
    if grad_x is not None:
        grad_sum_row = None
        if grad_sum is not None:
            grad_sum_row = grad_sum + row_starts(row, grad_sum_outer, grad_sum_inner, inner, UNIT, BY_OUTER)
        grad_x_row = grad_x + row.to(tl.int64) * (width_units.to(tl.int64) * UNIT)
        write_gradient(
            grad_row, x_row, grad_sum_row, grad_x_row, weight, width * 0, tiles, width, mean, scale,
            sums / count, rest, products / count, COLUMNS, CENTERED,
        )  # fmt: skip


@triton.jit(do_not_specialize=[*integers("residual", "grad_sum"), *PARTS])
def wide_sums(
    grad, x, weight, statistics, partials, grad_outer, grad_inner, x_outer, x_inner, rows, inner, width_units,
    parts, tiles,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """The sums of g xhat, g and xhat of each part, into float32 ``partials`` (3, rows, parts); RMS norm's the first."""
    if WIDE:
        width_units = width_units.to(tl.int64)
    width = width_units * UNIT
    row, part, first = part_of_row(parts, tiles, COLUMNS, WIDE)
    mean, scale = load_statistics(statistics, row, rows, CENTERED)
    grad_row = grad + row_starts(row, grad_outer, grad_inner, inner, UNIT, BY_OUTER)
    x_row = x + row_starts(row, x_outer, x_inner, inner, UNIT, BY_OUTER)
    sums, rest, products = sum_products(grad_row, x_row, weight, first, tiles, width, mean, scale, COLUMNS, CENTERED)
    plane = rows.to(tl.int64) * parts
    at = partials + row.to(tl.int64) * parts + part
    tl.store(at, products)
    if CENTERED:
        tl.store(at + plane, sums)
        tl.store(at + plane * 2, rest)


@triton.jit(do_not_specialize=[*integers("residual"), *PARTS])
def wide_apply_backward(
    grad, x, grad_sum, weight, statistics, partials, grad_x, rests,
    grad_outer, grad_inner, x_outer, x_inner, grad_sum_outer, grad_sum_inner, rows, inner, width_units, parts, tiles,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr, CENTERED: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """The gradient of s and ``rests``, from the sums of the row's parts, ``PARTS`` at most."""
    if WIDE:
        width_units = width_units.to(tl.int64)
    width = width_units * UNIT
    row, part, first = part_of_row(parts, tiles, COLUMNS, WIDE)
    of_part = tl.arange(0, PARTS)
    there = of_part < parts
    plane = rows.to(tl.int64) * parts
    at = partials + row.to(tl.int64) * parts + of_part
    count = width.to(tl.float32)
    middle = 0.0
    rest = 0.0
    if CENTERED:
        middle = tl.sum(tl.load(at + plane, mask=there, other=0.0), axis=0) / count
        rest = tl.sum(tl.load(at + plane * 2, mask=there, other=0.0), axis=0) / count
    if rests is not None:
        tl.store(rests + row, rest, mask=part == 0)
    if grad_x is not None:
        product = tl.sum(tl.load(at, mask=there, other=0.0), axis=0) / count
        mean, scale = load_statistics(statistics, row, rows, CENTERED)
        grad_row = grad + row_starts(row, grad_outer, grad_inner, inner, UNIT, BY_OUTER)
        x_row = x + row_starts(row, x_outer, x_inner, inner, UNIT, BY_OUTER)
        grad_sum_row = None
        if grad_sum is not None:
            grad_sum_row = grad_sum + row_starts(row, grad_sum_outer, grad_sum_inner, inner, UNIT, BY_OUTER)
        grad_x_row = grad_x + row.to(tl.int64) * (width_units.to(tl.int64) * UNIT)
        write_gradient(
            grad_row, x_row, grad_sum_row, grad_x_row, weight, first, tiles, width, mean, scale,
            middle, rest, product, COLUMNS, CENTERED,
        )  # fmt: skip
