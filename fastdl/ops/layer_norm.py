"""Layer normalisation, with a residual added before it, in one op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdl.ops.arguments import check_eps, check_row_parameter, check_rows
from fastdl.ops.layout import contiguous_gradient, contiguous_output, rows_layout
from fastdl.ops.operator import FusedOperator
from fastdl.reference.layer_norm import layer_norm_with_statistics
from fastdl.reference.normalize import accumulation_dtype


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
) -> Any:
    r"""Layer normalisation: ``weight * (s - mean) / sqrt(var + eps) + bias``, where ``s = input + residual``.

    Mean and biased variance are taken over the trailing dimensions (Ba et al. 2016, "Layer Normalization",
    arXiv:1607.06450, eqs. 3 and 4), in float32 or wider. Backward keeps s and two numbers a row. A pre-norm
    transformer adds and normalises in turns: with ``residual`` both are one pass over memory, and s, which the next
    block adds to, is returned as well.

    Args:
        input: (\*, \*normalized_shape), float32, float16, bfloat16 or float64, any strides.
        normalized_shape: the trailing dimensions, or the last one.
        weight, bias: of ``normalized_shape`` or None, of any of these dtypes (float32 parameters serve half-precision
            input).
        eps: added to the variance, at least 0.
        residual: a tensor of the input's shape. Where dtypes differ both are computed in the wider one, as torch adds.

    Returns:
        A contiguous tensor of the input's shape; with ``residual``, that and the sum.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        BackendError: a backend asked for by name cannot serve this call.
    """
    op = "layer_norm"
    dimensions = check_rows(op, input, normalized_shape, residual)
    check_row_parameter(op, "weight", weight, input, dimensions)
    check_row_parameter(op, "bias", bias, input, dimensions)
    check_eps(op, eps)
    if residual is not None and residual.dtype != input.dtype:
        wider = torch.promote_types(input.dtype, residual.dtype)
        input, residual = input.to(wider), residual.to(wider)
    return LAYER_NORM((input, residual, weight, bias), (dimensions, float(eps)))


def _empty_statistics(input: Tensor, residual: Any, weight: Any, bias: Any, dimensions: int, eps: float) -> Tensor:
    rows = math.prod(input.shape[: input.ndim - dimensions])
    return torch.empty(2, rows, dtype=accumulation_dtype(input.dtype), device=input.device)


LAYER_NORM = FusedOperator(
    "layer_norm",
    tensors="Tensor input, Tensor? residual, Tensor? weight, Tensor? bias",
    statics="int dimensions, float eps",
    differentiable=4,
    reference=layer_norm_with_statistics,
    empty_statistics=_empty_statistics,
    output_like=contiguous_output,
    gradient_like=contiguous_gradient,
    adds_residual=True,
    layout_of=rows_layout,
)
