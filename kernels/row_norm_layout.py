"""How the rows of a call lie in memory: which tensors are read in place, which are copied, what divides all steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from torch import Tensor

Ints = tuple[int, ...]


class Steps(NamedTuple):
    """In values: row r of a tensor begins at ``(r // inner) * outer_step + (r % inner) * inner_step``.

    The step of what there is only one of is 0.
    """

    outer: int
    inner: int


class Rows(NamedTuple):
    """``rows`` x ``width`` values; ``inner`` rows follow each other by one step.

    ``by_outer``: there are several such runs. ``unit``: what the width and all steps are multiples of, up to 16 bytes.
    """

    rows: int
    width: int
    inner: int
    by_outer: bool
    unit: int
    itemsize: int


def rows_of(tensors: Sequence[Tensor], dimensions: int) -> tuple[Rows, list[Tensor], tuple[Steps, ...]]:
    """The rows of tensors of one shape and dtype, normalised over their last ``dimensions`` dimensions.

    The tensors come back as kernels can read them: themselves, or a contiguous copy of what can not be read in place.
    """
    first = tensors[0]
    strides = tuple([tensor.stride() for tensor in tensors])
    rows, steps, in_place = arrange(tuple(first.shape), dimensions, strides, first.element_size())
    read = [tensor if there else tensor.contiguous() for tensor, there in zip(tensors, in_place, strict=True)]
    return rows, read, steps


def dense_steps(rows: Rows) -> Steps:
    """Those of a contiguous tensor."""
    return Steps(rows.inner * rows.width if rows.by_outer else 0, rows.width if rows.inner > 1 else 0)


@lru_cache(maxsize=4096)
def arrange(
    shape: Ints, dimensions: int, strides: tuple[Ints, ...], itemsize: int
) -> tuple[Rows, tuple[Steps, ...], tuple[bool, ...]]:
    """The rows, each tensor's steps, and which tensors are read in place.

    The leading dimensions are cut in two, in the same place for all: there where the most tensors can be read.
    """
    leading = [i for i in range(len(shape) - dimensions) if shape[i] != 1]
    normalized = [i for i in range(len(shape) - dimensions, len(shape)) if shape[i] != 1]
    cuts = [possible_cuts(shape, of_one, leading, normalized) for of_one in strides]
    cut = max(range(len(leading) + 1), key=lambda k: sum(k in possible for possible in cuts))
    inner = math.prod(shape[i] for i in leading[cut:])
    count = math.prod(shape[i] for i in leading)
    rows = Rows(count, math.prod(shape[i] for i in normalized), inner, inner < count, 1, itemsize)
    steps = tuple(
        Steps(of_one[leading[cut - 1]] if cut else 0, of_one[leading[-1]] if cut < len(leading) else 0)
        if cut in possible
        else dense_steps(rows)
        for of_one, possible in zip(strides, cuts, strict=True)
    )
    unit = gcd(16 // itemsize, rows.width, *(number for step in steps for number in step))
    return rows._replace(unit=unit), steps, tuple(cut in possible for possible in cuts)


def possible_cuts(shape: Ints, strides: Ints, leading: list[int], normalized: list[int]) -> tuple[int, ...]:
    """Where the leading dimensions may be cut so that each part has one step from row to row; nowhere if a row is not
    one run of memory."""
    if normalized and not (strides[normalized[-1]] == 1 and collapses(shape, strides, normalized)):
        return ()
    return tuple(
        k
        for k in range(len(leading) + 1)
        if collapses(shape, strides, leading[:k]) and collapses(shape, strides, leading[k:])
    )


def collapses(shape: Ints, strides: Ints, dimensions: list[int]) -> bool:
    return all(strides[i] == strides[j] * shape[j] for i, j in itertools.pairwise(dimensions))
