"""A problem of the parity tables as a call of the CUDA row norms on the host, and its results as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.simt.harness import CSRC, HERE, Case, Machine, Output, Result, Runner, build
from tests.simt.norms.calls import DTYPES, STORED, as_tensor, read_only
from tests.support.problems import Problem, Tensors
from tests.support.row_norms import RowNormCase

PATHS = ("warp", "block", "streamed")
GRADIENTS = ("input", "weight", "bias")
KERNELS = ("layer_norm", "rms_norm", "row_norm_plan", "norm_merge")


def runner(variant: str) -> Runner:
    """The row norms' kernels and the driver of this folder as a program that runs cases."""
    kernels = [CSRC / "cuda" / f"{name}.cu" for name in KERNELS]
    return build([*kernels, HERE / "row_norms" / "row_norms.cpp"], variant)


class Rows:
    """A call's tensors as rows, as RowGeometry of csrc/row_norm_tensors.h has them."""

    def __init__(self, tensors: Sequence[Tensor | None], dimensions: int) -> None:
        given = [tensor for tensor in tensors if tensor is not None]
        self.leading = given[0].ndim - dimensions
        breaks = [self.break_of(tensor) for tensor in given]
        self.split = next((at for at in breaks if at), 0)
        self.inner = math.prod(given[0].shape[self.split : self.leading])

    def break_of(self, tensor: Tensor) -> int | None:
        """Where the leading dimensions' inner rows begin, 0 for one run of rows, None for what has neither."""
        expected = 1
        for i in reversed(range(self.leading, tensor.ndim)):
            size, stride = tensor.shape[i], tensor.stride(i)
            if size != 1 and stride != expected:
                return None
            expected *= size
        at, length, first = 0, 1, True
        for i in reversed(range(self.leading)):
            size, stride = tensor.shape[i], tensor.stride(i)
            if size == 1:
                continue
            if not first and stride != length:
                if at:
                    return None
                at = i + 1
            first, length = False, stride * size
        return at

    def readable(self, tensor: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tensor itself, or a contiguous copy, with its strides of outer and inner rows."""
        at = self.break_of(tensor)
        if at is None or at not in (0, self.split):
            tensor = tensor.contiguous()
        return tensor, (self.last_stride(tensor, 0, self.split), self.last_stride(tensor, self.split, self.leading))

    @staticmethod
    def last_stride(tensor: Tensor, begin: int, end: int) -> int:
        strides = [tensor.stride(i) for i in range(begin, end) if tensor.shape[i] != 1]
        return strides[-1] if strides else 0


@dataclass(frozen=True)
class Call:
    """How a problem is run: on which machine, and which gradients are asked for."""

    machine: Machine = field(default_factory=Machine)
    wanted: Sequence[str] = GRADIENTS


def make_case(name: str, case: RowNormCase, problem: Problem, call: Call) -> Case:
    """``name`` is layer_norm or rms_norm; ``case`` is the row that the problem was made for."""
    given = problem.tensors
    input, residual = given["input"], given.get("residual")
    arrays: dict[str, Any] = {}
    scalars: dict[str, int | float] = {
        "centered": name == "layer_norm",
        "dtype": DTYPES.index(input.dtype),
        "rows": math.prod(input.shape[: input.ndim - case.dimensions]),
        "width": math.prod(case.normalized_shape),
        "eps": torch.finfo(input.dtype).eps if case.eps is None else float(case.eps),
    }

    def add(rows: Rows, name: str, tensor: Tensor | None) -> None:
        strides = (0, 0)
        if tensor is not None:
            tensor, strides = rows.readable(tensor)
        arrays[name] = read_only(tensor)
        scalars.update({f"{name}.outer": strides[0], f"{name}.inner": strides[1]})

    rows = Rows((input, residual), case.dimensions)
    scalars["inner"] = rows.inner
    add(rows, "input", input)
    add(rows, "residual", residual)
    for parameter in ("weight", "bias"):
        tensor = given.get(parameter)
        stored = None if tensor is None else stored_parameter(tensor, input.dtype)
        arrays[parameter] = read_only(stored)
        scalars[f"{parameter}.dtype"] = 0 if stored is None else DTYPES.index(stored.dtype)
        wanted = tensor if parameter in call.wanted else None
        arrays[f"grad_{parameter}"] = None if wanted is None else Output((wanted.numel(),), STORED[wanted.dtype])
        scalars[f"grad_{parameter}.dtype"] = 0 if tensor is None else DTYPES.index(tensor.dtype)
    result = Output((input.numel(),), STORED[input.dtype])
    arrays |= {"output": result, "sum": None if residual is None else result}
    arrays["statistics"] = Output((2 if name == "layer_norm" else 1, int(scalars["rows"])), np.float32)

    grad_output, grad_sum = given_gradients(problem)
    # The input's own break decides first, so that backward sees the rows that forward saw; the sum is contiguous.
    normalized = input if residual is None else input.contiguous()
    rows = Rows((normalized, grad_output, grad_sum), case.dimensions)
    scalars["backward.inner"] = rows.inner
    scalars["normalized.outer"], scalars["normalized.inner"] = rows.readable(normalized)[1]
    add(rows, "grad_output", grad_output)
    add(rows, "grad_sum", grad_sum)
    arrays["grad_input"] = result if "input" in call.wanted else None
    return Case("row_norm", arrays, scalars, call.machine)


def stored_parameter(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """As the kernels take it: contiguous, in float32 or in the dtype of the activations."""
    return parameter.contiguous() if parameter.dtype in (torch.float32, dtype) else parameter.float().contiguous()


def given_gradients(problem: Problem) -> tuple[Tensor, Tensor | None]:
    """Of output and sum, which the tables stack where there is a residual."""
    if "residual" not in problem.tensors:
        return problem.grad_output, None
    return problem.grad_output[0], problem.grad_output[1]


def results_of(result: Result, problem: Problem) -> Tensors:
    """Output and gradients by the names of ``tests.support.problems.solve``; raises if the run failed."""
    result.check()
    given, arrays = problem.tensors, result.arrays
    activation = torch.empty(given["input"].shape, dtype=given["input"].dtype)
    results = {"output": as_tensor(arrays["output"], activation)}
    if "residual" in given:
        results["output"] = torch.stack([results["output"], as_tensor(arrays["sum"], activation)])
    if "grad_input" in arrays:
        results["gradient of input"] = as_tensor(arrays["grad_input"], activation)
        if "residual" in given:
            results["gradient of residual"] = results["gradient of input"]
    for name in ("weight", "bias"):
        if f"grad_{name}" in arrays:
            like = torch.empty(given[name].shape, dtype=given[name].dtype)
            results[f"gradient of {name}"] = as_tensor(arrays[f"grad_{name}"], like)
    return results
