"""Convolution, normalisation and activation in either order, as three lines of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.reference.activations import activate
from fastdl.reference.batch_norm import batch_norm
from fastdl.reference.group_norm import group_norm

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def conv_norm_act(
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
    order: str = "conv_norm_act",
    residual: Tensor | None = None,
) -> Tensor:
    """act(norm(conv(x)) + residual), or norm(act(conv(x)) + residual) for ``order="conv_act_norm"``."""
    x = CONVOLUTIONS[weight.ndim](input, weight, bias, stride, padding, dilation, groups)
    rest: dict[str, Any] = {
        "activation": activation,
        "activation_param": activation_param,
        "order": order.removeprefix("conv_"),
        "residual": residual,
    }
    if norm == "none":
        return without_norm(x, activation, activation_param, order.removeprefix("conv_"), residual)
    if norm == "batch" or (norm == "instance" and running_mean is not None and not training):
        return batch_norm(
            x, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps, **rest
        )  # fmt: skip
    if norm == "instance" and running_mean is not None and running_var is not None:
        return tracked_instance_norm(x, running_mean, running_var, norm_weight, norm_bias, momentum, eps, **rest)
    return group_norm(x, count_groups(norm, num_groups, x.shape[1]), norm_weight, norm_bias, eps, **rest)


def count_groups(norm: str, num_groups: int | None, channels: int) -> int:
    """Layer and instance norm as the two ends of group norm (Wu & He 2018, section 3.1): all channels, or one each."""
    if norm == "group":
        assert num_groups is not None
        return num_groups
    return 1 if norm == "layer" else channels


def without_norm(x: Tensor, activation: str, parameter: float | None, order: str, residual: Tensor | None) -> Tensor:
    """The two orders with no normalisation between: act(x + residual), or act(x) + residual."""
    if order == "norm_act":
        return activate(x if residual is None else x + residual, activation, parameter)
    x = activate(x, activation, parameter)
    return x if residual is None else x + residual


def tracked_instance_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    normalize: Callable[..., Tensor] = batch_norm,
    **rest: Any,
) -> Tensor:
    """Instance norm that tracks statistics: batch norm over N*C channels of one sample, averaged over N.

    This is torch's definition of ``instance_norm(use_input_stats=True)`` with running statistics.
    """
    samples, channels = x.shape[:2]
    mean, variance = (running.repeat(samples) for running in (running_mean, running_var))
    affine = [None if p is None else p.repeat(samples) for p in (weight, bias)]
    residual = rest.pop("residual")
    flat = (1, samples * channels, *x.shape[2:])
    residual = None if residual is None else residual.reshape(flat)
    output = normalize(
        x.reshape(flat), mean, variance, *affine, True, momentum, eps, residual=residual, **rest
    ).view(x.shape)  # fmt: skip
    with torch.no_grad():
        running_mean.copy_(mean.view(samples, channels).mean(0))
        running_var.copy_(variance.view(samples, channels).mean(0))
    return output
