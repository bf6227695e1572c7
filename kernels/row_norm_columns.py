"""The gradients of weight and bias where no program can keep them beside a row: sums over rows by blocks of columns."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.row_norm_on_chip import integers, load_row_statistics, load_row_tile
from fastdl.kernels.tiles import store, sum_positions, widened


@triton.jit(do_not_specialize=[*integers("residual", "grad_sum"), "chunks"])
def column_sums(
    grad, x, statistics, rests, weight_sums, bias_sums,
    grad_outer, grad_inner, x_outer, x_inner, rows, inner, width_units, chunks,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr, BY_OUTER: tl.constexpr, WIDE: tl.constexpr,
    CENTERED: tl.constexpr,
):  # fmt: skip
    """The sums of grad * xhat and of grad over every ``chunks``-th tile of rows, (chunks, width); either may be absent.

    ``rests``: what the rounding of the mean leaves in xhat, (rows,), for layer norm alone.

    They are kept by place in the tile, with no exchange between threads before the end.
    """
    if WIDE:
        width_units = width_units.to(tl.int64)
    width = width_units * UNIT
    blocks = tl.cdiv(width, COLUMNS)
    chunk = (tl.program_id(0) // blocks).to(rows.dtype)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    in_width = column < width
    by_weight = tl.zeros([ROWS, COLUMNS], tl.float32)
    by_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(chunk, tl.cdiv(rows, ROWS), chunks):
        row = tile * ROWS + tl.arange(0, ROWS)
        g = widened(load_row_tile(grad, row, rows, column, in_width, grad_outer, grad_inner, inner, UNIT, BY_OUTER))
        if weight_sums is not None:
            mean, scale = load_row_statistics(statistics, row, rows, row < rows, CENTERED)
            z = widened(load_row_tile(x, row, rows, column, in_width, x_outer, x_inner, inner, UNIT, BY_OUTER))
            if CENTERED:
                z -= mean[:, None]
            z *= scale[:, None]
            if CENTERED:
                z -= tl.load(rests + row, mask=row < rows, other=0.0)[:, None]
            by_weight += g * z
        if bias_sums is not None:
            by_bias += g
    at = chunk.to(tl.int64) * width + column
    if weight_sums is not None:
        store(weight_sums + at, sum_positions(by_weight, ROWS, COLUMNS), in_width)
    if bias_sums is not None:
        store(bias_sums + at, sum_positions(by_bias, ROWS, COLUMNS), in_width)
