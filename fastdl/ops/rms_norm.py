"""Root-mean-square normalisation, with a residual added before it, in one op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdl.ops.arguments import check_eps, check_row_parameter, check_rows
from fastdl.ops.layout import contiguous_gradient, contiguous_output, rows_layout
from fastdl.ops.operator import FusedOperator
from fastdl.reference.normalize import accumulation_dtype
from fastdl.reference.rms_norm import rms_norm_with_statistics


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
) -> Any:
    r"""Root-mean-square normalisation: ``weight * s / sqrt(mean(s^2) + eps)``, where ``s = input + residual``.

    The mean is taken over the trailing dimensions (Zhang & Sennrich 2019, "Root Mean Square Layer Normalization",
    arXiv:1910.07467, eq. 4), in float32 or wider. Backward keeps s and a number a row.

    Args:
        input: (\*, \*normalized_shape), float32, float16, bfloat16 or float64, any strides.
        normalized_shape: the trailing dimensions, or the last one.
        weight: of ``normalized_shape`` or None, of any of these dtypes.
        eps: added to the mean square, at least 0; None is the epsilon of the dtype that is computed in, as in torch.
        residual: a tensor of the input's shape. Where dtypes differ both are computed in the wider one, as torch adds.

    Returns:
        A contiguous tensor of the input's shape; with ``residual``, that and the sum.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        BackendError: a backend asked for by name cannot serve this call.
    """
    op = "rms_norm"
    dimensions = check_rows(op, input, normalized_shape, residual)
    check_row_parameter(op, "weight", weight, input, dimensions)
    if eps is not None:
        check_eps(op, eps)
    if residual is not None and residual.dtype != input.dtype:
        wider = torch.promote_types(input.dtype, residual.dtype)
        input, residual = input.to(wider), residual.to(wider)
    eps = torch.finfo(accumulation_dtype(input.dtype)).eps if eps is None else float(eps)
    return RMS_NORM((input, residual, weight), (dimensions, eps))


def _empty_statistics(input: Tensor, residual: Any, weight: Any, dimensions: int, eps: float) -> Tensor:
    rows = math.prod(input.shape[: input.ndim - dimensions])
    return torch.empty(rows, dtype=accumulation_dtype(input.dtype), device=input.device)


RMS_NORM = FusedOperator(
    "rms_norm",
    tensors="Tensor input, Tensor? residual, Tensor? weight",
    statics="int dimensions, float eps",
    differentiable=3,
    reference=rms_norm_with_statistics,
    empty_statistics=_empty_statistics,
    output_like=contiguous_output,
    gradient_like=contiguous_gradient,
    adds_residual=True,
    layout_of=rows_layout,
)
