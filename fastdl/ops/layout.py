"""The memory layout of an op's output: that of its input, as far as layers care for it."""

from __future__ import annotations

import torch
from torch import Tensor


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


def empty_with_heads(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised (N, H, L, E) with the heads inside of the length in memory where ``like`` has them so.

    (N, L, H, E) in memory is what a projection gives and what the next one takes: splitting and merging heads are views
    then.
    """
    if not has_heads_inside(like):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    samples, heads, length, features = shape
    return torch.empty((samples, length, heads, features), dtype=like.dtype, device=like.device).transpose(1, 2)


def has_heads_inside(tensor: Tensor) -> bool:
    """Whether a step to the next head of (N, H, L, E) is shorter than one along the length."""
    return tensor.shape[1] > 1 and tensor.shape[2] > 1 and tensor.stride(1) < tensor.stride(2)
