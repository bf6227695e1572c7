"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167), with activation and residual around it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdl.reference.normalize import affine, after_norm, before_norm, moments, per_channel


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "identity",
    activation_param: float | None = None,
    order: str = "norm_act",
    residual: Tensor | None = None,
) -> Tensor:
    """act(weight (x - mu) / sqrt(var + eps) + bias + residual), mu and var by channel (algorithm 1 of the paper).

    ``training`` takes mu and var from the batch and moves the running statistics towards them (the variance unbiased,
    as algorithm 2 has it); otherwise the running statistics are used. ``order="act_norm"`` is norm(act(x) + residual).
    """
    batch = (None, None) if training else (running_mean, running_var)
    output, statistics = batch_norm_with_statistics(
        input, *batch, weight, bias, training, eps,
        activation=activation, activation_param=activation_param, order=order, residual=residual,
    )  # fmt: skip
    if training and input.numel():
        update_running_statistics(running_mean, running_var, statistics, input.numel() // input.shape[1], momentum)
    return output


def batch_norm_with_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    *,
    activation: str,
    activation_param: float | None,
    order: str,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output, and each channel's mean and biased variance in float64, (2, C): what a kernel saves."""
    x = before_norm(input, residual, activation, activation_param, order)
    if training:
        mean, variance, centred = moments(x, [0, *range(2, x.ndim)])
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, variance = running_mean.double(), per_channel(running_var, x)
        centred = x - per_channel(running_mean, x)
    output = affine(centred / torch.sqrt(variance + eps), weight, bias)
    output = after_norm(output, residual, activation, activation_param, order)
    statistics = torch.stack([mean.flatten(), variance.double().flatten()])
    return output.to(input.dtype), statistics.detach()


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor | None, running_var: Tensor | None, statistics: Tensor, count: int, momentum: float
) -> None:
    """running = (1 - momentum) running + momentum batch, in place; ``statistics`` is (2, C), biased."""
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(statistics[0].to(running_mean.dtype), alpha=momentum)
    if running_var is not None:
        unbiased = statistics[1] * (count / (count - 1)) if count > 1 else statistics[1]
        running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
