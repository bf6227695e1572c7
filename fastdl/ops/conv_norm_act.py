"""Convolution, normalisation, activation and residual as one call: torch's convolution, then one fused norm op."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from fastdl.ops.arguments import (
    FLOATING,
    check_channel_parameter,
    check_eps,
    check_input,
    check_order,
    check_residual,
    resolve_activation,
)
from fastdl.ops.batch_norm import normalize_channels
from fastdl.ops.group_norm import normalize_groups
from fastdl.reference.conv_norm_act import CONVOLUTIONS, count_groups, tracked_instance_norm, without_norm

NORMS = ("batch", "group", "layer", "instance", "none")
ORDERS = ("conv_norm_act", "conv_act_norm")


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
    r"""``act(norm(conv(x)) + residual)``, or ``norm(act(conv(x)) + residual)`` for ``order="conv_act_norm"``.

    The residual is added before the last step. The convolution's output is the only activation kept for backward.

    Args:
        input: (N, C_in, *) with one to three spatial dimensions, any strides; channels-last runs without a copy.
        weight: (C_out, C_in / groups, *kernel); bias: (C_out,) or None.
        stride, padding, dilation, groups: as for ``torch.nn.functional.conv2d``.
        norm: ``batch`` (Ioffe & Szegedy 2015), ``group`` (Wu & He 2018; needs ``num_groups``), ``layer`` and
        ``instance``
            (group norm with one group, and with a group a channel: section 3.1 there), or ``none``.
        norm_weight, norm_bias: (C_out,) or None.
        running_mean, running_var: (C_out,), for ``batch`` and ``instance``; changed in place by ``training``. Batch
        norm needs
            them when ``training=False``; instance norm without them always uses the sample's own statistics.
        num_groups: for ``norm="group"`` alone.
        training, momentum, eps, activation, activation_param: as for `fastdl.ops.batch_norm`.
        order: ``"conv_norm_act"`` or ``"conv_act_norm"``.
        residual: a tensor of the output's shape.

    Returns:
        (N, C_out, *) in the dtype of the convolution's output.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        RuntimeError: torch's convolution refuses its arguments.
        BackendError: a backend asked for by name cannot serve this call.
    """
    op = "conv_norm_act"
    _check(op, input, weight, norm, num_groups, running_mean, running_var, order)
    parameter = resolve_activation(op, activation, activation_param)
    activation_param = parameter if activation in ("leaky_relu", "elu") else None
    check_eps(op, eps)
    x = CONVOLUTIONS[weight.ndim](input, weight, bias, stride, padding, dilation, groups)
    check_channel_parameter(op, "norm_weight", norm_weight, x)
    check_channel_parameter(op, "norm_bias", norm_bias, x)
    check_residual(op, residual, x.shape, x)
    if residual is not None and residual.dtype != x.dtype:
        residual = residual.to(x.dtype)
    inner = order.removeprefix("conv_")
    rest: dict[str, Any] = {
        "activation": activation,
        "activation_param": activation_param,
        "order": inner,
        "residual": residual,
    }
    if norm == "none":
        return without_norm(x, activation, parameter, inner, residual)
    if norm == "batch" or (norm == "instance" and running_mean is not None and not training):
        return normalize_channels(
            x, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps, op=op, **rest
        )
    if norm == "instance" and running_mean is not None and running_var is not None:
        return tracked_instance_norm(
            x,
            running_mean,
            running_var,
            norm_weight,
            norm_bias,
            momentum,
            eps,
            normalize=partial(normalize_channels, op=op),
            **rest,
        )
    number = count_groups(norm, num_groups, x.shape[1])
    return normalize_groups(x, number, norm_weight, norm_bias, eps, op=op, **rest)


def _check(
    op: str,
    input: Tensor,
    weight: Tensor,
    norm: str,
    num_groups: int | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    order: str,
) -> None:
    check_input(op, input, least=3)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{op}: weight must be a torch.Tensor; got {type(weight).__name__}")
    if weight.dtype not in FLOATING:
        raise TypeError(f"{op}: weight must be float32, float16, bfloat16 or float64; got {weight.dtype}")
    if weight.ndim != input.ndim or weight.ndim not in CONVOLUTIONS:
        raise ValueError(
            f"{op}: input and weight must both have 3, 4 or 5 dimensions; got shapes {tuple(input.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {', '.join(NORMS)}; got {norm!r}")
    if (num_groups is not None) != (norm == "group"):
        raise ValueError(
            f"{op}: num_groups must be given for norm='group' and for no other; got {num_groups!r} with {norm!r}"
        )
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{op}: running_mean and running_var must be given together; got one of them")
    if running_mean is not None and norm not in ("batch", "instance"):
        raise ValueError(f"{op}: running_mean and running_var are for norm='batch' and 'instance'; got norm={norm!r}")
    check_order(op, order, ORDERS)
