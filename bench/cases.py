"""What is measured: the cases of an op, and the functions that are compared on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .counting import Work
from .peers import Peer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# Attention's are of (N, H, L, E): three tensors of their own, or the slices of one projection, heads inside of lengths.
ATTENTION_LAYOUTS = ("separate", "packed")
LAYOUT_LABELS = {"nchw": "NCHW", "channels_last": "NHWC", "separate": "NHLE", "packed": "NLHE", "rows": "rows"}

Function = Callable[..., Any]
"""``function(input, *parameters)`` -> the output, or a tuple of outputs; the parameters are `Benchmark.parameters`'."""


@dataclass(frozen=True)
class Shape:
    """One (N, C, H, W) and where it comes from.

    ``quick`` puts it into the short selection, ``extra`` leaves it to ``--shapes full``.
    """

    size: tuple[int, int, int, int]
    network: str
    num_groups: int | None = None
    quick: bool = False
    dtypes: tuple[str, ...] = ("float32",)
    extra: bool = False


@dataclass(frozen=True)
class Case:
    """One row of the comparison: a shape in one memory layout and one dtype: (N, C, H, W), attention's (N, H, L, E), or
    rows of any number of dimensions.

    ``variant`` is what else is told of a case, such as ``causal``. ``extra`` cases are measured with ``--shapes full``
    alone.
    """

    size: tuple[int, ...]
    layout: str
    dtype: str
    activation: str
    network: str
    num_groups: int | None = None
    quick: bool = False
    variant: str = ""
    extra: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.size)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one activation tensor: the input, the output or either's gradient."""
        return self.elements * DTYPES[self.dtype].itemsize

    @property
    def label(self) -> str:
        """``4x320x64x64/32``: the size, behind the stroke the number of groups, and the variant."""
        groups = "" if self.num_groups is None else f"/{self.num_groups}"
        return "x".join(map(str, self.size)) + groups + (f" {self.variant}" if self.variant else "")

    @property
    def key(self) -> str:
        return f"{self.label} {self.layout} {self.dtype}"


def in_memory_format(case: Case, values: Tensor) -> Tensor:
    """Images in the case's layout."""
    return values.contiguous(memory_format=LAYOUTS[case.layout])


@dataclass(frozen=True)
class Benchmark:
    """One op's benchmark.

    Attributes:
        name: the op's name on every floor.
        title: what is compared, for people.
        cases: every case, in the order in which they are measured.
        parameters: ``parameters(case, device)`` -> the tensors that follow the input; leaves if they have a gradient.
        ours, eager, truth: ``(case) -> function``; ``truth`` is the definition, which is given float64 tensors.
        peers: other implementations of the same, each used only where it is there and right.
        forward_work, backward_work: the least that one pass must move and compute.
        gpu_cases: the cases on a GPU, the most telling first, since there the time is limited.
        arrange: ``(case, values)`` -> the input or the output's gradient in the case's memory layout.
        overhead_size: the small shape at which the cost of the call itself is told.
        parts: functions by name that do a part of the work, such as the convolution alone: timed with the contenders,
            so that what each adds to it can be told.
        only_forward: whether a case has no backward pass to be timed, as in inference.
        op: the op whose kernels serve it, where that is not of the benchmark's name.
        judge: ``judge(benchmark, case, operands)`` in place of `correctness.Judge`, for answers that are random.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    parameters: Callable[[Case, torch.device], tuple[Tensor, ...]]
    ours: Callable[[Case], Function]
    eager: Callable[[Case], Function]
    truth: Callable[[Case], Function]
    peers: tuple[Peer, ...]
    forward_work: Callable[[Case], Work]
    backward_work: Callable[[Case], Work]
    overhead_size: tuple[int, ...] = (2, 64, 8, 8)
    gpu_cases: tuple[Case, ...] = ()
    arrange: Callable[[Case, Tensor], Tensor] = in_memory_format
    parts: Mapping[str, Callable[[Case], Function]] = field(default_factory=dict)
    only_forward: Callable[[Case], bool] = lambda case: False
    op: str = ""
    judge: Callable[..., Any] | None = None

    @property
    def serving_op(self) -> str:
        return self.op or self.name

    def cases_on(self, device_type: str) -> tuple[Case, ...]:
        """The cases that are measured on a kind of device."""
        return self.gpu_cases if device_type == "cuda" and self.gpu_cases else self.cases


def expand(shapes: Sequence[Shape], activation: str) -> tuple[Case, ...]:
    """Every shape in both layouts, float32 first, then the other dtypes that the shape names."""
    return tuple(
        Case(
            shape.size,
            layout,
            dtype,
            activation,
            shape.network,
            shape.num_groups,
            shape.quick and dtype == "float32",
            extra=shape.extra,
        )
        for dtype in DTYPES
        for shape in shapes
        if dtype in shape.dtypes
        for layout in LAYOUTS
    )


def expand_in_turns(shapes: Sequence[Shape], activation: str) -> tuple[Case, ...]:
    """Every shape in both layouts and all its dtypes, in two rounds over the shapes.

    A run that ends early has then seen every shape: in the first round half precision in channels_last and float32 in
    NCHW, as they are used, in the second the others.
    """
    usual = {("bfloat16", "channels_last"), ("float32", "nchw")}
    by_shape = [
        (shape, dtype, layout) for shape in shapes for dtype in DTYPES if dtype in shape.dtypes for layout in LAYOUTS
    ]
    rounds = [row for row in by_shape if row[1:] in usual] + [row for row in by_shape if row[1:] not in usual]
    return tuple(
        Case(shape.size, layout, dtype, activation, shape.network, shape.num_groups, shape.quick, extra=shape.extra)
        for shape, dtype, layout in rounds
    )


def select(
    cases: Sequence[Case], *, shapes: str = "full", layout: str = "both", dtype: str = "all"
) -> tuple[Case, ...]:
    """The cases that the options leave; raises ValueError if they leave none.

    ``shapes``: ``full`` for every case, ``default`` for all but the `Case.extra` ones, ``quick`` for the quick ones.
    """
    listed = [case for case in cases if shapes == "full" or (case.quick if shapes == "quick" else not case.extra)]
    chosen = tuple(case for case in listed if layout in ("both", case.layout) and dtype in ("all", case.dtype))
    if not chosen:
        dtypes = ", ".join(sorted({case.dtype for case in listed}))
        raise ValueError(
            f"no case has shapes={shapes!r}, layout={layout!r} and dtype={dtype!r}; dtypes there: {dtypes}"
        )
    return chosen
