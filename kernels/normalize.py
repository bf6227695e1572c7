"""The launches behind group norm and batch norm, which differ in what a group is and in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdl.kernels import configs
from fastdl.kernels.activations import NUMBERS
from fastdl.kernels.configs import Merge, OnChip, Problem, Split, merge, on_chip, problem_of, split
from fastdl.kernels.launch import launch, on_device, stride_of
from fastdl.kernels.layout import Strides, empty_output, operand, strides_in_place, view_of
from fastdl.kernels.moments import merge_moments, partial_moments
from fastdl.kernels.on_chip import on_chip_backward, on_chip_forward
from fastdl.kernels.parameters import sum_rows
from fastdl.kernels.split import apply_backward, apply_forward, merge_sums, partial_sums

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Norm(NamedTuple):
    """What is computed besides the statistics' place: ``groups`` None is batch norm."""

    groups: int | None
    eps: float
    activation: str
    parameter: float
    activation_first: bool

    def constants(self) -> dict[str, Any]:
        return {"ACTIVATION": NUMBERS[self.activation], "ACTIVATION_FIRST": self.activation_first}


def forward(
    norm: Norm,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output, and float64 statistics (2, outer, groups); running statistics, where given, are those."""
    view = view_of(input.shape, input.stride())
    y = empty_output(view, input)
    x, x_strides = operand(view, input)
    r, r_strides = (None, x_strides) if residual is None else operand(view, residual)
    y_strides = strides_in_place(view, view.dense)
    assert y_strides is not None
    problem = problem_of(view, norm.groups, x.element_size(), x_strides, r_strides, y_strides)
    shape = (2, problem.outer, problem.groups)
    if not input.numel():
        return y, given_or_zero(input, shape, running_mean, running_var)
    statistics = torch.empty(shape, dtype=torch.float64, device=x.device)
    strides = (*unit_strides(problem, x_strides, r_strides, y_strides), stride_of(weight), stride_of(bias))
    with on_device(x):
        tile = None if running_mean is not None else on_chip(problem, False, configs.LIMITS)
        if tile is not None:
            launch(
                on_chip_forward, problem.outer * -(-problem.groups // tile.groups),
                x, r, y, weight, bias, statistics, *strides, *extents(problem), norm.eps, norm.parameter,
                **on_chip_constants(problem, tile), **norm.constants(), warps=tile.warps,
            )  # fmt: skip
            return y, statistics
        if running_mean is None:
            reduce_moments(norm, problem, x, r, statistics, strides)
        plan = split(problem, configs.LIMITS.apply_programs, configs.LIMITS, name="norm_apply_forward")
        launch(
            apply_forward, plan.programs,
            x, r, y, weight, bias, statistics, running_mean, running_var,
            *strides, stride_of(running_mean), stride_of(running_var),
            *extents(problem), plan.chunks, plan.tiles, norm.eps, norm.parameter,
            **split_constants(problem, plan), WIDTH=problem.width, **norm.constants(), warps=plan.warps,
        )  # fmt: skip
    return y, statistics


def reduce_moments(
    norm: Norm, problem: Problem, x: Tensor, r: Tensor | None, statistics: Tensor, strides: tuple[int, ...]
) -> None:
    """The batch's statistics by two launches: moments by chunk, then by group."""
    plan = split(problem, configs.LIMITS.reduce_programs, configs.LIMITS)
    partials = torch.empty((2, problem.outer, plan.chunks, problem.channels), dtype=torch.float64, device=x.device)
    positions, inner, outer, groups, channel_units = extents(problem)
    launch(
        partial_moments, plan.programs,
        x, r if norm.activation_first else None, partials, *strides[:4],
        positions, inner, outer, channel_units, plan.chunks, plan.tiles, norm.parameter,
        **split_constants(problem, plan), **norm.constants(), warps=plan.warps,
    )  # fmt: skip
    merging = merge(problem, plan.chunks)
    launch(
        merge_moments, problem.outer * -(-problem.groups // merging.groups),
        partials, statistics, problem.positions, outer, groups, plan.chunks, plan.tiles * plan.positions,
        **merge_constants(problem, merging), warps=merging.warps,
    )  # fmt: skip


def backward(
    norm: Norm,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    needs: Sequence[bool],
    constant: bool = False,
) -> Gradients:
    """The gradients of input, weight, bias and residual that are needed; ``constant``: the statistics are given."""
    view = view_of(input.shape, input.stride())
    grad_x = empty_output(view, input) if needs[0] else None
    grad_residual = empty_output(view, input) if needs[3] and residual is not None else None
    grad_weight = like_parameter(weight) if needs[1] and weight is not None else None
    grad_bias = like_parameter(bias) if needs[2] and bias is not None else None
    gradients = (grad_x, grad_weight, grad_bias, grad_residual)
    if not input.numel():
        for parameter in (grad_weight, grad_bias):
            if parameter is not None:
                parameter.zero_()
        return gradients
    g, g_strides = operand(view, grad_output)
    x, x_strides = operand(view, input)
    r, r_strides = (None, x_strides) if residual is None else operand(view, residual)
    y_strides = strides_in_place(view, view.dense)
    assert y_strides is not None
    problem = problem_of(view, norm.groups, x.element_size(), g_strides, x_strides, r_strides, y_strides)
    strides = (
        *unit_strides(problem, g_strides, x_strides, r_strides, y_strides),
        stride_of(weight),
        stride_of(bias),
    )
    # With one outer part the sums by part are the gradients already.
    by_part = problem.outer > 1
    sums = [
        torch.empty((problem.outer, problem.channels), dtype=torch.float32, device=x.device)
        if by_part and gradient is not None
        else gradient
        for gradient in (grad_weight, grad_bias)
    ]
    with on_device(x):
        tile = on_chip(problem, True, configs.LIMITS, residual is not None or norm.activation_first)
        if tile is not None:
            launch(
                on_chip_backward, problem.outer * -(-problem.groups // tile.groups),
                g, x, r, weight, bias, statistics, grad_x, grad_residual, *sums,
                *strides, *extents(problem), norm.eps, norm.parameter,
                **on_chip_constants(problem, tile), **norm.constants(), CONSTANT=constant, warps=tile.warps,
            )  # fmt: skip
        else:
            split_backward(norm, problem, (g, x, r, weight, bias, statistics), gradients, sums, strides, constant)
        if by_part and (grad_weight is not None or grad_bias is not None):
            rows = min(configs.power_of_two(problem.outer), 128)
            launch(
                sum_rows,
                -(-problem.channels // 8),
                *sums,
                grad_weight,
                grad_bias,
                problem.outer,
                problem.channels,
                ROWS=rows,
                CHANNELS=8,
                warps=4,
            )
    return gradients


def split_backward(
    norm: Norm,
    problem: Problem,
    tensors: tuple[Any, ...],
    gradients: Gradients,
    sums: list[Tensor | None],
    strides: tuple[int, ...],
    constant: bool,
) -> None:
    """Three launches: sums by chunk, by group and channel, then the gradients of input and residual.

    Constant statistics need no sums but those of the parameters' own gradients.
    """
    grad_x, grad_weight, grad_bias, grad_residual = gradients
    wants_tensors = grad_x is not None or grad_residual is not None
    device, weight = tensors[1].device, tensors[3]
    totals = None
    if grad_weight is not None or grad_bias is not None or not constant:
        plan = split(problem, configs.LIMITS.reduce_programs, configs.LIMITS, sums=True, name="norm_sums")
        partials = torch.empty((2, problem.outer, plan.chunks, problem.channels), dtype=torch.float32, device=device)
        launch(
            partial_sums, plan.programs,
            *tensors, partials, *strides[:6], *strides[8:],
            *extents(problem), plan.chunks, plan.tiles, norm.eps, norm.parameter,
            **split_constants(problem, plan), WIDTH=problem.width, **norm.constants(), warps=plan.warps,
        )  # fmt: skip
        totals = torch.empty((2, problem.outer, problem.groups), dtype=torch.float32, device=device)
        merging = merge(problem, plan.chunks)
        launch(
            merge_sums, problem.outer * -(-problem.groups // merging.groups),
            partials, weight, totals, *sums, stride_of(weight), problem.outer, problem.groups, plan.chunks,
            **merge_constants(problem, merging), warps=merging.warps,
        )  # fmt: skip
    if wants_tensors:
        plan = split(problem, configs.LIMITS.apply_programs, configs.LIMITS, name="norm_apply_backward")
        launch(
            apply_backward, plan.programs,
            *tensors, None if constant else totals, grad_x, grad_residual,
            *strides, *extents(problem), plan.chunks, plan.tiles, norm.eps, norm.parameter,
            **split_constants(problem, plan), WIDTH=problem.width, **norm.constants(), warps=plan.warps,
        )  # fmt: skip


# -- what the launches have in common ----------------------------------------------------------------------------------


def unit_strides(problem: Problem, *strides: Strides) -> tuple[int, ...]:
    """Sample and line strides of each tensor in units; the sample's is of no use where positions are one run."""
    steps = problem.by_sample or problem.outer > 1
    return tuple(n // problem.unit for s in strides for n in (s.sample if steps else 0, s.line))


def extents(problem: Problem) -> tuple[int, int, int, int, int]:
    """positions, inner, outer, groups and channel_units, as every kernel takes them."""
    unit, along = problem.unit, 1 if problem.channels_last else problem.unit
    channel_units = problem.channels // (unit if problem.channels_last else 1)
    return problem.positions // along, problem.inner // along, problem.outer, problem.groups, channel_units


def layout_constants(problem: Problem) -> dict[str, Any]:
    return {
        "UNIT": problem.unit,
        "CHANNELS_LAST": problem.channels_last,
        "BY_SAMPLE": problem.by_sample,
        "WIDE": problem.wide,
    }


def on_chip_constants(problem: Problem, tile: OnChip) -> dict[str, Any]:
    return {
        "POSITIONS": tile.positions,
        "CHANNELS": tile.channels,
        "WIDTH": problem.width,
        "GROUPS": tile.groups,
        "TABLE": tile.table,
        **layout_constants(problem),
    }


def split_constants(problem: Problem, plan: Split) -> dict[str, Any]:
    return {"POSITIONS": plan.positions, "CHANNELS": plan.channels, **layout_constants(problem)}


def merge_constants(problem: Problem, plan: Merge) -> dict[str, Any]:
    return {
        "ROWS": plan.rows,
        "CHANNELS": plan.channels,
        "WIDTH": problem.width,
        "GROUPS": plan.groups,
        "TABLE": plan.table,
        "BLOCKS": plan.blocks,
    }


def like_parameter(parameter: Tensor) -> Tensor:
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)


def given_or_zero(input: Tensor, shape: tuple[int, int, int], mean: Tensor | None, variance: Tensor | None) -> Tensor:
    """The statistics of an empty tensor: the running ones where given, else 0."""
    if mean is None or variance is None:
        return torch.zeros(shape, dtype=torch.float64, device=input.device)
    return torch.stack([mean.double(), variance.double()]).view(shape)
