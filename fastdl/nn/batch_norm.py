"""`torch.nn.BatchNorm2d` with activation and residual fused."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdl.nn.group_norm import describe_activation
from fastdl.ops.arguments import check_order, resolve_activation
from fastdl.ops.batch_norm import batch_norm


class BatchNorm2d(torch.nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) with an activation, in either order, and a residual.

    Takes what `torch.nn.BatchNorm2d` takes, and ``activation``, ``activation_param`` and ``order`` (see
    `fastdl.ops.batch_norm`); loads its state_dict. Input, residual and output are (N, C, H, W).

    Raises ValueError for an unknown activation or order, and for input that is not 4-D.
    """

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
        activation: str = "identity",
        activation_param: float | None = None,
        order: str = "norm_act",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        resolve_activation("BatchNorm2d", activation, activation_param)
        check_order("BatchNorm2d", order)
        self.activation = activation
        self.activation_param = activation_param
        self.order = order

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        training = self.training or (self.running_mean is None and self.running_var is None)
        tracked = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            training,
            count_batch(self),
            self.eps,
            activation=self.activation,
            activation_param=self.activation_param,
            order=self.order,
            residual=residual,
        )

    def extra_repr(self) -> str:
        order = "" if self.order == "norm_act" else f", order={self.order}"
        return super().extra_repr() + describe_activation(self.activation, self.activation_param) + order


def count_batch(module: torch.nn.modules.batchnorm._BatchNorm) -> float:
    """Counts a training batch and returns its momentum: the module's, or 1/count where that is None."""
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:
            return 1.0 / float(module.num_batches_tracked)
    return module.momentum or 0.0
