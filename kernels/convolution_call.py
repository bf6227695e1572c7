"""A call of norm_act_conv as the kernels take it, and the launches around the convolutions' own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastdl.kernels import convolution_layout as layout
from fastdl.kernels import convolution_plan as plan
from fastdl.kernels.activations import NUMBERS
from fastdl.kernels.attention_plan import architecture_of
from fastdl.kernels.configs import Problem as NormProblem
from fastdl.kernels.configs import merge, power_of_two, problem_of
from fastdl.kernels.convolution_layout import Geometry, Lines
from fastdl.kernels.convolution_statistics import channel_sums, merge_output_moments, norm_coefficients, sum_chunks
from fastdl.kernels.launch import launch, stride_of
from fastdl.kernels.normalize import Norm, like_parameter, merge_constants, reduce_moments, unit_strides
from fastdl.kernels.parameters import sum_rows
from fastdl.kernels.split import merge_sums

BATCH, NO_NORM = 0, -1


@dataclass
class Call:
    """The arguments that forward and backward share; ``num_groups`` is `BATCH` or `NO_NORM` where there are none."""

    input: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    weight: Tensor
    num_groups: int
    eps: float
    activation: str
    parameter: float
    activation_first: bool
    geometry: Geometry

    @property
    def has_norm(self) -> bool:
        return self.num_groups != NO_NORM

    @property
    def outers(self) -> int:
        return self.geometry.samples if self.num_groups > 0 else 1

    @property
    def by_sample(self) -> bool:
        return self.num_groups > 0

    @property
    def own(self) -> int:
        """Numbers of the norm's statistics."""
        if not self.has_norm:
            return 0
        return 2 * (self.geometry.channels if self.num_groups == BATCH else self.geometry.samples * self.num_groups)

    @cached_property
    def x(self) -> Lines:
        return layout.lines_of(self.input)

    @cached_property
    def norm(self) -> Norm:
        groups = self.num_groups if self.num_groups > 0 else None
        return Norm(groups, self.eps, self.activation, self.parameter, self.activation_first)

    @cached_property
    def norm_problem(self) -> NormProblem:
        """As the norms' own kernels see x, and a dense gradient of it."""
        view = layout.channels_last_view(tuple(self.input.shape))
        dense = layout.dense_strides(tuple(self.input.shape))
        return problem_of(view, self.norm.groups, self.input.element_size(), self.x.strides, dense)

    @cached_property
    def problem(self) -> plan.Problem:
        precise = self.input.dtype == torch.float32 and float32_precision() == "ieee"
        itemsize = self.input.element_size()
        return plan.Problem(
            self.geometry, itemsize, self.outers, self.by_sample, precise, architecture_of(self.input.device)
        )

    @property
    def direct(self) -> bool:
        return plan.is_direct(self.geometry, plan.LIMITS)

    def units(self, grad: Lines | None) -> tuple[int, int]:
        """What a group's input channels and the strides of x are multiples of; and output channels and ``grad``'s."""
        geometry, itemsize = self.geometry, self.input.element_size()
        depth, columns = geometry.depth, geometry.columns
        if self.direct:
            depth, columns = geometry.channels, geometry.out_channels
        return (
            layout.unit_of(itemsize, depth, *self.x.strides),
            layout.unit_of(itemsize, columns, *(() if grad is None else grad.strides)),
        )

    def constants(self, grad: Lines | None) -> dict[str, Any]:
        geometry = self.geometry
        names = ("KERNEL", "STRIDE", "PADDING", "DILATION")
        pairs = (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
        found: dict[str, Any] = {}
        for name, (height, width) in zip(names, pairs, strict=True):
            found |= {f"{name}_HEIGHT": height, f"{name}_WIDTH": width}
        found["UNIT"], found["OUT_UNIT"] = self.units(grad)
        tensors = [(self.x.strides, geometry.positions, geometry.channels)]
        out_shape = (geometry.samples, geometry.out_channels, *geometry.out_size)
        out_strides = layout.dense_strides(out_shape) if grad is None else grad.strides
        tensors.append((out_strides, geometry.out_positions, geometry.out_channels))
        found |= {"BY_SAMPLE": self.by_sample, "WIDE": layout.is_wide(geometry, *tensors)}
        found |= {"ACTIVATION": NUMBERS[self.activation], "ACTIVATION_FIRST": self.activation_first and self.has_norm}
        if self.direct:
            return found | {"IN_GROUP": geometry.depth, "OUT_GROUP": geometry.columns}
        return found | {"PRECISION": float32_precision()}

    def compute_statistics(self, statistics: Tensor) -> None:
        """The norm's own statistics from the input, into the front of ``statistics``."""
        strides = unit_strides(self.norm_problem, self.x.strides, self.x.strides)
        reduce_moments(self.norm, self.norm_problem, self.x.tensor, None, statistics, strides)

    def table(self, statistics: Tensor, given: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
        """What the prologue reads, see `norm_coefficients`; mean and variance ``given`` go to the statistics too."""
        if not self.has_norm:
            return None
        channels = self.geometry.channels
        table = torch.empty((5, self.outers, channels), dtype=torch.float32, device=self.input.device)
        block = 128
        launch(
            norm_coefficients, self.outers * -(-channels // block),
            statistics, *given, self.norm_weight, self.norm_bias, table,
            stride_of(given[0]), stride_of(given[1]), stride_of(self.norm_weight), stride_of(self.norm_bias),
            self.outers, self.norm_problem.groups, channels, self.eps,
            WIDTH=self.norm_problem.width, CHANNELS=block, warps=4,
        )  # fmt: skip
        return table


def float32_precision() -> str:
    """What torch's own convolutions of float32 may do on the matrix units: ``tf32``, else ``ieee``."""
    setting = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if setting == "tf32" else "ieee"


def merge_moments_of_output(
    partials: Tensor, merged: Tensor, positions: int, outers: int, chunks: int, length: int
) -> None:
    """From each tile's moments, (2, outers x chunks, C), to each channel's mean and biased variance, ``merged``."""
    channels, total = partials.shape[2], partials.shape[1]
    items, each, most = total, 1, plan.LIMITS.items
    while True:
        parts = -(-items // most)
        target = merged if parts == 1 else torch.empty((2, parts, channels), dtype=torch.float64, device=merged.device)
        launch(
            merge_output_moments, parts * -(-channels // 4),
            partials, target, positions, chunks, length, total, items, each, parts, channels,
            ROWS=min(most, 128), CHANNELS=4, ITEMS=most, LAST=parts == 1, warps=4,
        )  # fmt: skip
        if parts == 1:
            return
        partials, items, each = target, parts, each * most


def sum_of_chunks(partials: Tensor, parts_at_most: int) -> Tensor:
    """(planes, chunks, C) with at most so many chunks left, each the sum of several, in a fixed order."""
    planes, chunks, channels = partials.shape
    if chunks <= parts_at_most:
        return partials
    each = power_of_two(-(-chunks // parts_at_most))
    parts = -(-chunks // each)
    sums = torch.empty((planes, parts, channels), dtype=torch.float32, device=partials.device)
    _sum_chunks(partials, sums, each)
    return sums


def _sum_chunks(partials: Tensor, sums: Tensor, each: int) -> None:
    planes, chunks, channels = partials.shape
    parts = -(-chunks // each)
    launch(
        sum_chunks, planes * parts * -(-channels // 16),
        partials, sums, chunks, parts, channels, ROWS=min(each, 64), CHANNELS=16, ITEMS=each, warps=4,
    )  # fmt: skip


def norm_sums(call: Call, partials: Tensor, grad_weight: Tensor | None, grad_bias: Tensor | None) -> Tensor:
    """From the tiles' sums, (2, outers, chunks, C), to each group's, float32 (2, outers, groups), and the gradients of
    the norm's weight and bias."""
    problem = call.norm_problem
    device, channels = partials.device, problem.channels
    partials = sum_of_chunks(partials.view(2 * call.outers, -1, channels), plan.LIMITS.items)
    chunks = partials.shape[1]
    by_part = call.outers > 1
    sums = [
        torch.empty((call.outers, channels), dtype=torch.float32, device=device)
        if by_part and gradient is not None
        else gradient
        for gradient in (grad_weight, grad_bias)
    ]
    totals = torch.empty((2, call.outers, problem.groups), dtype=torch.float32, device=device)
    merging = merge(problem, chunks)
    launch(
        merge_sums, call.outers * -(-problem.groups // merging.groups),
        partials, call.norm_weight, totals, *sums, stride_of(call.norm_weight), call.outers, problem.groups, chunks,
        **merge_constants(problem, merging), warps=merging.warps,
    )  # fmt: skip
    if by_part and (grad_weight is not None or grad_bias is not None):
        rows = min(power_of_two(call.outers), 128)
        launch(
            sum_rows, -(-channels // 8), *sums, grad_weight, grad_bias, call.outers, channels,
            ROWS=rows, CHANNELS=8, warps=4,
        )  # fmt: skip
    return totals


def bias_gradient(call: Call, grad: Lines, bias: Tensor) -> Tensor:
    """The output's gradient summed over samples and positions."""
    geometry = call.geometry
    channels, itemsize = geometry.out_channels, call.input.element_size()
    positions = geometry.samples * geometry.out_positions
    columns = min(power_of_two(channels), 128 // itemsize)
    rows = min(power_of_two(positions), 4096 // columns)
    blocks, total = -(-channels // columns), -(-positions // rows)
    tiles = -(-total // min(max(plan.LIMITS.split_programs // blocks, 1), total))
    chunks = -(-total // tiles)
    partials = torch.empty((1, chunks, channels), dtype=torch.float32, device=call.input.device)
    unit = layout.unit_of(itemsize, channels, *grad.strides)
    wide = layout.is_wide(geometry, (grad.strides, geometry.out_positions, channels))
    launch(
        channel_sums, blocks * chunks,
        grad.tensor, partials, grad.strides.sample // unit, grad.strides.line // unit, geometry.out_positions,
        positions, channels // unit, chunks, tiles, ROWS=rows, CHANNELS=columns, UNIT=unit, WIDE=wide,
        warps=min(max(rows * columns // 512, 1), 8),
    )  # fmt: skip
    gradient = like_parameter(bias)
    _sum_chunks(partials, gradient.view(1, 1, channels), power_of_two(chunks))
    return gradient
