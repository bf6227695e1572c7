"""A convolution of a normalised, activated tensor in Triton, forward and backward: conv(act(norm(x))).

The norm's affine map and the activation are applied while the convolution reads its input, and computed again where
the backward pass needs them, so that the activated tensor is never in memory. The output's batch statistics come from
the convolution's own results, before they leave the chip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdl.kernels import configs
from fastdl.kernels import convolution_layout as layout
from fastdl.kernels import convolution_plan as plan
from fastdl.kernels.convolution_call import (
    BATCH,
    Call,
    bias_gradient,
    merge_moments_of_output,
    norm_sums,
)
from fastdl.kernels.convolution_data import convolve_data
from fastdl.kernels.convolution_direct import direct_data, direct_forward, direct_weight
from fastdl.kernels.convolution_forward import convolve_forward
from fastdl.kernels.convolution_layout import Lines, geometry_of
from fastdl.kernels.convolution_layout import serves as serves
from fastdl.kernels.convolution_shipped import variants
from fastdl.kernels.convolution_weight import convolve_weight, merge_weight
from fastdl.kernels.launch import launch, on_device, stride_of
from fastdl.kernels.normalize import extents, given_or_zero, like_parameter, split_constants, unit_strides
from fastdl.kernels.shipped import Shipped
from fastdl.kernels.split import apply_backward

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def forward(
    input: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    known: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
    activation_param: float,
    activation_first: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    collect: bool,
) -> tuple[Tensor, Tensor]:
    """conv(act(norm(x))), or conv(norm(act(x))) with ``activation_first``, and float64 statistics in one vector.

    As `fastdl.reference.norm_act_conv.norm_act_conv_with_statistics` has them, for the calls that `serves` takes. What
    ``collect`` asks for is of the output as rounded to its dtype. An input that is not in channels last costs one copy
    in and one out: the output is contiguous then.
    """
    geometry = geometry_of(input, weight, stride, padding, dilation, groups)
    call = Call(
        input, norm_weight, norm_bias, weight, num_groups, eps, activation, activation_param, activation_first, geometry
    )
    shape = (geometry.samples, geometry.out_channels, *geometry.out_size[4 - input.ndim :])
    y = layout.empty_lines(shape, input)
    collected = 2 * geometry.out_channels if collect else 0
    statistics = torch.empty(call.own + collected, dtype=torch.float64, device=input.device)
    given = (running_mean, running_var)
    if not input.numel():
        statistics.zero_()
        if num_groups == BATCH:
            own = given_or_zero(input, (2, 1, geometry.channels), *given)
            statistics[: call.own] = own.flatten()
        return layout.in_layout_of(input, y), statistics
    if num_groups == BATCH and known is not None and running_mean is None:
        given = (known[: geometry.channels], known[geometry.channels :])
    with on_device(input):
        if call.has_norm and given[0] is None:
            call.compute_statistics(statistics)
        table = call.table(statistics, given)
        partials = launch_forward(call, table, bias, y, collect)
        if partials is not None:
            tile = plan.forward(call.problem, plan.LIMITS)
            positions = plan.rows_of_outer(call.problem, geometry.out_positions)
            merge_moments_of_output(partials, statistics[call.own :], positions, call.outers, tile.chunks, tile.rows)
    return layout.in_layout_of(input, y), statistics


def launch_forward(call: Call, table: Tensor | None, bias: Tensor | None, y: Tensor, collect: bool) -> Tensor | None:
    """Writes ``y`` and returns each tile's moments, (2, outers x chunks, C_out), where they are asked for."""
    geometry, x = call.geometry, call.x
    tile = plan.forward(call.problem, plan.LIMITS)
    partials = None
    if collect:
        shape = (2, call.outers * tile.chunks, geometry.out_channels)
        partials = torch.empty(shape, dtype=torch.float64, device=call.input.device)
    unit, out_unit = call.units(None)
    steps = (x.strides.sample // unit, x.strides.line // unit)
    sizes = (*geometry.size, *geometry.out_size, plan.rows_of_outer(call.problem, geometry.out_positions), call.outers)
    constants = {**call.constants(None), "ROWS": tile.rows, "COLUMNS": tile.columns}
    if call.direct:
        launch(
            direct_forward, call.outers * tile.chunks * -(-geometry.out_channels // tile.columns),
            x.tensor, layout.depths_of(call.weight), bias, table, y, partials, *steps, *sizes,
            geometry.channels // unit, geometry.out_channels // out_unit, call.parameter,
            **constants, warps=tile.warps, stages=tile.stages,
        )  # fmt: skip
    else:
        launch(
            convolve_forward, call.outers * tile.chunks * geometry.groups * -(-geometry.columns // tile.columns),
            x.tensor, layout.taps_of(call.weight), bias, table, y, partials, *steps, *sizes,
            geometry.depth // unit, geometry.columns // out_unit, geometry.groups, call.parameter,
            **constants, DEPTH=tile.depth, FLAT=tile.flat, warps=tile.warps, stages=tile.stages,
        )  # fmt: skip
    return partials


def backward(
    grad_output: Tensor,
    input: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    known: Tensor | None,
    statistics: Tensor,
    num_groups: int,
    eps: float,
    activation: str,
    activation_param: float,
    activation_first: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    collect: bool,
    needs: Sequence[bool],
) -> Gradients:
    """The gradients of input, the norm's weight and bias, and the convolution's; None for what is absent or not needed.

    They go through the batch's statistics, ``known`` or not; running statistics are constants.
    """
    geometry = geometry_of(input, weight, stride, padding, dilation, groups)
    call = Call(
        input, norm_weight, norm_bias, weight, num_groups, eps, activation, activation_param, activation_first, geometry
    )
    of_weight, of_bias = needs[3], needs[4] and bias is not None
    of_norm_weight = needs[1] and norm_weight is not None and call.has_norm
    of_norm_bias = needs[2] and norm_bias is not None and call.has_norm
    parameters = [
        like_parameter(p) if p is not None and needed else None
        for p, needed in ((norm_weight, of_norm_weight), (norm_bias, of_norm_bias))
    ]
    grad_weight = empty_like_weight(weight) if of_weight else None
    grad_x = layout.empty_lines(tuple(input.shape), input) if needs[0] else None
    grad_bias = None
    if not input.numel():
        grad_bias = like_parameter(bias) if of_bias and bias is not None else None
        for gradient in (*parameters, grad_weight, grad_bias):
            if gradient is not None:
                gradient.zero_()
    else:
        grad = layout.lines_of(grad_output)
        with on_device(input):
            before = needs[0] or of_norm_weight or of_norm_bias
            table = call.table(statistics, (None, None)) if before or of_weight else None
            if before:
                launch_data(call, grad, table, statistics, grad_x, parameters, running_mean is not None)
            if grad_weight is not None:
                launch_weight(call, grad, table, grad_weight)
            if of_bias and bias is not None:
                grad_bias = bias_gradient(call, grad, bias)
    if grad_x is not None:
        grad_x = layout.in_layout_of(input, grad_x)
    return grad_x, parameters[0], parameters[1], grad_weight, grad_bias


def empty_like_weight(weight: Tensor) -> Tensor:
    """An uninitialised gradient: in channels last where the weight is, else contiguous."""
    if layout.is_channels_last(weight):
        return layout.empty_lines(tuple(weight.shape), weight)
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def launch_data(
    call: Call,
    grad: Lines,
    table: Tensor | None,
    statistics: Tensor,
    grad_x: Tensor | None,
    parameters: list[Tensor | None],
    constant: bool,
) -> None:
    """The gradients of the input (if ``grad_x``) and of the norm's parameters (those that are not None)."""
    geometry, x = call.geometry, call.x
    constant = constant and call.num_groups == BATCH
    tile = plan.data(call.problem, plan.LIMITS)
    phases = geometry.stride[0] * geometry.stride[1]
    partials = None
    if call.has_norm and (not constant or any(p is not None for p in parameters)):
        shape = (2, call.outers, phases * tile.chunks, geometry.channels)
        partials = torch.empty(shape, dtype=torch.float32, device=call.input.device)
    unit, out_unit = call.units(grad)
    steps = (
        grad.strides.sample // out_unit, grad.strides.line // out_unit, x.strides.sample // unit, x.strides.line // unit
    )  # fmt: skip
    samples = 1 if call.by_sample else geometry.samples
    sizes = (*geometry.size, *geometry.out_size, samples, call.outers)
    periods = plan.periods(geometry)
    constants = call.constants(grad) | {"PERIOD_HEIGHT": periods[0], "PERIOD_WIDTH": periods[1], "CONSTANT": constant}
    constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns}
    read = x.tensor if call.has_norm or call.activation != "identity" else None
    programs = call.outers * tile.chunks * phases
    if call.direct:
        launch(
            direct_data, programs * -(-geometry.channels // tile.columns),
            grad.tensor, layout.depths_of(call.weight), read, table, grad_x, partials, *steps, *sizes,
            geometry.channels // unit, geometry.out_channels // out_unit, tile.chunks, call.parameter,
            **constants, warps=tile.warps, stages=tile.stages,
        )  # fmt: skip
    else:
        launch(
            convolve_data, programs * geometry.groups * -(-geometry.depth // tile.columns),
            grad.tensor, layout.taps_of(call.weight), read, table, grad_x, partials, *steps, *sizes,
            geometry.columns // out_unit, geometry.depth // unit, geometry.groups, tile.chunks, call.parameter,
            **constants, DEPTH=tile.depth, warps=tile.warps, stages=tile.stages,
        )  # fmt: skip
    if partials is None:
        return
    totals = norm_sums(call, partials, parameters[0], parameters[1])
    if grad_x is not None and not constant:
        subtract_means(call, grad_x, statistics, totals)


def subtract_means(call: Call, grad_x: Tensor, statistics: Tensor, totals: Tensor) -> None:
    """From the gradient of the norm's affine map to that of x, in place."""
    problem = call.norm_problem
    dense = layout.dense_strides(tuple(call.input.shape))
    # The slope of an activation behind the norm is in the gradient already.
    norm = call.norm if call.activation_first else call.norm._replace(activation="identity")
    split = configs.split(problem, configs.LIMITS.apply_programs, configs.LIMITS, name="norm_apply_backward")
    launch(
        apply_backward, split.programs,
        grad_x, call.x.tensor, None, call.norm_weight, call.norm_bias, statistics, totals, grad_x, None,
        *unit_strides(problem, dense, call.x.strides, call.x.strides, dense),
        stride_of(call.norm_weight), stride_of(call.norm_bias),
        *extents(problem), split.chunks, split.tiles, call.eps, call.parameter,
        **split_constants(problem, split), WIDTH=problem.width, **norm.constants(), warps=split.warps,
    )  # fmt: skip


def launch_weight(call: Call, grad: Lines, table: Tensor | None, grad_weight: Tensor) -> None:
    """The gradient of the convolution's weight, into any layout of it."""
    geometry, x = call.geometry, call.x
    tile, tiles, splits = plan.weight(call.problem, plan.LIMITS)
    shape = (splits, geometry.out_channels, geometry.taps, geometry.depth)
    partials = torch.empty(shape, dtype=torch.float32, device=call.input.device)
    unit, out_unit = call.units(grad)
    steps = (
        x.strides.sample // unit, x.strides.line // unit, grad.strides.sample // out_unit, grad.strides.line // out_unit
    )  # fmt: skip
    sizes = (*geometry.size, *geometry.out_size, plan.rows_of_outer(call.problem, geometry.out_positions), call.outers)
    constants: dict[str, Any] = {**call.constants(grad), "ROWS": tile.rows, "COLUMNS": tile.columns}
    if call.direct:
        blocks = -(-geometry.out_channels // tile.columns)
        launch(
            direct_weight, blocks * geometry.kernel[0] * geometry.depth * splits,
            x.tensor, grad.tensor, table, partials, *steps, *sizes,
            geometry.channels // unit, geometry.out_channels // out_unit, tiles, splits, call.parameter,
            **constants, TAPS=tile.depth, warps=tile.warps, stages=tile.stages,
        )  # fmt: skip
    else:
        count = geometry.depth * (geometry.taps if tile.flat else 1)
        blocks = -(-count // tile.columns) * (1 if tile.flat else geometry.taps)
        launch(
            convolve_weight, blocks * -(-geometry.columns // tile.rows) * geometry.groups * splits,
            x.tensor, grad.tensor, table, partials, *steps, *sizes,
            geometry.depth // unit, geometry.columns // out_unit, geometry.groups, tiles, splits, call.parameter,
            **constants, DEPTH=tile.depth, FLAT=tile.flat, warps=tile.warps, stages=tile.stages,
        )  # fmt: skip
    out, member, *others = grad_weight.stride()
    values = 256
    # Kernel positions lie in one run, in both layouts of a weight.
    launch(
        merge_weight, -(-grad_weight.numel() // values),
        partials, grad_weight, splits, geometry.out_channels, geometry.taps, geometry.depth, out, others[-1], member,
        VALUES=values, warps=4,
    )  # fmt: skip


def shipped() -> tuple[Shipped, ...]:
    """What the plans choose for the layers of `fastdl.kernels.convolution_shipped`."""
    return variants(forward, backward)
