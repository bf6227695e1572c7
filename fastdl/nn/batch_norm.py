"""`torch.nn.BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` with activation and residual fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdl.nn.group_norm import describe_activation, unless_default
from fastdl.ops.arguments import check_order, resolve_activation
from fastdl.ops.batch_norm import batch_norm

AnyBatchNorm = torch.nn.modules.batchnorm._BatchNorm


class AroundNorm:
    """What a norm module of torch gains: an activation, in either order, and with it a place in its ``repr``."""

    activation: str
    activation_param: float | None
    order: str

    def _put_around(self, activation: str, activation_param: float | None, order: str) -> None:
        """Checks and keeps the options; raises ValueError for what is unknown."""
        name = type(self).__name__
        resolve_activation(name, activation, activation_param)
        check_order(name, order)
        self.activation = activation
        self.activation_param = activation_param
        self.order = order

    def _around(self, residual: Tensor | None) -> dict[str, Any]:
        """The keyword arguments of an op that say what is around its norm."""
        return {
            "activation": self.activation,
            "activation_param": self.activation_param,
            "order": self.order,
            "residual": residual,
        }

    def extra_repr(self) -> str:
        plain: str = super().extra_repr()  # type: ignore[misc]
        order = "" if self.order == "norm_act" else f", order={self.order}"
        return plain + describe_activation(self.activation, self.activation_param) + order


class FusedBatchNorm(AroundNorm, AnyBatchNorm):
    """What the batch norms share: the ranks differ only in the input that torch's classes let through."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str = "identity",
        activation_param: float | None = None,
        order: str = "norm_act",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **unless_default(bias)
        )
        self._put_around(activation, activation_param, order)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        return normalize_batch(self, input, count_batch(self), **self._around(residual))


class BatchNorm1d(FusedBatchNorm, torch.nn.BatchNorm1d):
    """`BatchNorm2d` for input, residual and output of (N, C) or (N, C, L)."""


class BatchNorm2d(FusedBatchNorm, torch.nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) with an activation, in either order, and a residual.

    Takes what `torch.nn.BatchNorm2d` takes, and ``activation``, ``activation_param`` and ``order`` (see
    `fastdl.ops.batch_norm`); loads its state_dict. Input, residual and output are (N, C, H, W).

    Raises ValueError for an unknown activation or order, for input that is not 4-D, and in training for input of one
    value a channel.
    """


class BatchNorm3d(FusedBatchNorm, torch.nn.BatchNorm3d):
    """`BatchNorm2d` for input, residual and output of (N, C, D, H, W)."""


def normalize_batch(module: AnyBatchNorm, input: Tensor, momentum: float, **around: Any) -> Tensor:
    """`fastdl.ops.batch_norm` with a module's parameters and statistics, these used and moved as torch does it."""
    running_mean, running_var = tracked_statistics(module)
    training = takes_batch_statistics(module)
    return batch_norm(
        input, running_mean, running_var, module.weight, module.bias, training, momentum, module.eps, **around
    )  # fmt: skip


def takes_batch_statistics(module: AnyBatchNorm) -> bool:
    """Whether statistics are those of the batch: in training, and in evaluation where there are no running ones."""
    return module.training or (module.running_mean is None and module.running_var is None)


def tracked_statistics(module: AnyBatchNorm) -> tuple[Tensor | None, Tensor | None]:
    """The running statistics; none in training where tracking was switched off after the module was made."""
    if module.training and not module.track_running_stats:
        return None, None
    return module.running_mean, module.running_var


def count_batch(module: AnyBatchNorm) -> float:
    """Counts a training batch and returns its momentum: the module's, or 1/count where that is None."""
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:
            return 1.0 / float(module.num_batches_tracked)
    return module.momentum or 0.0
