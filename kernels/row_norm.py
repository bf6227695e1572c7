"""The launches behind layer norm and RMS norm, which differ in the mean and the bias and in nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdl.kernels import row_norm_plan as plan
from fastdl.kernels.configs import power_of_two
from fastdl.kernels.launch import launch, on_device
from fastdl.kernels.parameters import sum_rows
from fastdl.kernels.row_norm_columns import column_sums
from fastdl.kernels.row_norm_layout import Rows, Steps, dense_steps, rows_of
from fastdl.kernels.row_norm_on_chip import row_norm_backward, row_norm_forward
from fastdl.kernels.row_norm_wide import (
    wide_apply_backward,
    wide_apply_forward,
    wide_backward,
    wide_forward,
    wide_moments,
    wide_sums,
)


def forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dimensions: int,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The output, the sum (None without a residual), and float32 statistics: (2, rows) if ``centered``, or (rows,)."""
    y = empty_like(input)
    sum = None if residual is None else empty_like(input)
    count = math.prod(input.shape[: input.ndim - dimensions])
    statistics = torch.empty((2, count) if centered else (count,), dtype=torch.float32, device=input.device)
    if not input.numel():
        return y, sum, statistics.zero_()
    rows, read, steps = rows_of([input] if residual is None else [input, residual], dimensions)
    x, r = read[0], None if residual is None else read[1]
    units = in_units(rows, steps[0], steps[-1])
    parameters = (flat(weight), flat(bias))
    common = constants(rows, centered)
    with on_device(input):
        processors = plan.processors(input.device)
        tile = plan.forward_on_chip(rows, processors, plan.LIMITS)
        if tile is not None:
            launch(
                row_norm_forward, tile.programs,
                x, r, y, sum, *parameters, statistics, *units, *extents(rows), eps,
                ROWS=tile.rows, COLUMNS=tile.columns, **common, warps=tile.warps,
            )  # fmt: skip
            return y, sum, statistics
        wide = plan.wide(rows, processors, plan.LIMITS)
        if wide.parts == 1:
            launch(
                wide_forward, wide.programs,
                x, r, y, sum, *parameters, statistics, *units, *extents(rows), eps,
                COLUMNS=wide.columns, **common, warps=wide.warps,
            )  # fmt: skip
            return y, sum, statistics
        partials = torch.empty((2, count, wide.parts), dtype=torch.float64, device=input.device)
        launch(
            wide_moments, wide.programs,
            x, r, sum, partials, *units, *extents(rows), wide.parts, wide.tiles,
            COLUMNS=wide.columns, **common, warps=wide.warps,
        )  # fmt: skip
        normalized, of_normalized = (x, units[:2]) if sum is None else (sum, in_units(rows, dense_steps(rows)))
        launch(
            wide_apply_forward, wide.programs,
            normalized, y, *parameters, partials, statistics,
            *of_normalized, *extents(rows), wide.parts, wide.tiles, eps,
            COLUMNS=wide.columns, PARTS=power_of_two(wide.parts), **common, warps=wide.warps,
        )  # fmt: skip
    return y, sum, statistics


def backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    dimensions: int,
    centered: bool,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of input, weight and bias that are needed; ``input`` is what was normalised: the sum, if any."""
    grad_x = empty_like(input) if needs[0] else None
    parameters = [
        empty_like(parameter) if parameter is not None and needed else None
        for parameter, needed in ((weight, needs[1]), (bias, needs[2]))
    ]
    if not input.numel():
        for gradient in parameters:
            if gradient is not None:
                gradient.zero_()
        return grad_x, parameters[0], parameters[1]
    summed = parameters[0] is not None or parameters[1] is not None
    if grad_x is None:
        grad_sum = None
    rows, read, steps = rows_of(
        [grad_output, input] if grad_sum is None else [grad_output, input, grad_sum], dimensions
    )
    tensors = (read[0], read[1], None if grad_sum is None else read[2])
    units = in_units(rows, steps[0], steps[1], steps[-1])
    w = None if grad_x is None else flat(weight)
    with on_device(input):
        processors = plan.processors(input.device)
        tile = plan.backward_on_chip(rows, processors, summed, len(read), plan.LIMITS)
        if tile is not None and (summed or grad_x is not None):
            sums = sums_by_program(tile.programs, rows, parameters)
            launch(
                row_norm_backward, tile.programs,
                *tensors, w, statistics, grad_x, None, *sums, *units, *extents(rows),
                ROWS=tile.rows, COLUMNS=tile.columns, **constants(rows, centered), STAGES=tile.stages, warps=tile.warps,
            )  # fmt: skip
            add_up(sums, tile.programs, rows, parameters)
        elif tile is None:
            rests = None
            if centered and parameters[0] is not None:
                rests = torch.empty(rows.rows, dtype=torch.float32, device=input.device)
            if grad_x is not None or rests is not None:
                gradient_of_wide(rows, centered, tensors, w, statistics, grad_x, rests, units, processors)
            if summed:
                sums_of_columns(rows, centered, tensors, statistics, rests, parameters, units, processors)
    return grad_x, parameters[0], parameters[1]


def gradient_of_wide(
    rows: Rows,
    centered: bool,
    tensors: tuple[Tensor | None, ...],
    weight: Tensor | None,
    statistics: Tensor,
    grad_x: Tensor | None,
    rests: Tensor | None,
    units: tuple[int, ...],
    processors: int,
) -> None:
    """The gradient of what was normalised, with no sums over rows beside it: on chip where those alone do not fit.

    ``rests`` is for `column_sums`: what the rounding of the mean leaves in each row.
    """
    common = constants(rows, centered)
    tile = plan.backward_on_chip(rows, processors, False, 2 if tensors[2] is None else 3, plan.LIMITS)
    if tile is not None:
        launch(
            row_norm_backward, tile.programs,
            *tensors, weight, statistics, grad_x, rests, None, None, *units, *extents(rows),
            ROWS=tile.rows, COLUMNS=tile.columns, **common, STAGES=tile.stages, warps=tile.warps,
        )  # fmt: skip
        return
    wide = plan.wide(rows, processors, plan.LIMITS)
    if wide.parts == 1:
        launch(
            wide_backward, wide.programs,
            *tensors, weight, statistics, grad_x, rests, *units, *extents(rows),
            COLUMNS=wide.columns, **common, warps=wide.warps,
        )  # fmt: skip
        return
    partials = torch.empty((3, rows.rows, wide.parts), dtype=torch.float32, device=statistics.device)
    launch(
        wide_sums, wide.programs,
        *tensors[:2], weight, statistics, partials, *units[:4], *extents(rows), wide.parts, wide.tiles,
        COLUMNS=wide.columns, **common, warps=wide.warps,
    )  # fmt: skip
    launch(
        wide_apply_backward, wide.programs,
        *tensors, weight, statistics, partials, grad_x, rests, *units, *extents(rows), wide.parts, wide.tiles,
        COLUMNS=wide.columns, PARTS=power_of_two(wide.parts), **common, warps=wide.warps,
    )  # fmt: skip


def sums_of_columns(
    rows: Rows,
    centered: bool,
    tensors: tuple[Tensor | None, ...],
    statistics: Tensor,
    rests: Tensor | None,
    parameters: Sequence[Tensor | None],
    units: tuple[int, ...],
    processors: int,
) -> None:
    """The gradients of weight and bias, with no other beside them."""
    blocks = plan.column_blocks(rows, processors, plan.LIMITS)
    sums = sums_by_program(blocks.chunks, rows, parameters)
    launch(
        column_sums, blocks.programs,
        *tensors[:2], statistics, rests, *sums, *units[:4], *extents(rows), blocks.chunks,
        ROWS=blocks.rows, COLUMNS=blocks.columns, **constants(rows, centered), warps=blocks.warps,
    )  # fmt: skip
    add_up(sums, blocks.chunks, rows, parameters)


# -- what the launches have in common ----------------------------------------------------------------------------------


def sums_by_program(programs: int, rows: Rows, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Room for each program's sums over its rows. Those of a single one are the gradients already."""
    return [
        torch.empty((programs, rows.width), dtype=torch.float32, device=gradient.device)
        if gradient is not None and programs > 1
        else gradient
        for gradient in gradients
    ]


def add_up(sums: Sequence[Tensor | None], programs: int, rows: Rows, gradients: Sequence[Tensor | None]) -> None:
    if programs > 1 and any(gradient is not None for gradient in gradients):
        launch(
            sum_rows, -(-rows.width // 8),
            *sums, *gradients, programs, rows.width,
            ROWS=min(power_of_two(programs), 128), CHANNELS=8, warps=4,
        )  # fmt: skip


def in_units(rows: Rows, *steps: Steps) -> tuple[int, ...]:
    return tuple(number // rows.unit for step in steps for number in step)


def extents(rows: Rows) -> tuple[int, int, int]:
    """rows, inner and width_units, as every kernel takes them."""
    return rows.rows, rows.inner, rows.width // rows.unit


def constants(rows: Rows, centered: bool) -> dict[str, Any]:
    wide = max(rows.rows, rows.width) >= plan.FARTHEST
    return {"UNIT": rows.unit, "BY_OUTER": rows.by_outer, "WIDE": wide, "CENTERED": centered}


def flat(parameter: Tensor | None) -> Tensor | None:
    """A parameter in one run of memory."""
    return None if parameter is None else parameter.contiguous()


def empty_like(tensor: Tensor) -> Tensor:
    """An uninitialised contiguous tensor."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
