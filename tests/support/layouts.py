"""Memory layouts: one function a layout, from a shape and a source of values to a tensor of that shape.

A layout joins every parity test by adding a row to ``LAYOUTS``. ``fill(shape)`` gives a fresh contiguous tensor of
values; a layout may ask for a larger one and return a view. In the expanded and overlapping ones elements share memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, ...]
Fill = Callable[[Shape], Tensor]


def contiguous(shape: Shape, fill: Fill) -> Tensor:
    return fill(shape)


def channels_last(shape: Shape, fill: Fill) -> Tensor:
    """torch.channels_last, its 3-D sister, and (N, L, C).transpose(1, 2), as the number of dimensions has it."""
    return in_memory_order(shape, fill, (0, *range(2, len(shape)), 1))


def reversed_dimensions(shape: Shape, fill: Fill) -> Tensor:
    return in_memory_order(shape, fill, tuple(reversed(range(len(shape)))))


def batch_innermost(shape: Shape, fill: Fill) -> Tensor:
    return in_memory_order(shape, fill, (*range(1, len(shape)), 0))


def channels_outermost(shape: Shape, fill: Fill) -> Tensor:
    return in_memory_order(shape, fill, (1, 0, *range(2, len(shape))))


def space_transposed(shape: Shape, fill: Fill) -> Tensor:
    return in_memory_order(shape, fill, (0, 1, *reversed(range(2, len(shape)))))


def in_memory_order(shape: Shape, fill: Fill, order: Shape) -> Tensor:
    """A dense tensor whose dimensions lie in memory in this order, the outermost first."""
    dense = fill(tuple(shape[i] for i in order))
    return dense.permute([order.index(i) for i in range(len(shape))])


def sliced_batch(shape: Shape, fill: Fill) -> Tensor:
    return fill((2 * shape[0], *shape[1:]))[::2]


def sliced_channels(shape: Shape, fill: Fill) -> Tensor:
    return fill((shape[0], shape[1] + 3, *shape[2:]))[:, 2 : shape[1] + 2]


def sliced_channels_last(shape: Shape, fill: Fill) -> Tensor:
    return channels_last((shape[0], shape[1] + 3, *shape[2:]), fill)[:, 2 : shape[1] + 2]


def every_other_channel(shape: Shape, fill: Fill) -> Tensor:
    return fill((shape[0], 2 * shape[1], *shape[2:]))[:, ::2]


def sliced_space(shape: Shape, fill: Fill) -> Tensor:
    return fill((*shape[:-1], shape[-1] + 3))[..., 1 : shape[-1] + 1]


def sliced_rows(shape: Shape, fill: Fill) -> Tensor:
    """Rows left out at the end of each image: dense inside a channel, not between channels."""
    if len(shape) < 4:
        return sliced_space(shape, fill)
    return fill((*shape[:-2], shape[-2] + 2, shape[-1]))[..., : shape[-2], :]


def every_other_position(shape: Shape, fill: Fill) -> Tensor:
    return fill((*shape[:-1], 2 * shape[-1]))[..., ::2]


def storage_offset(shape: Shape, fill: Fill) -> Tensor:
    """Contiguous, but starting at an address that is a multiple of the element's size and of nothing more."""
    flat = fill((torch.Size(shape).numel() + 3,))
    return flat[3:].view(shape)


def expanded_batch(shape: Shape, fill: Fill) -> Tensor:
    return fill((min(shape[0], 1), *shape[1:])).expand(shape)


def expanded_channels(shape: Shape, fill: Fill) -> Tensor:
    return fill((shape[0], min(shape[1], 1), *shape[2:])).expand(shape)


def expanded_space(shape: Shape, fill: Fill) -> Tensor:
    return fill((*shape[:-1], min(shape[-1], 1))).expand(shape)


def expanded_everywhere(shape: Shape, fill: Fill) -> Tensor:
    """One value with all strides 0: what the backward of ``.sum()`` hands back."""
    return fill((1,)).reshape([1] * len(shape)).expand(shape)


def overlapping(shape: Shape, fill: Fill) -> Tensor:
    """Windows that share elements, as ``unfold`` makes them."""
    if len(shape) < 4:
        return expanded_space(shape, fill)
    rows, columns = shape[-2:]
    return fill((*shape[:-2], rows + columns)).unfold(-1, columns, 1)[..., :rows, :]


LAYOUTS: dict[str, Callable[[Shape, Fill], Tensor]] = {
    function.__name__: function
    for function in (
        contiguous,
        channels_last,
        reversed_dimensions,
        batch_innermost,
        channels_outermost,
        space_transposed,
        sliced_batch,
        sliced_channels,
        sliced_channels_last,
        every_other_channel,
        sliced_space,
        sliced_rows,
        every_other_position,
        storage_offset,
        expanded_batch,
        expanded_channels,
        expanded_space,
        expanded_everywhere,
        overlapping,
    )
}
