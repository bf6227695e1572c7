"""Layer normalisation (Ba et al. 2016, arXiv:1607.06450), after a residual if there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdl.reference.normalize import accumulation_dtype, moments


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """weight (s - mu) / sqrt(var + eps) + bias, with mu and var over the last dimensions of s (eqs. 3 and 4).

    s is the input, or input + residual, which is then returned as well. Half precision is computed in float32; s is
    rounded before its moments are taken.
    """
    dimensions = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    output, sum, _ = layer_norm_with_statistics(input, residual, weight, bias, dimensions, eps)
    return output if residual is None else (output, sum)


def layer_norm_with_statistics(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, dimensions: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the sum, and (2, rows): each row's mean and 1 / sqrt(var + eps), which is what a kernel saves."""
    sum = input if residual is None else input + residual
    x = sum.to(accumulation_dtype(sum.dtype))
    mean, variance, centred = moments(x, list(range(x.ndim - dimensions, x.ndim)))
    deviation = torch.sqrt(variance + eps)
    output = scaled(centred / deviation, weight)
    if bias is not None:
        output = output + bias.to(output.dtype)
    statistics = torch.stack([mean.to(x.dtype).flatten(), deviation.flatten().reciprocal()])
    return output.to(input.dtype), sum, statistics.detach()


def scaled(normalized: Tensor, weight: Tensor | None) -> Tensor:
    """``weight * normalized``, or as it is where there is no weight."""
    return normalized if weight is None else normalized * weight.to(normalized.dtype)
