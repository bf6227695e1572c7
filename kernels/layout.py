"""How a call's tensors lie in memory: which can be read in place, which are copied, and the layout of the output."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Ints = tuple[int, ...]


class View(NamedTuple):
    """A tensor (N, C, *) as samples x channels x positions, and the dense strides of the call's output.

    ``channels_last``: kernels see its channels innermost. That is so where the input's channels are, and for a single
    position, which is both layouts at once.
    """

    shape: Ints
    samples: int
    channels: int
    positions: int
    channels_last: bool
    dense: Ints


class Strides(NamedTuple):
    """In values: from sample to sample, and from line to line, lines being positions (channels last) or channels.

    Along a line the stride is 1. The stride of what there is only one of is 0.
    """

    sample: int
    line: int


@lru_cache(maxsize=4096)
def view_of(shape: Ints, strides: Ints) -> View:
    """The view of an input of this shape and these strides; the same layout as on every backend."""
    samples, channels, positions = shape[0], shape[1], math.prod(shape[2:])
    channels_last = len(shape) > 2 and not is_contiguous(shape, strides) and has_inner_channels(shape, strides)
    dense = [0] * len(shape)
    stride = channels if channels_last else 1
    for dimension in range(len(shape) - 1, 1, -1):
        dense[dimension] = stride
        stride *= max(shape[dimension], 1)
    dense[1] = 1 if channels_last else stride
    dense[0] = stride if channels_last else stride * max(channels, 1)
    return View(tuple(shape), samples, channels, positions, channels_last or positions == 1, tuple(dense))


def is_contiguous(shape: Ints, strides: Ints) -> bool:
    """torch's own rule: strides of dimensions of size 1 do not count, and an empty tensor is contiguous."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size == 0:
            return True
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def has_inner_channels(shape: Ints, strides: Ints) -> bool:
    """Whether channels are innermost in memory and the rest lies in order, as in ``torch.channels_last``."""
    if strides[1] != 1:
        return False
    innermost = shape[1]
    for dimension in (*range(len(shape) - 1, 1, -1), 0):
        if shape[dimension] == 1:
            continue
        if strides[dimension] < innermost:
            return False
        innermost = strides[dimension] * shape[dimension]
    return True


@lru_cache(maxsize=4096)
def strides_in_place(view: View, strides: Ints) -> Strides | None:
    """The strides by which kernels read a tensor where it is, or None where they cannot."""
    position, length = 0, 1
    for dimension in range(len(view.shape) - 1, 1, -1):
        size = view.shape[dimension]
        if size == 1:
            continue
        if length == 1:
            position = strides[dimension]
        elif strides[dimension] != position * length:
            return None
        length *= size
    sample = strides[0] if view.samples > 1 else 0
    if view.channels_last:
        if strides[1] != 1 and view.channels > 1:
            return None
        return Strides(sample, position if view.positions > 1 else sample)
    if position != 1:
        return None
    return Strides(sample, strides[1] if view.channels > 1 else 0)


def empty_output(view: View, like: Tensor) -> Tensor:
    """An uninitialised dense tensor in the layout of the call's output."""
    return torch.empty_strided(view.shape, view.dense, dtype=like.dtype, device=like.device)


def operand(view: View, tensor: Tensor) -> tuple[Tensor, Strides]:
    """A tensor that kernels can read, with its strides: itself, or a dense copy in the call's layout."""
    strides = strides_in_place(view, tensor.stride())
    if strides is None:
        tensor = empty_output(view, tensor).copy_(tensor)
        strides = strides_in_place(view, view.dense)
        assert strides is not None
    return tensor, strides
