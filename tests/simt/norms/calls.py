"""A problem of the parity tables as a call of the CUDA norms on the host, and its results as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdl.ops.layout import has_channels_last, output_like
from fastdl.reference.activations import ACTIVATIONS, DEFAULT_PARAMETERS
from tests.simt.harness import CSRC, HERE, Case, InOut, Input, Machine, Output, Result, Runner, build
from tests.support.problems import Problem, Tensors

# In the order of csrc/types.h.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STORED = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: np.uint16, torch.float16: np.float16}
PATHS = ("automatic", "block", "cluster", "split")
GRADIENTS = ("input", "weight", "bias", "residual")
KERNELS = (
    "strips_forward", "strips_backward", "rows_forward", "rows_backward", "norm_merge", "norm_plan", "norm_plan_rows",
    "norm_run", "group_norm", "batch_norm",
)  # fmt: skip


def runner(variant: str) -> Runner:
    """The norms' kernels and the drivers of this folder as a program that runs cases."""
    drivers = [HERE / "norms" / f"{name}.cpp" for name in ("group_norm", "batch_norm", "plans")]
    # The host's compiler does not unroll; the pragmas are for nvcc.
    return build([*(CSRC / "cuda" / f"{name}.cu" for name in KERNELS), *drivers], variant, ["-Wno-unknown-pragmas"])


@dataclass(frozen=True)
class Geometry:
    """Shape and layout of a call, as csrc/tensors.h has them."""

    input: Tensor

    @property
    def positions(self) -> int:
        return math.prod(self.input.shape[2:])

    @property
    def rows(self) -> bool:
        return has_channels_last(self.input) or self.positions == 1

    def in_place(self, tensor: Tensor) -> tuple[int, int, int] | None:
        """The strides of sample, channel and position with which a kernel reads the tensor where it lies, if it can."""
        position, length = 0, 1
        for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
            if size == 1:
                continue
            if length == 1:
                position = stride
            elif stride != position * length:
                return None
            length *= size
        if self.positions == 1:
            position = tensor.stride(0)
        if not (tensor.stride(1) == 1 or tensor.shape[1] == 1 if self.rows else position == 1):
            return None
        return int(tensor.stride(0)), 1 if self.rows else int(tensor.stride(1)), int(position)

    def readable(self, tensor: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """The tensor itself, or a dense copy in the layout of the call, with its strides."""
        strides = self.in_place(tensor)
        if strides is None:
            tensor = output_like(self.input).copy_(tensor)
            strides = self.in_place(tensor)
            assert strides is not None
        return tensor, strides


def span_of(tensor: Tensor) -> NDArray[Any]:
    """All that lies between a tensor's first and last element, as the bytes that NumPy has a type for."""
    last = sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.detach().as_strided((last + 1 if tensor.numel() else 0,), (1,))
    return (flat.view(torch.uint16) if tensor.dtype == torch.bfloat16 else flat).numpy()


def offset_of(tensor: Tensor) -> int:
    """How far the first element is from a multiple of 16 bytes, given that allocations are."""
    return int(tensor.storage_offset()) * tensor.element_size() % 16


def read_only(tensor: Tensor | None) -> Input | None:
    return None if tensor is None else Input(span_of(tensor), offset_of(tensor))


def room_for(like: Tensor) -> Output:
    """Of a result of the same size and dtype, dense."""
    return Output((like.numel(),), STORED[like.dtype])


@dataclass(frozen=True)
class Call:
    """How a problem is run: on which machine, by which path, and which gradients are asked for."""

    path: str = "automatic"
    machine: Machine = field(default_factory=Machine)
    wanted: Sequence[str] = GRADIENTS


def make_case(name: str, case: Any, problem: Problem, call: Call) -> Case:
    """``name`` is the driver's, of group_norm or batch_norm; ``case`` is the row that the problem was made for."""
    given = problem.tensors
    geometry = Geometry(given["input"])
    arrays: dict[str, Any] = {}
    scalars: dict[str, int | float] = {
        "dtype": DTYPES.index(given["input"].dtype),
        "samples": given["input"].shape[0],
        "channels": given["input"].shape[1],
        "positions": geometry.positions,
        "channels_last": geometry.rows,
        "eps": float(case.eps),
        "parameter": float(
            DEFAULT_PARAMETERS.get(case.activation, 0.0) if case.activation_param is None else case.activation_param
        ),
        "activation": list(ACTIVATIONS).index(case.activation),
        "activation_first": case.order == "act_norm",
        "path": PATHS.index(call.path),
    }
    output = output_like(given["input"])
    tensors = {"input": given["input"], "residual": given.get("residual"), "grad_output": problem.grad_output}
    for key, tensor in tensors.items():
        strides = (0, 0, 0)
        if tensor is not None:
            tensor, strides = geometry.readable(tensor)
        arrays[key] = read_only(tensor)
        scalars |= {f"{key}.{axis}": s for axis, s in zip(("sample", "channel", "position"), strides, strict=True)}
    strides = geometry.readable(output)[1]
    scalars |= {f"output.{axis}": s for axis, s in zip(("sample", "channel", "position"), strides, strict=True)}
    for key in ("weight", "bias"):
        tensor = given.get(key)
        arrays[key] = read_only(tensor)
        scalars |= {f"{key}.dtype": 0 if tensor is None else DTYPES.index(tensor.dtype)}
        scalars |= {f"{key}.stride": 0 if tensor is None else tensor.stride(0)}
    arrays["output"] = room_for(output)
    if name == "group_norm":
        scalars["groups"] = case.num_groups
        arrays["statistics"] = Output((2, given["input"].shape[0], case.num_groups), np.float64)
    else:
        arrays["statistics"] = Output((2, given["input"].shape[1]), np.float64)
        scalars |= {"given": not case.training, "momentum": float(case.momentum)}
        for key in ("running_mean", "running_var"):
            tensor = given.get(key)
            arrays[key] = None if tensor is None else InOut(span_of(tensor).copy(), offset_of(tensor))
            scalars |= {f"{key}.dtype": 0 if tensor is None else DTYPES.index(tensor.dtype)}
            scalars |= {f"{key}.stride": 0 if tensor is None else tensor.stride(0)}
    for key in GRADIENTS:
        like = given.get(key)
        arrays[f"grad_{key}"] = None if like is None or key not in call.wanted else room_for(like)
    return Case(name, arrays, scalars, call.machine)


def results_of(result: Result, problem: Problem) -> Tensors:
    """Output, gradients and updates by the names of ``tests.support.problems.solve``; raises if the run failed."""
    result.check()
    given = problem.tensors
    output = output_like(given["input"])
    results = {"output": as_tensor(result.arrays["output"], output)}
    for key in GRADIENTS:
        if f"grad_{key}" in result.arrays:
            like = given[key] if key in ("weight", "bias") else output
            results[f"gradient of {key}"] = as_tensor(result.arrays[f"grad_{key}"], like, given[key].dtype)
    for key in ("running_mean", "running_var"):
        if key in result.arrays:
            results[key] = as_tensor(result.arrays[key], given[key])
    return results


def as_tensor(array: NDArray[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The flat array as a tensor that lies in memory as ``like`` does."""
    flat = torch.from_numpy(array)
    if (dtype or like.dtype) == torch.bfloat16:
        flat = flat.view(torch.bfloat16)
    return flat.as_strided(like.shape, [1] if like.ndim == 1 else like.stride())
