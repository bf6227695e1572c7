"""Memory layouts of query, key and value: one function a layout, from three shapes (N, H, L, E) to three tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.layouts import Fill, Shape, in_memory_order

Shapes = tuple[Shape, Shape, Shape]
Triple = tuple[Tensor, ...]


def contiguous(shapes: Shapes, fill: Fill) -> Triple:
    return tuple(fill(shape) for shape in shapes)


def heads_inside(shapes: Shapes, fill: Fill) -> Triple:
    """(N, L, H, E) in memory, as a projection gives it."""
    return tuple(in_memory_order(shape, fill, (0, 2, 1, 3)) for shape in shapes)


def packed(shapes: Shapes, fill: Fill) -> Triple:
    """The three slices of one projection: (N, L, 3, H, E) in memory."""
    samples, heads, length, features = shapes[0]
    assert shapes[0] == shapes[1] == shapes[2], "slices of one projection have one shape"
    projection = fill((samples, length, 3 * heads * features)).unflatten(-1, (3, heads, features))
    return tuple(part.transpose(1, 2) for part in projection.unbind(2))


def packed_heads_first(shapes: Shapes, fill: Fill) -> Triple:
    """The other order in use: (N, L, H, 3 E) in memory, as GPT-NeoX has it."""
    samples, heads, length, features = shapes[0]
    assert shapes[0] == shapes[1] == shapes[2], "slices of one projection have one shape"
    return fill((samples, length, heads, 3 * features)).transpose(1, 2).chunk(3, -1)


def length_first(shapes: Shapes, fill: Fill) -> Triple:
    """(L, N, H, E) in memory: a batch that is not first."""
    return tuple(in_memory_order(shape, fill, (2, 0, 1, 3)) for shape in shapes)


def features_first(shapes: Shapes, fill: Fill) -> Triple:
    """Positions innermost: no feature lies next to another."""
    return tuple(in_memory_order(shape, fill, (0, 1, 3, 2)) for shape in shapes)


def everything_reversed(shapes: Shapes, fill: Fill) -> Triple:
    return tuple(in_memory_order(shape, fill, (3, 2, 1, 0)) for shape in shapes)


def every_other_feature(shapes: Shapes, fill: Fill) -> Triple:
    return tuple(fill((*shape[:-1], 2 * shape[-1]))[..., ::2] for shape in shapes)


def sliced_features(shapes: Shapes, fill: Fill) -> Triple:
    """Rows that start at an odd address."""
    return tuple(fill((*shape[:-1], shape[-1] + 3))[..., 1 : shape[-1] + 1] for shape in shapes)


def sliced_lengths(shapes: Shapes, fill: Fill) -> Triple:
    """A part of a cache: heads lie further apart than their rows take."""
    return tuple(fill((*shape[:2], shape[2] + 5, shape[3]))[:, :, 2 : shape[2] + 2] for shape in shapes)


def storage_offset(shapes: Shapes, fill: Fill) -> Triple:
    """Contiguous, but at an address that is a multiple of the element's size and of nothing more."""
    return tuple(fill((torch.Size(shape).numel() + 1,))[1:].view(shape) for shape in shapes)


def expanded_batch(shapes: Shapes, fill: Fill) -> Triple:
    return tuple(fill((min(shape[0], 1), *shape[1:])).expand(shape) for shape in shapes)


def expanded_heads(shapes: Shapes, fill: Fill) -> Triple:
    return tuple(fill((shape[0], min(shape[1], 1), *shape[2:])).expand(shape) for shape in shapes)


def expanded_keys(shapes: Shapes, fill: Fill) -> Triple:
    """One key and value for all positions."""
    query, *others = shapes
    return (fill(query), *(fill((*shape[:2], min(shape[2], 1), shape[3])).expand(shape) for shape in others))


def mixed(shapes: Shapes, fill: Fill) -> Triple:
    """Query, key and value each in another layout."""
    return tuple(layout(shapes, fill)[i] for i, layout in enumerate((heads_inside, features_first, sliced_features)))


ATTENTION_LAYOUTS: dict[str, Callable[[Shapes, Fill], Triple]] = {
    function.__name__: function
    for function in (
        contiguous,
        heads_inside,
        packed,
        packed_heads_first,
        length_first,
        features_first,
        everything_reversed,
        every_other_feature,
        sliced_features,
        sliced_lengths,
        storage_offset,
        expanded_batch,
        expanded_heads,
        expanded_keys,
        mixed,
    )
}
