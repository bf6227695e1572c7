"""Layer normalisation (Ba et al. 2016, arXiv:1607.06450) in Triton, with a residual added before it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastdl.kernels import row_norm
from fastdl.kernels.row_norm_shipped import variants
from fastdl.kernels.shipped import Shipped


def forward(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, dimensions: int, eps: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """``weight * (s - mean) / sqrt(var + eps) + bias`` for s = input + residual, s itself, and the statistics.

    ``input`` is (*, *normalized_shape) in float32, float16 or bfloat16 with any strides, ``residual`` of the same shape
    and dtype, without which s is not returned; weight and bias are of the last ``dimensions`` dimensions and any
    floating dtype. The statistics are each row's mean and 1 / sqrt(var + eps), float32 (2, rows).
    """
    return row_norm.forward(input, residual, weight, bias, dimensions, eps, True)


def backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    input: Tensor,
    residual: None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    dimensions: int,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    """The gradients of s, weight and bias; None for what is absent or not in ``needs``.

    ``input`` is s, whose gradient is the residual's as well. ``grad_sum``, where given, is added to it.
    """
    wanted = (needs[0], needs[2], needs[3])
    grad_x, grad_weight, grad_bias = row_norm.backward(
        grad_output, grad_sum, input, weight, bias, statistics, dimensions, True, wanted
    )
    return grad_x, None, grad_weight, grad_bias


def shipped() -> tuple[Shipped, ...]:
    """What the heuristics choose for the shapes of `fastdl.kernels.row_norm_shipped`."""
    return variants("layer_norm", forward, backward)
