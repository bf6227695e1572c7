"""Group normalisation (Wu & He 2018, arXiv:1803.08494), with its activation, as one reads it in the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdl.reference.normalize import affine, after_norm, before_norm, moments


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str = "identity",
    activation_param: float | None = None,
    order: str = "norm_act",
    residual: Tensor | None = None,
) -> Tensor:
    """act(weight (x - mu) / sqrt(var + eps) + bias), with mu and var over a sample's group of channels (eqs. 1 and 7).

    ``input`` is (N, C, *), ``weight`` and ``bias`` are (C,). Half-precision input is computed in float32 and rounded
    once.
    """
    return group_norm_with_statistics(
        input, num_groups, weight, bias, eps,
        activation=activation, activation_param=activation_param, order=order, residual=residual,
    )[0]  # fmt: skip


def group_norm_with_statistics(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    activation: str,
    activation_param: float | None,
    order: str,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`group_norm`, and each group's mean and biased variance in float64, (2, N, G): what a kernel saves."""
    x = before_norm(input, residual, activation, activation_param, order)
    grouped = x.unflatten(1, (num_groups, -1))  # (N, G, C/G, *): a view for every memory layout
    mean, variance, centred = moments(grouped, list(range(2, grouped.ndim)))
    normalized = (centred / torch.sqrt(variance + eps)).flatten(1, 2)
    output = after_norm(affine(normalized, weight, bias), residual, activation, activation_param, order)
    statistics = torch.stack([mean.flatten(1), variance.double().flatten(1)])
    return output.to(input.dtype), statistics.detach()
