"""norm_act_conv from a backend's norms and a convolution, with what only a fused kernel would not keep.

The activated tensor lives from the norm to the convolution, and once more in the backward: one pass of the norm's
forward kernel, with the statistics at hand, against a tensor of the input's size kept from forward to backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdl.ops import dispatch
from fastdl.ops.convolutions import VENDOR, Convolutions
from fastdl.ops.dispatch import Implementation
from fastdl.reference.norm_act_conv import BATCH, NO_NORM


def composed(backend: str, convolutions: Convolutions = VENDOR) -> Implementation:
    """The two kernels of norm_act_conv over the norms of ``backend`` and these convolutions."""
    batch = dispatch.implementation("batch_norm", backend)
    group = dispatch.implementation("group_norm", backend)

    def normalized(
        statistics: Tensor | None, tensors: tuple[Any, ...], statics: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """act(norm(x)) and the norm's statistics; by those that are given where there are any."""
        input, weight, bias, mean, variance, known = tensors
        groups, *rest = statics
        if groups == NO_NORM:
            return without_norm(input, rest), input.new_empty(0, dtype=torch.float64)
        if groups != BATCH:
            output, found = group.forward(input, weight, bias, None, groups, *rest)
            return output, found
        if mean is None:
            given = known if statistics is None else statistics
            mean, variance = (None, None) if given is None else given.view(2, -1)
        output, found = batch.forward(input, weight, bias, None, mean, variance, *rest)
        return output, found

    def without_norm(input: Tensor, rest: Sequence[Any]) -> Tensor:
        _eps, activation, parameter, first = rest
        if activation == "identity":
            return input
        output, _ = batch.forward(input, None, None, None, *standard(input), 0.0, activation, parameter, first)
        return output

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        input, norm_weight, norm_bias, weight, bias, mean, variance, known = arguments[:8]
        stride, padding, dilation, groups, collect = arguments[13:]
        tensors = (input, norm_weight, norm_bias, mean, variance, known)
        x, statistics = normalized(None, tensors, arguments[8:13])
        output, moments = convolutions.forward(x, weight, bias, stride, padding, dilation, groups, collect)
        statistics = statistics.flatten()
        if moments is None:
            return output, statistics
        return output, torch.cat([statistics, moments]) if statistics.shape[0] else moments

    def backward(*arguments: Any) -> tuple[Tensor | None, ...]:
        grad_output, input, norm_weight, norm_bias, weight, bias, mean, variance, known, statistics = arguments[:10]
        norm = arguments[10:15]
        stride, padding, dilation, groups, collect, needs = arguments[15:]
        if collect:
            statistics = statistics[: statistics.shape[0] - 2 * weight.shape[0]]
        before = any(needs[:3])
        tensors = (input, norm_weight, norm_bias, mean, variance, known)
        # The data's gradient needs of the convolution's input nothing but its shape.
        x = normalized(statistics if norm[0] == BATCH else None, tensors, norm)[0] if needs[3] else input
        asked = [before, needs[3], needs[4] and bias is not None]
        grad_x, grad_weight, grad_bias = convolutions.backward(
            grad_output, x, weight, stride, padding, dilation, groups, asked
        )
        del x
        gradients: tuple[Tensor | None, ...] = (None, None, None)
        if grad_x is not None:
            gradients = before_gradients(grad_x, tensors, statistics, norm, needs)
        return (*gradients, grad_weight, grad_bias)

    def before_gradients(
        grad_x: Tensor,
        tensors: tuple[Any, ...],
        statistics: Tensor,
        statics: tuple[Any, ...],
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """Of the input, and of the norm's weight and bias."""
        input, weight, bias, mean, variance, _ = tensors
        groups, *rest = statics
        asked = [*needs[:3], False]
        found: tuple[Tensor | None, ...]
        if groups == NO_NORM:
            _eps, activation, parameter, first = rest
            if activation == "identity":
                return grad_x, None, None
            mean, variance = standard(input)
            found = batch.backward(
                grad_x, input, None, None, None, mean, variance, torch.stack([mean, variance]).double(), 0.0,
                activation, parameter, first, asked,
            )  # fmt: skip
        elif groups == BATCH:
            shaped = statistics.view(2, -1)
            found = batch.backward(grad_x, input, weight, bias, None, mean, variance, shaped, *rest, asked)
        else:
            shaped = statistics.view(2, input.shape[0], groups)
            found = group.backward(grad_x, input, weight, bias, None, shaped, groups, *rest, asked)
        return found[:3]

    return Implementation(forward, backward, update_running_statistics=batch.update_running_statistics)


def standard(input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and variance 1 by channel, under which a batch norm changes nothing."""
    channels = input.shape[1]
    kind: dict[str, Any] = {"dtype": torch.float32, "device": input.device}
    return torch.zeros(channels, **kind), torch.ones(channels, **kind)
