"""Rows that fit on chip: each tensor is read once and each result written once, by programs that hold whole rows.

Both norms are here. Layer norm is ``CENTERED``: its statistics are (2, rows), mean and 1 / sqrt(var + eps). Those of
RMS norm are (rows,), 1 / sqrt(mean(s^2) + eps).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.tiles import INTERPRETED, load, reciprocal_deviation, store, sum_positions, widened

INTEGERS = [
    "x_outer", "x_inner", "residual_outer", "residual_inner", "grad_outer", "grad_inner", "grad_sum_outer",
    "grad_sum_inner", "rows", "inner", "width_units",
]  # fmt: skip


def integers(*missing: str) -> list[str]:
    """The integer arguments of a kernel that lacks those whose names begin so: none is worth a compilation of its own.

    What alignment needs to know is in ``UNIT``.
    """
    return [name for name in INTEGERS if not name.startswith(missing)]


@triton.jit
def row_starts(row, outer_step, inner_step, inner, UNIT: tl.constexpr, BY_OUTER: tl.constexpr):
    """Where rows begin, in 64 bits. Steps come in units of ``UNIT`` values, by which the compiler sees alignment."""
    if BY_OUTER:
        starts = (row // inner).to(tl.int64) * (outer_step.to(tl.int64) * UNIT)
        starts += (row % inner).to(tl.int64) * (inner_step.to(tl.int64) * UNIT)
    else:
        starts = row.to(tl.int64) * (inner_step.to(tl.int64) * UNIT)
    return starts


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """float32 values as they come back from memory of this dtype."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        bits = (bits + (0x7FFF + ((bits >> 16) & 1))) & -65536
        values = tl.where(values == values, bits.to(tl.float32, bitcast=True), values)
    else:
        values = values.to(dtype).to(tl.float32)
    return values


@triton.jit
def load_columns(parameter, column, mask, default: tl.constexpr):
    """A parameter at these columns in float32; ``default`` where there is none."""
    if parameter is None:
        values = tl.full(column.shape, default, tl.float32)
    else:
        values = load(parameter + column, mask)
    return values


@triton.jit(do_not_specialize=integers("grad"))
def row_norm_forward(
    x, residual, y, sum, weight, bias, statistics,
    x_outer, x_inner, residual_outer, residual_inner, rows, inner, width_units, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr,
    CENTERED: tl.constexpr,
):  # fmt: skip
    """y and the statistics of s = x + residual, which is written to ``sum`` as well."""
    width = width_units * UNIT
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    row = first * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    in_rows = row < rows
    in_width = column < width
    mask = in_rows[:, None] & in_width[None, :]
    c = column[None, :]
    out = (row.to(tl.int64) * (width_units.to(tl.int64) * UNIT))[:, None]

    s = load(x + row_starts(row, x_outer, x_inner, inner, UNIT, BY_OUTER)[:, None] + c, mask)
    if residual is not None:
        starts = row_starts(row, residual_outer, residual_inner, inner, UNIT, BY_OUTER)
        s += load(residual + starts[:, None] + c, mask)
        s = rounded(s, x.dtype.element_ty)
        store(sum + out + c, s, mask)

    count = width.to(tl.float32)
    if CENTERED:
        # The mean is taken twice: the first is rounded, and the mean of what it leaves is its remainder, by which the
        # squares are corrected too (Chan, Golub & LeVeque 1983, eq. 1.7).
        mean = tl.sum(s, axis=1) / count
        s = tl.where(in_width[None, :], s - mean[:, None], 0.0)
        rest = tl.sum(s, axis=1) / count
        variance = tl.sum(s * s, axis=1) / count - rest * rest
        variance = tl.where(variance < 0.0, 0.0, variance)
        s -= rest[:, None]
    else:
        variance = tl.sum(s * s, axis=1) / count
    scale = reciprocal_deviation(variance, eps)

    s *= scale[:, None]
    if weight is not None:
        s *= load_columns(weight, column, in_width, 1.0)[None, :]
    if bias is not None:
        s += load_columns(bias, column, in_width, 0.0)[None, :]
    store(y + out + c, s, mask)

    at = statistics + row
    if CENTERED:
        tl.store(at, mean + rest, mask=in_rows)
        at += rows
    tl.store(at, scale, mask=in_rows)


@triton.jit
def load_row_statistics(statistics, row, rows, in_rows, CENTERED: tl.constexpr):
    """Mean, 0 for RMS norm, and reciprocal deviation; 0 both behind the last row."""
    if CENTERED:
        mean = tl.load(statistics + row, mask=in_rows, other=0.0)
        scale = tl.load(statistics + rows + row, mask=in_rows, other=0.0)
    else:
        mean = tl.zeros(row.shape, tl.float32)
        scale = tl.load(statistics + row, mask=in_rows, other=0.0)
    return mean, scale


@triton.jit
def load_row_tile(
    pointer, row, rows, column, in_width, outer_step, inner_step, inner, UNIT: tl.constexpr, BY_OUTER: tl.constexpr
):
    """A tile as it is in memory, 0 beyond the last row and column."""
    starts = row_starts(row, outer_step, inner_step, inner, UNIT, BY_OUTER)
    mask = (row < rows)[:, None] & in_width[None, :]
    return tl.load(pointer + starts[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=integers("residual"))
def row_norm_backward(
    grad, x, grad_sum, weight, statistics, grad_x, rests, weight_sums, bias_sums,
    grad_outer, grad_inner, x_outer, x_inner, grad_sum_outer, grad_sum_inner, rows, inner, width_units,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr,
    CENTERED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient of s, and each program's sums over its rows, (programs, width).

    With g = grad * weight and xhat = (s - mean) d, d the reciprocal deviation, the gradient is
    d (g - mean(g) - xhat mean(g xhat)) + grad_sum, the means over the row; RMS norm lacks the first. The weight's is
    the sum of grad * xhat over the rows, the bias's that of grad. Any of the three may be absent.

    The mean that was saved is rounded. What that leaves in xhat is its mean over the row, which is taken off again, and
    written to ``rests``, (rows,), where others need it.

    The sums are kept by place in the tile, with no exchange between threads before the end. The loop's loads go through
    shared memory, ``STAGES`` - 1 tiles ahead: kept in registers, the next tile took layer norm up to 158 of them.
    """
    width = width_units * UNIT
    programs = tl.num_programs(0)
    column = tl.arange(0, COLUMNS)
    in_width = column < width
    count = width.to(tl.float32)
    if weight is not None:
        w = load_columns(weight, column, in_width, 1.0)[None, :]
    by_weight = tl.zeros([ROWS, COLUMNS], tl.float32)
    by_bias = tl.zeros([ROWS, COLUMNS], tl.float32)

    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    for tile in tl.range(first, tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        in_rows = row < rows
        mean, scale = load_row_statistics(statistics, row, rows, in_rows, CENTERED)
        g = widened(load_row_tile(grad, row, rows, column, in_width, grad_outer, grad_inner, inner, UNIT, BY_OUTER))
        z = widened(load_row_tile(x, row, rows, column, in_width, x_outer, x_inner, inner, UNIT, BY_OUTER))
        if CENTERED:
            z = tl.where(in_width[None, :], z - mean[:, None], 0.0)
        z *= scale[:, None]
        if CENTERED:
            # Taken off before anything is made of xhat: later, the gradient would have to be kept once more.
            rest = tl.sum(z, axis=1) / count
            z -= rest[:, None]
            if rests is not None:
                tl.store(rests + row, rest, mask=in_rows)
        if weight_sums is not None:
            by_weight += g * z
        if bias_sums is not None:
            by_bias += g
        if grad_x is not None:
            if weight is not None:
                g *= w
            product = tl.sum(g * z, axis=1) / count
            if CENTERED:
                g -= (tl.sum(g, axis=1) / count)[:, None]
            g = (g - z * product[:, None]) * scale[:, None]
            if grad_sum is not None:
                g += widened(
                    load_row_tile(
                        grad_sum, row, rows, column, in_width, grad_sum_outer, grad_sum_inner, inner, UNIT, BY_OUTER
                    )
                )
            out = row.to(tl.int64) * (width_units.to(tl.int64) * UNIT)
            store(grad_x + out[:, None] + column[None, :], g, in_rows[:, None] & in_width[None, :])

    at = first.to(tl.int64) * width + column
    if weight_sums is not None:
        store(weight_sums + at, sum_positions(by_weight, ROWS, COLUMNS), in_width)
    if bias_sums is not None:
        store(bias_sums + at, sum_positions(by_bias, ROWS, COLUMNS), in_width)
