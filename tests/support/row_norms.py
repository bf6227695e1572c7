"""layer_norm and rms_norm as the tests see them: their cases, and torch's composition.

With a residual an op gives two outputs, the normalised and the sum; a solution has them stacked, so that both have a
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl import reference
from fastdl.ops import layer_norm, rms_norm
from tests.support.backends import FLOATING
from tests.support.layouts import LAYOUTS
from tests.support.problems import Case, Operator, Tensors

SINGLE_AND_DOUBLE = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class RowNormCase(Case):
    """``dimensions``: how many trailing ones are normalised over; ``added``: the residual's layout, None for none."""

    dimensions: int = 1
    added: str | None = None
    parameter_layout: str = "contiguous"

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        return self.shape[len(self.shape) - self.dimensions :]


def parameters(names: tuple[str, ...], case: RowNormCase, fill: Callable[..., Tensor], dtype: torch.dtype) -> Tensors:
    tensors: Tensors = {}
    if case.added is not None:
        tensors["residual"] = LAYOUTS[case.added](case.shape, fill)
    for name in names:
        if getattr(case, name):
            to = case.parameter_dtype or dtype
            layout = LAYOUTS[case.parameter_layout]
            tensors[name] = layout(case.normalized_shape, lambda shape, to=to: fill(shape, to=to))  # type: ignore[misc]
    return tensors


def stacked(result: Any) -> Tensor:
    return torch.stack(result) if isinstance(result, tuple) else result


def layer(function: Callable[..., Any], case: RowNormCase, t: Tensors) -> Tensor:
    return stacked(
        function(
            t["input"], case.normalized_shape, t.get("weight"), t.get("bias"), case.eps, residual=t.get("residual")
        )
    )


def layer_by_torch(case: RowNormCase, t: Tensors) -> Tensor:
    sum = t["input"] if case.added is None else t["input"] + t["residual"]
    weight, bias = (None if name not in t else t[name].to(sum.dtype) for name in ("weight", "bias"))
    output = F.layer_norm(sum, case.normalized_shape, weight, bias, case.eps)
    return output if case.added is None else torch.stack([output, sum])


def root_mean_square(function: Callable[..., Any], case: RowNormCase, t: Tensors) -> Tensor:
    return stacked(
        function(t["input"], case.normalized_shape, t.get("weight"), case.eps, residual=t.get("residual"))
    )  # fmt: skip


def root_mean_square_by_torch(case: RowNormCase, t: Tensors) -> Tensor:
    sum = t["input"] if case.added is None else t["input"] + t["residual"]
    weight = t["weight"].to(sum.dtype) if "weight" in t else None
    output = F.rms_norm(sum, case.normalized_shape, weight, case.eps)
    return output if case.added is None else torch.stack([output, sum])


BASIC = (3, 5, 24)

LAYOUT_CASES = [
    RowNormCase(f"{name}_{layout}", (3, 4, 5, 6), dtypes=(torch.float32, FLOATING[1 + i % 3]), **options(layout))
    for i, layout in enumerate(LAYOUTS)
    for name, options in (
        ("input", lambda layout: {"layout": layout}),
        ("gradient", lambda layout: {"grad_layout": layout}),
        ("residual", lambda layout: {"layout": layout, "added": layout}),
    )
]
LAYOUT_CASES += [
    RowNormCase("length_first", (4, 6, 16), layout="channels_outermost", added="contiguous"),
    RowNormCase("length_first_both", (4, 6, 16), layout="channels_outermost", added="channels_outermost"),
    RowNormCase("positions_expanded_over_the_batch", (4, 6, 16), added="expanded_batch"),
    RowNormCase("breaks_in_different_places", (2, 3, 4, 8), layout="sliced_batch", added="sliced_rows"),
    RowNormCase("wide_transposed", (9, 520), layout="reversed_dimensions", added="reversed_dimensions"),
    RowNormCase("wide_unaligned", (9, 520), layout="storage_offset", added="storage_offset"),
    RowNormCase("parameters_sliced", (9, 20), parameter_layout="storage_offset"),
    RowNormCase("parameters_strided", (9, 20), parameter_layout="expanded_everywhere", added="contiguous"),
]

RANK_CASES = [
    RowNormCase("one_dimension", (17,)),
    RowNormCase("one_dimension_with_residual", (33,), added="contiguous"),
    RowNormCase("two_dimensions", (5, 12)),
    RowNormCase("all_of_two", (5, 12), dimensions=2, added="contiguous"),
    RowNormCase("two_of_three", (3, 4, 7), dimensions=2),
    RowNormCase("three_of_four", (2, 3, 5, 7), dimensions=3, added="contiguous"),
    RowNormCase("two_of_four_transposed", (3, 4, 5, 6), dimensions=2, layout="space_transposed"),
    RowNormCase("two_of_four_images_last", (3, 4, 5, 6), dimensions=2, layout="channels_last"),
    RowNormCase("five_dimensions", (2, 1, 3, 2, 9)),
]

WIDTHS = (
    1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 255, 256, 257, 384,
    511, 512, 513, 768, 1000, 1023, 1024, 1025, 2047, 2048, 2050, 3072, 4096, 4099, 8192, 8193,
)  # fmt: skip


def sweep() -> list[RowNormCase]:
    """Widths at which kernels go over to another loop or tile, with rows that fill no block of them."""
    cases = []
    for i, width in enumerate(WIDTHS):
        rows = (7, 1, 33, 2, 130)[i % 5] if width < 300 else (5, 1, 9)[i % 3]
        dtypes = (torch.float32, FLOATING[1 + i % 3])
        floor = 300.0 if width == 1 else 0.0  # one value is its own mean: what is left is the rounding of its terms
        added = (None, "contiguous")[i // 2 % 2]
        name = f"sweep_{rows}x{width}{'_added' if added else ''}"
        cases.append(RowNormCase(name, (rows, width), added=added, dtypes=dtypes, floor=floor))
    return cases


EDGE_CASES = [
    RowNormCase("no_rows", (0, 8)),
    RowNormCase("no_rows_added", (3, 0, 8), added="contiguous"),
    RowNormCase("one_value", (1, 1), floor=300.0),
    RowNormCase("no_weight", BASIC, weight=False, added="contiguous"),
    RowNormCase("no_bias", BASIC, bias=False),
    RowNormCase("no_parameters", BASIC, weight=False, bias=False),
    RowNormCase("no_parameters_added", BASIC, weight=False, bias=False, added="contiguous"),
    RowNormCase("float32_parameters", BASIC, parameter_dtype=torch.float32, dtypes=HALF),
    RowNormCase("float32_parameters_added", BASIC, parameter_dtype=torch.float32, dtypes=HALF, added="contiguous"),
    RowNormCase("half_parameters", BASIC, parameter_dtype=torch.bfloat16, dtypes=(torch.float32, torch.float16)),
    RowNormCase("double_parameters", BASIC, parameter_dtype=torch.float64, dtypes=(torch.float32, torch.bfloat16)),
    RowNormCase("eps_zero", BASIC, eps=0.0),
    RowNormCase("eps_one", BASIC, eps=1.0, added="contiguous"),
]

VALUE_CASES = [
    RowNormCase(
        f"{values}_{width}",
        (6, width),
        values=values,
        dtypes=dtypes,
        added=added,
        bounded=values == "shifted" and added is None,  # the sum itself is rounded
        bias=values != "tiny",
    )
    for values, dtypes in (
        ("shifted", SINGLE_AND_DOUBLE),
        ("shifted_little", HALF),
        ("tiny", SINGLE_AND_DOUBLE),
        ("small", FLOATING),
        ("huge", SINGLE_AND_DOUBLE),
        ("large", FLOATING),
        ("constant", FLOATING),
        ("zero", FLOATING),
        ("outlier", FLOATING),
        ("first_is_outlier", FLOATING),
    )
    for width, added in ((40, None), (130, "contiguous"), (1030, None))
]

NETWORK_CASES = [
    RowNormCase("vit_small", (2, 65, 192), added="contiguous", dtypes=(torch.float32, torch.bfloat16)),
    RowNormCase("vit_base", (1, 197, 768), added="contiguous", dtypes=(torch.float32, torch.bfloat16)),
    RowNormCase("many_narrow_rows", (3000, 32), dtypes=(torch.float32, torch.bfloat16)),
    RowNormCase("many_rows", (4100, 48), added="contiguous", dtypes=(torch.float32,)),
    RowNormCase("vocabulary", (2, 50257), dtypes=(torch.float32, torch.bfloat16)),
    RowNormCase("wide_added", (3, 20001), added="contiguous", dtypes=(torch.float32, torch.bfloat16)),
]

CASES = (*LAYOUT_CASES, *RANK_CASES, *sweep(), *EDGE_CASES, *VALUE_CASES, *NETWORK_CASES)

LAYER_NORM = Operator(
    name="layer_norm",
    cases=CASES,
    parameters=partial(parameters, ("weight", "bias")),
    ours=partial(layer, layer_norm),
    reference=partial(layer, reference.layer_norm),
    torch=layer_by_torch,
    without_activation=lambda case: None,
    differentiable=("input", "residual", "weight", "bias"),
    sums=("gradient of weight", "gradient of bias"),
)
RMS_NORM = Operator(
    name="rms_norm",
    cases=CASES,
    parameters=partial(parameters, ("weight",)),
    ours=partial(root_mean_square, rms_norm),
    reference=partial(root_mean_square, reference.rms_norm),
    torch=root_mean_square_by_torch,
    without_activation=lambda case: None,
    differentiable=("input", "residual", "weight"),
    sums=("gradient of weight",),
)
