"""A convolution, its normalisation and its activation as one module."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastdl.nn.batch_norm import AnyBatchNorm, count_batch, takes_batch_statistics, tracked_statistics
from fastdl.nn.group_norm import describe_activation
from fastdl.nn.sync_batch_norm import SyncBatchNorm, synchronized_batch_norm
from fastdl.ops.arguments import check_order, resolve_activation
from fastdl.ops.conv_norm_act import ORDERS, conv_norm_act
from fastdl.ops.convolution import NORMS

Size = int | tuple[int, ...]


class _ConvNormAct(nn.Module):
    """What the three share: they differ in torch's convolution and batch norm, whose names they give."""

    _convolution: ClassVar[type[nn.Conv1d | nn.Conv2d | nn.Conv3d]]
    _batch_norm: ClassVar[type[AnyBatchNorm]]

    conv: nn.Conv1d | nn.Conv2d | nn.Conv3d
    norm: AnyBatchNorm | nn.GroupNorm | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool | None = None,
        *,
        norm: str = "batch",
        num_groups: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        activation: str = "relu",
        activation_param: float | None = None,
        order: str = "conv_norm_act",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if norm not in NORMS:
            raise ValueError(f"{name}: norm must be one of {', '.join(NORMS)}; got {norm!r}")
        if (num_groups is not None) != (norm == "group"):
            raise ValueError(
                f"{name}: num_groups must be given for norm='group' and for no other; got {num_groups!r} with {norm!r}"
            )
        resolve_activation(name, activation, activation_param)
        check_order(name, order, ORDERS)
        if bias is None:
            bias = norm == "none" or order == "conv_act_norm"
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        convolution: Any = self._convolution
        self.conv = convolution(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **where
        )  # fmt: skip
        self.norm = self._make_norm(norm, num_groups, out_channels, eps, momentum, where)
        self.norm_name = norm
        self.num_groups = num_groups
        self.activation = activation
        self.activation_param = activation_param
        self.order = order

    def _make_norm(
        self,
        norm: str,
        num_groups: int | None,
        channels: int,
        eps: float,
        momentum: float | None,
        where: dict[str, Any],
    ) -> AnyBatchNorm | nn.GroupNorm | None:
        """Who holds the norm's parameters. Layer and instance norm are group norms of one group, or one a channel."""
        if norm == "none":
            return None
        if norm == "batch":
            return self._batch_norm(channels, eps, momentum, **where)
        groups = {"layer": 1, "instance": channels}.get(norm, num_groups)
        assert groups is not None
        return nn.GroupNorm(groups, channels, eps, **where)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        conv, norm = self.conv, self.norm
        around: dict[str, Any] = {
            "activation": self.activation,
            "activation_param": self.activation_param,
            "residual": residual,
        }
        if isinstance(norm, (SyncBatchNorm, nn.SyncBatchNorm)):  # what `convert_sync_batchnorm` puts here
            order = self.order.removeprefix("conv_")
            return synchronized_batch_norm(norm, conv(input), order=order, **around)
        batch = norm if isinstance(norm, AnyBatchNorm) else None
        running_mean, running_var = (None, None) if batch is None else tracked_statistics(batch)
        # The norm's own mode, and not this module's: to freeze a network's norms one calls their `eval`.
        training = batch is not None and takes_batch_statistics(batch)
        return conv_norm_act(
            input,
            conv.weight,
            conv.bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            norm=self.norm_name,
            norm_weight=None if norm is None else norm.weight,
            norm_bias=None if norm is None else norm.bias,
            running_mean=running_mean,
            running_var=running_var,
            num_groups=self.num_groups,
            training=training,
            momentum=0.0 if batch is None else count_batch(batch),
            eps=1e-5 if norm is None else norm.eps,
            order=self.order,
            **around,
        )

    def extra_repr(self) -> str:
        return f"order={self.order}" + describe_activation(self.activation, self.activation_param)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # The positions of convolution and norm in a plain nn.Sequential of three.
        names = {"0": "conv", ("1" if self.order == "conv_norm_act" else "2"): "norm"}
        for position, name in names.items():
            for key in [k for k in state_dict if k.startswith(f"{prefix}{position}.")]:
                state_dict[f"{prefix}{name}.{key.removeprefix(f'{prefix}{position}.')}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class ConvNormAct1d(_ConvNormAct):
    """`ConvNormAct2d` over `torch.nn.Conv1d` and `torch.nn.BatchNorm1d`: input is (N, C, L)."""

    _convolution = nn.Conv1d
    _batch_norm = nn.BatchNorm1d


class ConvNormAct2d(_ConvNormAct):
    """``act(norm(conv(x)) + residual)``, or ``norm(act(conv(x)) + residual)`` for ``order="conv_act_norm"``.

    The submodules ``conv`` (`torch.nn.Conv2d`) and ``norm`` (a `torch.nn` norm, or None) hold the parameters under
    torch's names and with torch's initialisation. A state_dict of the plain ``nn.Sequential(conv, norm, act)``, or
    ``(conv, act, norm)``, loads unchanged too.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as for `torch.nn.Conv2d`.
        bias: of the convolution; by default only where no norm follows it directly, since a norm's mean takes it away.
        norm: ``batch``, ``group``, ``layer``, ``instance`` (with affine parameters, statistics not tracked) or
        ``none``.
        num_groups: for ``norm="group"``, a divisor of ``out_channels``.
        eps, momentum: of the norm; ``momentum=None`` is the cumulative mean.
        activation, activation_param, order: see `fastdl.ops.conv_norm_act`.

    Raises:
        ValueError: an unknown norm, activation or order, or groups that do not divide the channels.
    """

    _convolution = nn.Conv2d
    _batch_norm = nn.BatchNorm2d


class ConvNormAct3d(_ConvNormAct):
    """`ConvNormAct2d` over `torch.nn.Conv3d` and `torch.nn.BatchNorm3d`: input is (N, C, D, H, W)."""

    _convolution = nn.Conv3d
    _batch_norm = nn.BatchNorm3d
