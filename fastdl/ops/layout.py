"""The memory layout of an op's output: channels last where the input's channels are innermost, contiguous elsewhere."""

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
