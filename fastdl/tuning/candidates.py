"""Which sizes are tried beside a plan's own: one of them halved or doubled, as far as the kernel allows it."""

from __future__ import annotations

import math

from fastdl.kernels.tuned import FIELDS, Sizes

WARPS = (1, 16)
STAGES = (1, 5)
# The matrix instructions take 16 rows, columns and steps of depth at least; a block that is read by a descriptor has
# 256 rows at most.
MATRIX = (16, 256)
MATRIX_NAMES = frozenset(
    name
    for name in FIELDS
    if name.startswith(("attention", "convolution"))  # the direct convolutions have no products of matrices
)
LARGEST_SIZE = 1 << 14
# How much larger or smaller than the plan's own a tile may become. Beyond, registers spill, or loads are too narrow;
# what of the rest does not fit into the device's shared memory is refused when it is launched, and passed over.
MOST_GROWTH, MOST_SHRINKING = 4, 8


def bounds(name: str, field: str) -> tuple[int, int]:
    """The least and the most of one size."""
    if field == "warps":
        return WARPS
    if field == "stages":
        return STAGES
    return MATRIX if name in MATRIX_NAMES else (1, LARGEST_SIZE)


def volume(name: str, sizes: Sizes) -> int:
    """Values of a tile: the product of all sizes but warps and stages."""
    return math.prod(size for field, size in zip(FIELDS[name], sizes, strict=True) if field not in ("warps", "stages"))


def neighbours(name: str, sizes: Sizes, index: int, default: Sizes) -> list[Sizes]:
    """The sizes with the one at ``index`` halved or doubled (stages: one less or more), smaller first.

    ``default`` are the plan's own, by which tiles are bounded.
    """
    field = FIELDS[name][index]
    size = sizes[index]
    least, most = bounds(name, field)
    others = (size - 1, size + 1) if field == "stages" else (size // 2, size * 2)
    found = [(*sizes[:index], other, *sizes[index + 1 :]) for other in others if least <= other <= most]
    own = volume(name, default)
    return [
        one for one in found if own <= volume(name, one) * MOST_SHRINKING and volume(name, one) <= own * MOST_GROWTH
    ]


def all_neighbours(name: str, default: Sizes) -> list[Sizes]:
    """Those of every size of a plan's own: the first steps of a search."""
    return [one for index in range(len(default)) for one in neighbours(name, default, index, default)]
