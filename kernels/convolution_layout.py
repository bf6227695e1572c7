"""What a convolution's call looks like to the kernels: its sizes, and where its tensors lie in memory.

All kernels see images in channels last, (N, positions, C) with a stride of 1 along C; one dimension is a height of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from fastdl.kernels.layout import Ints, Strides, View, has_inner_channels, is_contiguous, operand

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Pair = tuple[int, int]


class Geometry(NamedTuple):
    """The sizes of a convolution in two dimensions; ``kernel`` and what follows are (height, width)."""

    samples: int
    channels: int
    size: Pair
    out_channels: int
    out_size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def depth(self) -> int:
        """Input channels of a group."""
        return self.channels // self.groups

    @property
    def columns(self) -> int:
        """Output channels of a group."""
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return math.prod(self.kernel)

    @property
    def positions(self) -> int:
        """Positions of an input's sample."""
        return math.prod(self.size)

    @property
    def out_positions(self) -> int:
        return math.prod(self.out_size)


def geometry_of(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Geometry:
    size, kernel = (_pair(tensor.shape[2:], 1) for tensor in (input, weight))
    steps, edge, spread = _pair(stride, 1), _pair(padding, 0), _pair(dilation, 1)
    out_size = (
        _out(size[0], kernel[0], steps[0], edge[0], spread[0]),
        _out(size[1], kernel[1], steps[1], edge[1], spread[1]),
    )
    return Geometry(
        input.shape[0], input.shape[1], size, weight.shape[0], out_size, kernel, steps, edge, spread, groups
    )


def _pair(values: Sequence[int], missing: int) -> Pair:
    return (missing, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def _out(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def serves(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> str:
    """Why the kernels do not take such a call, in words; empty where they do."""
    if input.ndim not in (3, 4) or weight.ndim != input.ndim:
        return f"the Triton kernels convolve in one or two dimensions; got {input.ndim - 2}"
    if input.dtype not in DTYPES or weight.dtype != input.dtype:
        return f"the Triton kernels convolve float32, float16 and bfloat16; got {input.dtype} and {weight.dtype}"
    if 0 in input.shape[1:] or 0 in weight.shape:
        return "the Triton kernels need at least one channel, one position and one kernel position"
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        return "the Triton kernels take a stride and a dilation of at least 1 and a padding of at least 0"
    geometry = geometry_of(input, weight, stride, padding, dilation, groups)
    if min(geometry.out_size) < 1:
        return "the kernel is larger than the padded input"
    if weight.numel() >= FARTHEST:
        return "the Triton kernels count the weight's numbers in 31 bits"
    return ""


def is_channels_last(tensor: Tensor) -> bool:
    """The rule of all backends for an output's layout, as `fastdl.kernels.layout.view_of` has it."""
    shape, strides = tuple(tensor.shape), tensor.stride()
    return len(shape) > 2 and not is_contiguous(shape, strides) and has_inner_channels(shape, strides)


class Lines(NamedTuple):
    """A tensor in channels last as kernels read it, and its strides from sample to sample and position to position."""

    tensor: Tensor
    strides: Strides


def lines_of(tensor: Tensor) -> Lines:
    """The tensor where it is, if its channels are innermost and its positions evenly spaced; else a dense copy."""
    return Lines(*operand(channels_last_view(tuple(tensor.shape)), tensor))


@lru_cache(maxsize=4096)
def channels_last_view(shape: Ints) -> View:
    samples, channels, positions = shape[0], shape[1], math.prod(shape[2:])
    dense = [0] * len(shape)
    stride = channels
    for dimension in range(len(shape) - 1, 1, -1):
        dense[dimension] = stride
        stride *= max(shape[dimension], 1)
    dense[0], dense[1] = stride, 1
    return View(shape, samples, channels, positions, True, tuple(dense))


def dense_strides(shape: Ints) -> Strides:
    """The strides of a dense tensor in channels last."""
    return Strides(shape[1] * math.prod(shape[2:]), shape[1])


def empty_lines(shape: Ints, like: Tensor) -> Tensor:
    """An uninitialised (N, C, *) in channels last."""
    return torch.empty_strided(shape, channels_last_view(shape).dense, dtype=like.dtype, device=like.device)


def in_layout_of(model: Tensor, tensor: Tensor) -> Tensor:
    """A tensor in channels last as the model's layout asks for it: itself, or a contiguous copy."""
    return tensor if is_channels_last(model) else tensor.contiguous()


def taps_of(weight: Tensor) -> Tensor:
    """(C_out, *kernel, C_in / groups), dense: a product's depth in one run; of a channels-last weight no copy."""
    return weight.permute(0, *range(2, weight.ndim), 1).contiguous()


def depths_of(weight: Tensor) -> Tensor:
    """(*kernel, C_in / groups, C_out), dense: what the direct kernels read along the output channels."""
    return weight.permute(*range(2, weight.ndim), 1, 0).contiguous()


def unit_of(itemsize: int, *numbers: int) -> int:
    """What all these numbers of values are multiples of, up to 16 bytes."""
    return gcd(16 // itemsize, *numbers)


# From here on an offset in 31 bits might wrap around in a tile, behind its mask.
FARTHEST = 2**31 - 2**24


def is_wide(geometry: Geometry, *strides: tuple[Strides, int, int]) -> bool:
    """Whether offsets need 64 bits; each tensor told by its strides, its positions a sample and its channels.

    Padding and the last tile's rows reach a little beyond a tensor, which ``FARTHEST`` leaves room for.
    """
    edge = sum(p * max(size, 1) for p, size in zip(geometry.padding, (geometry.size[1], 1), strict=True))
    reach = 0
    for step, positions, channels in strides:
        last = (positions + edge) * step.line + (geometry.samples - 1) * step.sample
        reach = max(reach, last + channels, geometry.samples * positions * max(channels, 1))
    return reach >= FARTHEST
