"""A convolution of a normalised, activated tensor: what lies between two convolutions, and the second of them.

In this order (pre-activation) residual networks have them since He et al. 2016, arXiv:1603.05027, section 3; it is also
where a chain of conv-norm-act blocks can be cut so that the activation need never be kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdl.reference.batch_norm import batch_norm, batch_norm_with_statistics
from fastdl.reference.conv_norm_act import CONVOLUTIONS, count_groups, without_norm
from fastdl.reference.group_norm import group_norm, group_norm_with_statistics
from fastdl.reference.normalize import accumulation_dtype, moments

BATCH = 0
NO_NORM = -1


def norm_act_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    norm: str = "batch",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    num_groups: int | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    activation_param: float | None = None,
    order: str = "norm_act_conv",
) -> Tensor:
    """conv(act(norm(x))), or conv(norm(act(x))) for ``order="act_norm_conv"``."""
    rest: dict[str, Any] = {"activation": activation, "activation_param": activation_param}
    rest["order"] = order.removesuffix("_conv")
    if norm == "none":
        x = without_norm(input, activation, activation_param, rest["order"], None)
    elif norm == "batch":
        x = batch_norm(input, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps, **rest)
    else:
        x = group_norm(input, count_groups(norm, num_groups, input.shape[1]), norm_weight, norm_bias, eps, **rest)
    return CONVOLUTIONS[weight.ndim](x, weight, bias, stride, padding, dilation, groups)


def norm_act_conv_with_statistics(
    input: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    known: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
    parameter: float,
    activation_first: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    collect: bool,
) -> tuple[Tensor, Tensor]:
    """`norm_act_conv`, and in one float64 vector what a kernel saves and, with ``collect``, the output's statistics.

    ``num_groups`` is `BATCH` or `NO_NORM` where there are no groups. The vector holds what `batch_norm` or
    `group_norm` saves, flat (nothing without a norm), then with ``collect`` each output channel's mean and biased
    variance. ``known`` are the input's batch statistics from the call that made it: a kernel need not compute them
    then; the definition does.
    """
    order = "act_norm" if activation_first else "norm_act"
    rest: dict[str, Any] = {"activation": activation, "activation_param": parameter, "order": order, "residual": None}
    if num_groups == NO_NORM:
        x, statistics = without_norm(input, activation, parameter, order, None), input.new_empty(0, dtype=torch.float64)
    elif num_groups == BATCH:
        training = running_mean is None
        x, statistics = batch_norm_with_statistics(
            input, running_mean, running_var, norm_weight, norm_bias, training, eps, **rest
        )
    else:
        x, statistics = group_norm_with_statistics(input, num_groups, norm_weight, norm_bias, eps, **rest)
    output = CONVOLUTIONS[weight.ndim](x, weight, bias, stride, padding, dilation, groups)
    statistics = statistics.flatten()
    if collect:
        statistics = torch.cat([statistics, channel_moments(output)])
    return output, statistics


def channel_moments(output: Tensor) -> Tensor:
    """Each channel's mean, then each channel's biased variance, float64 (2 C)."""
    detached = output.detach()
    mean, variance, _ = moments(detached.to(accumulation_dtype(output.dtype)), [0, *range(2, output.ndim)])
    return torch.cat([mean.flatten(), variance.double().flatten()])
