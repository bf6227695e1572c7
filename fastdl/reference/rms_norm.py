"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), after a residual if there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdl.reference.layer_norm import scaled
from fastdl.reference.normalize import accumulation_dtype


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """weight s / sqrt(mean(s^2) + eps), the mean over the last dimensions of s (eq. 4).

    s is the input, or input + residual, which is then returned as well. ``eps=None`` is the epsilon
    of the dtype that is computed in, float32 for half precision. s is rounded before its mean square is taken.
    """
    dimensions = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    eps = torch.finfo(accumulation_dtype(input.dtype)).eps if eps is None else eps
    output, sum, _ = rms_norm_with_statistics(input, residual, weight, dimensions, eps)
    return output if residual is None else (output, sum)


def rms_norm_with_statistics(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, dimensions: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the sum, and (rows,): 1 / sqrt(mean(s^2) + eps) of each row, which is what a kernel saves."""
    sum = input if residual is None else input + residual
    x = sum.to(accumulation_dtype(sum.dtype))
    dims = list(range(x.ndim - dimensions, x.ndim))
    root = torch.sqrt(x.square().mean(dims, keepdim=True, dtype=torch.float64).to(x.dtype) + eps)
    return scaled(x / root, weight).to(input.dtype), sum, root.flatten().reciprocal().detach()
