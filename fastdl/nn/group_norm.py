"""`torch.nn.GroupNorm` with its activation fused."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdl.ops.arguments import resolve_activation
from fastdl.ops.group_norm import group_norm


class GroupNorm(torch.nn.GroupNorm):
    """Group normalisation (Wu & He 2018, arXiv:1803.08494) followed by an activation, in one op.

    Takes what `torch.nn.GroupNorm` takes, and ``activation`` with ``activation_param`` (see `fastdl.ops.group_norm`);
    loads its state_dict. Input and output are (N, C, *), of any floating dtype and strides.

    Raises ValueError for an unknown activation, and what `torch.nn.GroupNorm` raises.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str = "identity",
        activation_param: float | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **unless_default(bias))
        resolve_activation("GroupNorm", activation, activation_param)
        self.activation = activation
        self.activation_param = activation_param

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps,
            activation=self.activation, activation_param=self.activation_param,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + describe_activation(self.activation, self.activation_param)


def describe_activation(activation: str, parameter: float | None) -> str:
    """The end of a module's ``repr`` where there is an activation: ``, activation=elu(0.5)``."""
    if activation == "identity":
        return ""
    return f", activation={activation}" + ("" if parameter is None else f"({parameter})")


def unless_default(bias: bool) -> dict[str, bool]:
    """``bias`` as a keyword of torch's norms; the older of the versions that are served have none."""
    return {} if bias else {"bias": False}
