"""A row of norm_act_conv's tables as a call of the CUDA kernels on the host, and its results as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdl.reference.activations import ACTIVATIONS, DEFAULT_PARAMETERS
from fastdl.reference.conv_norm_act import count_groups
from fastdl.reference.norm_act_conv import BATCH, NO_NORM
from tests.simt.harness import CSRC, HERE, Case, Input, Machine, Output, Result, Runner, build
from tests.simt.norms.calls import DTYPES, STORED, as_tensor, read_only
from tests.support.norm_act_conv import NormActConvCase
from tests.support.problems import Problem, Tensors

KERNELS = (
    "convolution_depthwise_forward", "convolution_depthwise_input", "convolution_depthwise_plan",
    "convolution_depthwise_weight", "convolution_feedback", "convolution_merge", "convolution_pointwise_forward",
    "convolution_pointwise_input", "convolution_pointwise_weight", "norm_act_conv",
)  # fmt: skip
# The statistics of the input are gathered by the norms' own kernels.
NORM_KERNELS = (
    "rows_forward", "rows_backward", "strips_forward", "strips_backward", "norm_merge", "norm_plan", "norm_plan_rows",
)  # fmt: skip
# By their names as arguments of the op, and as the tables have them.
PARAMETERS = {
    "norm_weight": "weight", "norm_bias": "bias", "weight": "convolution_weight", "bias": "convolution_bias",
}  # fmt: skip
GRADIENTS = ("input", *PARAMETERS)


def runner(variant: str) -> Runner:
    """The convolutions' kernels and the driver of this folder as a program that runs cases."""
    kernels = [CSRC / "cuda" / f"{name}.cu" for name in (*KERNELS, *NORM_KERNELS)]
    return build([*kernels, HERE / "convolution" / "norm_act_conv.cpp"], variant)


@dataclass(frozen=True)
class Call:
    """How a problem is run: on which machine, which gradients are asked for, and how far tensors are from 16 bytes.

    ``known`` (2, C), float64: the input's statistics, which are then not computed.
    """

    machine: Machine = field(default_factory=Machine)
    wanted: Sequence[str] = GRADIENTS
    offset: int = 0
    collect: bool = True
    known: Tensor | None = None


def pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else value


def sizes_of(case: NormActConvCase) -> dict[str, int | float]:
    sizes: dict[str, int | float] = dict(
        zip(("samples", "channels", "height", "width"), case.shape, strict=True),
        groups=case.groups,
    )
    sizes |= zip(("out_channels", "weight_channels", "kernel_height", "kernel_width"), case.kernel, strict=True)
    assert not isinstance(case.padding, str)
    for name, value in (("stride", case.stride), ("padding", case.padding), ("dilation", case.dilation)):
        sizes |= zip((f"{name}_height", f"{name}_width"), pair(value), strict=True)
    return sizes


def groups_of(case: NormActConvCase) -> int:
    """The op's argument of that name."""
    if case.norm in ("batch", "none"):
        return BATCH if case.norm == "batch" else NO_NORM
    return count_groups(case.norm, case.num_groups, case.shape[1])


def make_case(case: NormActConvCase, problem: Problem, call: Call) -> Case:
    """``case`` is the row that the problem was made for."""
    given, groups = problem.tensors, groups_of(case)
    dtype = given["input"].dtype
    arrays: dict[str, Any] = {}
    parameter = DEFAULT_PARAMETERS.get(case.activation, 0.0) if case.activation_param is None else case.activation_param
    scalars = sizes_of(case) | {
        "dtype": DTYPES.index(dtype), "num_groups": groups, "eps": float(case.eps), "parameter": float(parameter),
        "activation": list(ACTIVATIONS).index(case.activation), "activation_first": case.order == "act_norm_conv",
        "constant": groups == BATCH and not case.training, "collect": call.collect,
    }  # fmt: skip

    def add_parameter(name: str, tensor: Tensor | None) -> None:
        arrays[name] = None if tensor is None else read_only(tensor.contiguous())
        scalars[f"{name}.dtype"] = 0 if tensor is None else DTYPES.index(tensor.dtype)

    running = ("running_mean", "running_var") if scalars["constant"] else (None, None)
    means = call.known if call.known is not None else [given[name] if name else None for name in running]
    for name, tensor in zip(("mean", "variance"), means, strict=True):
        add_parameter(name, tensor)
    for name, key in PARAMETERS.items():
        add_parameter(name, given.get(key))
        wanted = key in given and name in call.wanted
        arrays[f"grad_{name}"] = Output((given[key].numel(),), STORED[given[key].dtype]) if wanted else None
    for name, tensor in (("input", given["input"]), ("grad_output", problem.grad_output)):
        dense = read_only(rows_of(tensor))
        assert dense is not None
        arrays[name] = Input(dense.array, call.offset)
    arrays["output"] = Output((problem.grad_output.numel(),), STORED[dtype])
    arrays["grad_input"] = Output((given["input"].numel(),), STORED[dtype]) if "input" in call.wanted else None
    own = {BATCH: 2 * case.shape[1], NO_NORM: 0}.get(groups, 2 * case.shape[0] * groups)
    arrays["statistics"] = Output((own + 2 * case.kernel[0] * call.collect,), np.float64)
    return Case("norm_act_conv", arrays, scalars, call.machine)


def rows_of(tensor: Tensor) -> Tensor:
    """The values in the order of a dense channels-last tensor."""
    return tensor.detach().permute(0, 2, 3, 1).contiguous().flatten()


def from_rows(array: Any, like: Tensor) -> Tensor:
    samples, channels, height, width = like.shape
    dense = torch.empty((samples, height, width, channels), dtype=like.dtype)
    return as_tensor(array, dense).permute(0, 3, 1, 2)


def results_of(result: Result, problem: Problem) -> Tensors:
    """Output and gradients by the names of ``tests.support.problems.solve``; raises if the run failed."""
    result.check()
    given, arrays = problem.tensors, result.arrays
    assert (result.reports["height"], result.reports["width"]) == tuple(problem.grad_output.shape[2:])
    results = {"output": from_rows(arrays["output"], problem.grad_output)}
    if "grad_input" in arrays:
        results["gradient of input"] = from_rows(arrays["grad_input"], given["input"])
    for name, key in PARAMETERS.items():
        if f"grad_{name}" in arrays:
            like = torch.empty(given[key].shape, dtype=given[key].dtype)
            results[f"gradient of {key}"] = as_tensor(arrays[f"grad_{name}"], like)
    return results
