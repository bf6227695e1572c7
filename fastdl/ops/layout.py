"""The memory layout of an op's output: that of its input, as far as layers care for it."""

from __future__ import annotations

import torch
from torch import Tensor

# Of (N, H, L, E): told once, beside the kernels that allocate by it.
from fastdl.kernels.attention_layout import empty_with_heads as empty_with_heads
from fastdl.kernels.attention_layout import has_heads_inside as has_heads_inside


def output_like(input: Tensor) -> Tensor:
    """An uninitialised tensor of the input's shape, dtype and device, in the layout of every backend's output."""
    if not has_channels_last(input):
        return torch.empty(input.shape, dtype=input.dtype, device=input.device)
    spatial = range(2, input.ndim)
    dense = torch.empty(
        [input.shape[i] for i in (0, *spatial, 1)], dtype=input.dtype, device=input.device
    )  # fmt: skip
    return dense.permute(0, -1, *range(1, input.ndim - 1))


def has_channels_last(input: Tensor) -> bool:
    """Whether channels are innermost in memory and the rest lies in order, as in ``torch.channels_last``."""
    if input.ndim < 3 or input.is_contiguous() or input.stride(1) != 1:
        return False
    innermost = input.shape[1]
    for dimension in (*range(input.ndim - 1, 1, -1), 0):
        if input.shape[dimension] == 1:
            continue
        if input.stride(dimension) < innermost:
            return False
        innermost = input.stride(dimension) * input.shape[dimension]
    return True


def output_like_input(input: Tensor, *_: object) -> Tensor:
    """`output_like` of the first of an op's arguments."""
    return output_like(input)


def gradient_like_input(tensor: Tensor, input: Tensor) -> Tensor:
    """An uninitialised gradient of a tensor: in the input's layout if it is as large, contiguous if a parameter."""
    return output_like(input if tensor.ndim == input.ndim else tensor).to(tensor.dtype)


def image_layout(input: Tensor) -> str:
    """``channels_last`` or ``nchw``, as tables of measurements call it."""
    return "channels_last" if has_channels_last(input) else "nchw"


def rows_layout(input: Tensor) -> str:
    """The one layout that ops over rows have: those that are not dense cost them a copy."""
    return "rows"


def contiguous_output(input: Tensor, *_: object) -> Tensor:
    """An uninitialised contiguous tensor like the first of an op's arguments."""
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


def contiguous_gradient(tensor: Tensor, input: Tensor) -> Tensor:
    """An uninitialised contiguous gradient of a tensor."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
