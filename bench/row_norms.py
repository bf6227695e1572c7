"""What the benchmarks of layer_norm and rms_norm share: shapes of transformers, and the least that must be moved.

A case with a residual gives two outputs, the normalised sum and the sum itself, both with a gradient, as in a pre-norm
transformer; without one it gives the norm alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import DTYPES, Case
from .counting import Work

RESIDUAL, PLAIN = "residual", ""
HALF = ("float32", "bfloat16")
LAYOUT = "rows"
STATISTIC_BYTES = 4
# Operations an element by the number of parameters, as `counting` counts them without an activation: LayerNorm's have
# a mean and a bias, RMSNorm's (the square and its sum, the scaling, the weight) have neither.
FORWARD_OPERATIONS = {2: 7, 1: 4}
BACKWARD_OPERATIONS = {2: 13, 1: 9}


@dataclass(frozen=True)
class Shape:
    """One (*, width) and where it comes from.

    ``quick`` puts it into the short selection, ``extra`` leaves it to ``--shapes full``.
    """

    size: tuple[int, ...]
    network: str
    variants: tuple[str, ...] = (RESIDUAL,)
    quick: bool = False
    dtypes: tuple[str, ...] = HALF
    extra: bool = False


def expand(shapes: tuple[Shape, ...], dtypes: tuple[str, ...] = tuple(DTYPES)) -> tuple[Case, ...]:
    """Every shape in its variants and in those of its dtypes that are named, dtype by dtype in that order."""
    return tuple(
        Case(s.size, LAYOUT, dtype, "identity", s.network, None, s.quick and dtype == "float32", variant, s.extra)
        for dtype in dtypes
        for s in shapes
        if dtype in s.dtypes
        for variant in s.variants
    )


def arrange(case: Case, values: Tensor) -> Tensor:
    return values.contiguous()


def draw_residual(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """The residual where the case has one, a leaf; else nothing."""
    if case.variant != RESIDUAL:
        return ()
    generator = torch.Generator(device=device).manual_seed(2)
    return (torch.randn(case.size, generator=generator, device=device).to(DTYPES[case.dtype]).requires_grad_(),)


def draw_parameter(case: Case, device: torch.device, mean: float, seed: int) -> Tensor:
    """A weight or bias, in the input's dtype as in a network that was cast as a whole."""
    generator = torch.Generator(device=device).manual_seed(seed)
    values = mean + 0.1 * torch.randn(case.size[-1], generator=generator, device=device)
    return values.to(DTYPES[case.dtype]).requires_grad_()


def forward_work(case: Case, parameters: int, statistics: int) -> Work:
    """Read the input, and the residual if any; write the output, and then the sum; statistics are float32 a row."""
    tensors = 4 if case.variant == RESIDUAL else 2
    return Work(
        tensors * case.tensor_bytes + _small_bytes(case, parameters, statistics),
        vector_operations=_operations(case, FORWARD_OPERATIONS[parameters]),
    )


def backward_work(case: Case, parameters: int, statistics: int) -> Work:
    """Read what was normalised and the gradients of all outputs; write the input's, which is the residual's too."""
    tensors = 4 if case.variant == RESIDUAL else 3
    return Work(
        tensors * case.tensor_bytes + _small_bytes(case, 2 * parameters, statistics),
        vector_operations=_operations(case, BACKWARD_OPERATIONS[parameters]),
    )


def _operations(case: Case, an_element: int) -> int:
    """Of all elements, with the addition of the residual or of the sum's gradient."""
    return case.elements * (an_element + (case.variant == RESIDUAL))


def _small_bytes(case: Case, parameters: int, statistics: int) -> int:
    width = case.size[-1]
    return parameters * width * DTYPES[case.dtype].itemsize + statistics * STATISTIC_BYTES * (case.elements // width)
