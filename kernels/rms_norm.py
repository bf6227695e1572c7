"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467) in Triton, a residual added before it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastdl.kernels import row_norm
from fastdl.kernels.row_norm_shipped import variants
from fastdl.kernels.shipped import Shipped


def forward(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, dimensions: int, eps: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """``weight * s / sqrt(mean(s^2) + eps)`` for s = input + residual, s itself, and the statistics.

    Tensors are as `fastdl.kernels.layer_norm` takes them. The statistics are 1 / sqrt(mean(s^2) + eps) of each row,
    float32 (rows,).
    """
    return row_norm.forward(input, residual, weight, None, dimensions, eps, False)


def backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    input: Tensor,
    residual: None,
    weight: Tensor | None,
    statistics: Tensor,
    dimensions: int,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, None, Tensor | None]:
    """The gradients of s and weight; None for what is absent or not in ``needs``.

    ``input`` is s, whose gradient is the residual's as well. ``grad_sum``, where given, is added to it.
    """
    wanted = (needs[0], needs[2], False)
    grad_x, grad_weight, _ = row_norm.backward(
        grad_output, grad_sum, input, weight, None, statistics, dimensions, False, wanted
    )
    return grad_x, None, grad_weight


def shipped() -> tuple[Shipped, ...]:
    """What the heuristics choose for the shapes of `fastdl.kernels.row_norm_shipped`."""
    return variants("rms_norm", forward, backward)
