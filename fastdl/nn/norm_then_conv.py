"""A norm module and the convolution module behind it, run as one op that keeps nothing in between."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdl.nn.batch_norm import AnyBatchNorm, FusedBatchNorm, count_batch, takes_batch_statistics, tracked_statistics
from fastdl.ops.convolution import Convolution, Norm
from fastdl.ops.norm_act_conv import convolve_normalized

AnyConvolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def norm_then_conv(input: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
    """``conv(norm(input))``; in training without the activated tensor between the two in memory (see `norm_act_conv`).

    For `fastdl.nn.BatchNorm1d/2d/3d` in training before a plain convolution of torch. Any other two modules, and those
    with hooks, are simply called, as everything is in evaluation, where nothing is kept and `fastdl.nn.fold` wants to
    see modules.
    """
    if not norm.training or not isinstance(norm, FusedBatchNorm) or not is_plain(conv) or has_hooks(norm):
        output: Tensor = conv(norm(input))
        return output
    norm._check_input_dim(input)
    convolution: Any = conv
    return convolve_normalized(input, norm_arguments(norm), convolution_arguments(convolution), op="norm_then_conv")[0]


def is_plain(conv: nn.Module) -> bool:
    """Whether a convolution is torch's own, padded with zeros, and nobody looks on."""
    return (
        type(conv) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        and getattr(conv, "padding_mode", "") == "zeros"
        and not has_hooks(conv)
    )


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def convolution_arguments(conv: AnyConvolution) -> Convolution:
    padding: Any = conv.padding
    return Convolution(conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


def norm_arguments(norm: FusedBatchNorm) -> Norm:
    """A batch norm's call, which is counted."""
    return Norm(
        **batch_arguments(norm),
        activation=norm.activation,
        activation_param=norm.activation_param,
        activation_first=norm.order == "act_norm",
    )


def batch_arguments(norm: AnyBatchNorm) -> dict[str, Any]:
    """What a batch norm of torch or of fastdl is called with: its statistics as torch uses them; counts the batch."""
    running_mean, running_var = tracked_statistics(norm)
    return {
        "weight": norm.weight,
        "bias": norm.bias,
        "running_mean": running_mean,
        "running_var": running_var,
        "training": takes_batch_statistics(norm),
        "momentum": count_batch(norm),
        "eps": norm.eps,
    }
