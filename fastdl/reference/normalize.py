"""What every normalisation shares: moments over some dimensions, and the order of norm, activation and residual."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdl.reference.activations import activate


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all else: statistics are never taken in half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def moments(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and the centred ``x - mean`` over ``dims``, each with those dimensions kept as 1.

    The mean is taken twice: a mean of 1e4 is itself rounded by 5e-4 in float32, and the second pass removes that. Sums
    run in float64, since torch adds up strided float32 values one after another.
    """
    mean = x.mean(dims, keepdim=True, dtype=torch.float64)
    centred = x - mean.to(x.dtype)
    remainder = centred.mean(dims, keepdim=True, dtype=torch.float64).to(x.dtype)
    centred = centred - remainder
    variance = centred.square().mean(dims, keepdim=True, dtype=torch.float64).to(x.dtype)
    return mean.to(x.dtype).double() + remainder, variance, centred


def before_norm(input: Tensor, residual: Tensor | None, activation: str, parameter: float | None, order: str) -> Tensor:
    """The tensor whose moments are taken: ``x``, or ``act(x) + residual`` where the activation comes first."""
    x = input.to(accumulation_dtype(input.dtype))
    if order == "norm_act":
        return x
    x = activate(x, activation, parameter)
    return x if residual is None else x + residual


def after_norm(
    normalized: Tensor, residual: Tensor | None, activation: str, parameter: float | None, order: str
) -> Tensor:
    """What follows the affine map: ``act(y + residual)``, or nothing where the activation came first."""
    if order == "act_norm":
        return normalized
    return activate(normalized if residual is None else normalized + residual, activation, parameter)


def per_channel(parameter: Tensor, like: Tensor) -> Tensor:
    """A parameter of shape (C,) viewed as (1, C, 1, ...), in the dtype of ``like``, to meet (N, C, *)."""
    return parameter.to(like.dtype).view(1, -1, *[1] * (like.ndim - 2))


def affine(normalized: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``weight * normalized + bias`` by channel; either may be absent."""
    if weight is not None:
        normalized = normalized * per_channel(weight, normalized)
    return normalized if bias is None else normalized + per_channel(bias, normalized)
