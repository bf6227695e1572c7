"""Convolution and norm modules in turn, run as one computation that keeps only what the convolutions put out."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn

from fastdl.nn.batch_norm import AnyBatchNorm, FusedBatchNorm, count_batch, takes_batch_statistics, tracked_statistics
from fastdl.ops.conv_norm_act import convolve
from fastdl.ops.convolution import Convolution, Norm
from fastdl.ops.norm_act_conv import convolve_normalized

OP = "conv_norm_sequence"
AnyConvolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def conv_norm_sequence(input: Tensor, *modules: nn.Module, residual: Tensor | None = None) -> Tensor:
    """``norm_n(conv_n(... norm_1(conv_1(input))), residual)`` for modules ``conv_1, norm_1, ..., conv_n, norm_n``.

    In training, of plain convolutions of torch and `fastdl.nn.BatchNorm1d/2d/3d`: without the activated tensors between
    them in memory (see `fastdl.ops.norm_act_conv`), and with each norm's statistics taken by the convolution before it
    where that has kernels of our own. Other modules, and those with hooks, are simply called, as all are in evaluation,
    where nothing is kept and `fastdl.nn.fold` wants to see modules.
    """
    convolutions: list[Any] = list(modules[::2])
    norms: list[Any] = list(modules[1::2])
    if not all(is_plain(conv) for conv in convolutions) or not all(is_fused_in_training(norm) for norm in norms):
        return _one_by_one(input, convolutions, norms, residual)
    x, known = convolve(OP, input, convolution_arguments(convolutions[0]), wants_statistics(norms[0]))
    for i, (norm, following) in enumerate(itertools.pairwise(norms)):
        norm._check_input_dim(x)
        conv = convolution_arguments(convolutions[i + 1])
        collect = wants_statistics(following)
        x, known = convolve_normalized(x, norm_arguments(norm), conv, known=known, collect=collect, op=OP)
    norms[-1]._check_input_dim(x)
    return norm_arguments(norms[-1])(x, residual, OP, known)


def _one_by_one(input: Tensor, convolutions: list[Any], norms: list[Any], residual: Tensor | None) -> Tensor:
    last = len(norms) - 1
    for i, (conv, norm) in enumerate(zip(convolutions, norms, strict=True)):
        x = conv(input)
        input = norm(x, residual) if i == last and residual is not None else norm(x)
    return input


def is_fused_in_training(norm: nn.Module) -> bool:
    return isinstance(norm, FusedBatchNorm) and norm.training and not has_hooks(norm)


def wants_statistics(norm: FusedBatchNorm) -> bool:
    """Whether a norm takes those of its convolution's output by channel."""
    return takes_batch_statistics(norm) and norm.order == "norm_act"


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
