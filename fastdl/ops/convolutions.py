"""The convolutions that norm_act_conv is composed of: the vendor's (cuDNN, oneDNN), and our own on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdl.ops.dispatch import Implementation
from fastdl.ops.layout import has_channels_last
from fastdl.reference.norm_act_conv import channel_moments


class Convolutions(NamedTuple):
    """A convolution's two kernels.

    ``forward(input, weight, bias, stride, padding, dilation, groups, collect)`` gives the output, and with ``collect``
    each output channel's mean, then its biased variance, float64 (2 C_out); else None.
    ``backward(grad_output, input, weight, stride, padding, dilation, groups, needs)`` gives the gradients of the input,
    the weight and the bias, None for those that ``needs`` does not ask for.
    """

    forward: Callable[..., tuple[Tensor, Tensor | None]]
    backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]]


def _vendor_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
    collect: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    output = torch.convolution(input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)
    output = in_layout_of(input, output)
    return output, channel_moments(output) if collect else None


def _vendor_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        grad_output, input, weight, [weight.shape[0]] if needs[2] else None, stride, padding, dilation, False,
        [0] * len(stride), groups, needs,
    )  # fmt: skip
    return gradients


VENDOR = Convolutions(_vendor_forward, _vendor_backward)


def _cpu_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
    collect: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    output, moments = torch.ops.fastdl_cpu.convolution_forward.default(
        input, weight, bias, stride, padding, dilation, collect
    )
    return output, moments if collect else None


def _cpu_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    grad_input, grad_weight = torch.ops.fastdl_cpu.convolution_backward.default(
        grad_output, input, weight, stride, padding, dilation, needs[0], needs[1]
    )
    return grad_input, grad_weight, grad_output.sum([0, *range(2, grad_output.ndim)]) if needs[2] else None


OWN_ON_CPU = Convolutions(_cpu_forward, _cpu_backward)
"""Over float32 in channels last (csrc/cpu/convolution.h); `fused_convolution.serves` tells for whom."""


def _alone_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    input, _, _, weight, bias = arguments[:5]
    stride, padding, dilation, _, collect = arguments[13:]
    result: tuple[Tensor, Tensor] = torch.ops.fastdl_cpu.convolution_forward.default(
        input, weight, bias, stride, padding, dilation, collect
    )
    return result


def _alone_backward(*arguments: Any) -> tuple[Tensor | None, ...]:
    grad_output, input, _, _, weight, bias = arguments[:6]
    stride, padding, dilation, groups, _, needs = arguments[15:]
    asked = [needs[0], needs[3], needs[4] and bias is not None]
    grad_input, *others = _cpu_backward(grad_output, input, weight, stride, padding, dilation, groups, asked)
    return (grad_input, None, None, *others)


ALONE_ON_CPU = Implementation(_alone_forward, _alone_backward, backend="cpu")
"""norm_act_conv with neither norm nor activation, on our own convolutions: at small sizes each step of Python shows."""


def in_layout_of(input: Tensor, output: Tensor) -> Tensor:
    """The output channels-last where the input is, else contiguous: a vendor may choose by the weight as well."""
    if has_channels_last(input):
        if output.ndim == 3:
            return output.transpose(1, 2).contiguous().transpose(1, 2)
        return output.contiguous(memory_format=torch.channels_last if output.ndim == 4 else torch.channels_last_3d)
    return output.contiguous()
