"""Convolution, normalisation, activation and residual as one call: a convolution, then one fused norm op."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdl.ops import annotation
from fastdl.ops.arguments import (
    check_channel_parameter,
    check_eps,
    check_input,
    check_order,
    check_residual,
    resolve_activation,
)
from fastdl.ops.conv_norm_block import one_node
from fastdl.ops.convolution import Convolution, Norm, check_norm, check_weight
from fastdl.ops.norm_act_conv import Moves, convolve_normalized, convolve_on_cpu, serving_call

NOTHING_BEFORE = Norm("none", activation="identity")
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
            ``instance`` (group norm with one group, and with a group a channel: section 3.1 there), or ``none``.
        norm_weight, norm_bias: (C_out,) or None.
        running_mean, running_var: (C_out,), for ``batch`` and ``instance``; changed in place by ``training``. Batch
            norm needs them when ``training=False``; instance norm without them always uses the
            sample's own statistics.
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
    check_input(op, input, least=3)
    check_weight(op, input, weight)
    check_order(op, order, ORDERS)
    behind = Norm(
        norm, norm_weight, norm_bias, running_mean, running_var, num_groups, training, momentum, eps,
        activation, activation_param, order == "conv_act_norm",
    )  # fmt: skip
    check_norm(op, behind, ("batch", "instance"))
    resolve_activation(op, activation, activation_param)
    check_eps(op, eps)
    convolution = Convolution(weight, bias, stride, padding, dilation, groups)
    served = serving_call(input, convolution)
    if (
        served is not None
        and served[0] == "cpu"
        and annotation.annotate is None
        and not torch.is_autocast_enabled("cpu")
    ):
        output: Tensor | None = one_node(op, input, convolution, served[1], behind, residual)
        if output is not None:
            return output
    x, known = _convolve(op, input, convolution, takes_batch_statistics(behind), served)
    check_channel_parameter(op, "norm_weight", norm_weight, x)
    check_channel_parameter(op, "norm_bias", norm_bias, x)
    check_residual(op, residual, x.shape, x)
    if residual is not None and residual.dtype != x.dtype:
        residual = residual.to(x.dtype)
    return behind(x, residual, op, known)


def convolve(op: str, input: Tensor, convolution: Convolution, wants_statistics: bool) -> tuple[Tensor, Tensor | None]:
    """The convolution, with its output's statistics by channel where they are wanted and come by the way.

    They do so from fused kernels alone, which serve where their backend was asked for by name, or measured the fastest.
    The CPU's serve without them too: they are as fast as the vendor's, or faster.
    """
    return _convolve(op, input, convolution, wants_statistics, serving_call(input, convolution))


def _convolve(
    op: str, input: Tensor, convolution: Convolution, wants_statistics: bool, served: tuple[str, Moves] | None
) -> tuple[Tensor, Tensor | None]:
    if served is not None and served[0] == "cpu" and not torch.is_autocast_enabled("cpu"):
        return convolve_on_cpu(input, convolution, served[1], wants_statistics)
    if served is not None and wants_statistics:
        return convolve_normalized(input, NOTHING_BEFORE, convolution, collect=wants_statistics, op=op)
    return convolution(input), None


def takes_batch_statistics(behind: Norm) -> bool:
    """Whether a norm takes the statistics of its convolution's output by channel."""
    return behind.norm == "batch" and behind.training and not behind.activation_first
