"""`torch.nn.InstanceNorm1d`, `InstanceNorm2d` and `InstanceNorm3d` with activation and residual fused."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from fastdl.nn.batch_norm import AroundNorm
from fastdl.nn.group_norm import unless_default
from fastdl.ops.arguments import (
    check_channel_parameter,
    check_eps,
    check_input,
    check_order,
    check_residual,
    resolve_activation,
)
from fastdl.ops.batch_norm import batch_norm
from fastdl.ops.dispatch import Implementation
from fastdl.ops.group_norm import GROUP_NORM


class _InstanceNorm(AroundNorm, torch.nn.modules.instancenorm._InstanceNorm):
    """What the three share: they differ only in the rank of input that torch's classes let through."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str = "identity",
        activation_param: float | None = None,
        order: str = "norm_act",
    ) -> None:
        # torch's annotation is narrower than what its code and ours take.
        average: Any = momentum
        super().__init__(
            num_features, eps, average, affine, track_running_stats, device, dtype, **unless_default(bias)
        )  # fmt: skip
        self._put_around(activation, activation_param, order)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        unbatched = input.ndim == self._get_no_batch_dim()
        self._check_features(input.shape[0 if unbatched else 1], 0 if unbatched else 1)
        if not unbatched:
            return self._normalize(input, residual)
        return self._normalize(input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)).squeeze(0)

    def _normalize(self, input: Tensor, residual: Tensor | None) -> Tensor:
        around = self._around(residual)
        if self.track_running_stats and not self.training:
            return batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps, **around
            )  # fmt: skip
        return normalize_instances(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.momentum or 0.0, self.eps, **around
        )  # fmt: skip

    def _check_features(self, channels: int, dimension: int) -> None:
        """torch lets other channels through where there is no parameter of their number, and warns."""
        if channels == self.num_features:
            return
        expected = f"input's size at dim={dimension} to match num_features ({self.num_features}), but got: {channels}"
        if self.affine:
            raise ValueError(f"expected {expected}.")
        warnings.warn(f"{type(self).__name__}: expected {expected}; it is not used with affine=False", stacklevel=4)


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """`InstanceNorm2d` for input, residual and output of (N, C, L), or (C, L)."""


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """Instance normalisation (Ulyanov et al. 2016, arXiv:1607.08022), an activation in either order, and a residual.

    Takes what `torch.nn.InstanceNorm2d` takes, and ``activation``, ``activation_param`` and ``order`` (see
    `fastdl.ops.batch_norm`); loads its state_dict. Input, residual and output are (N, C, H, W), or (C, H, W).

    As in torch there are no parameters and no running statistics unless asked for. Running statistics are the mean over
    the samples, of their means and unbiased variances, and are what evaluation uses. A batch without samples leaves
    them alone, where torch makes them NaN.

    Raises ValueError for an unknown activation or order, for input of another rank, of other channels than the
    parameters have, and of one value a channel where its own statistics are taken.
    """


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """`InstanceNorm2d` for input, residual and output of (N, C, D, H, W), or (C, D, H, W)."""


def normalize_instances(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    *,
    activation: str,
    activation_param: float | None,
    order: str,
    residual: Tensor | None,
) -> Tensor:
    """Group norm with a group a channel (Wu & He 2018, arXiv:1803.08494, section 3.1), which may track statistics.

    Unlike `fastdl.reference.conv_norm_act.tracked_instance_norm`, which says it by batch norm over the channels of all
    samples, this reads channels-last input as it lies.
    """
    op = "instance_norm"
    check_input(op, input, least=3)
    check_channel_parameter(op, "running_mean", running_mean, input)
    check_channel_parameter(op, "running_var", running_var, input)
    check_channel_parameter(op, "weight", weight, input)
    check_channel_parameter(op, "bias", bias, input)
    check_eps(op, eps)
    check_order(op, order)
    check_residual(op, residual, input.shape, input)
    if residual is not None and residual.dtype != input.dtype:
        residual = residual.to(input.dtype)
    parameter = resolve_activation(op, activation, activation_param)
    positions = math.prod(input.shape[2:])
    if positions == 1:
        raise ValueError(
            f"{op}: Expected more than 1 spatial element when training, got input size {tuple(input.shape)}"
        )

    def observe(kernels: Implementation | None, statistics: Tensor) -> None:
        means, variances = statistics.mean(1)
        move_running(running_mean, means, momentum)
        move_running(running_var, variances * (positions / (positions - 1)), momentum)

    tracks = input.numel() > 0 and (running_mean is not None or running_var is not None)
    statics: tuple[Any, ...] = (input.shape[1], eps, activation, parameter, order == "act_norm")
    return GROUP_NORM((input, weight, bias, residual), statics, observe if tracks else None)


@torch.no_grad()
def move_running(running: Tensor | None, batch: Tensor, momentum: float) -> None:
    """running = (1 - momentum) running + momentum batch, in place, in the dtype of ``batch`` and rounded once."""
    if running is not None:
        running.copy_((1 - momentum) * running.to(batch.dtype) + momentum * batch)
