"""Which path attention takes and how large its tiles are: counted from shapes, with no tuning at start-up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import torch

from fastdl.kernels import tuned
from fastdl.kernels.configs import power_of_two


@dataclass(frozen=True)
class Limits:
    """Where one path ends and the next begins.

    ``decoding_rows``: up to so many queries (of all heads that share keys) one tile of 16 rows holds a key head's.
    ``split_programs``: programs that keys are split for, where there are fewer: two to an SM of an H100.
    ``split_keys``: the least share of a split.
    ``short_keys``: so many keys, one tile's, go through the short backward pass; by the block of features.
    ``short_keys_of_more``: with a mask, dropout or a cap; ``short_keys_before_hopper``; ``short_keys_single``: float32.
    ``described``: from so many queries or keys on, a loop over them reads by descriptors.
    ``one_launch``: up to this length dK, dV and dQ share a launch, and D is computed on the way.
    ``mask_programs``: programs that the sums of a mask's gradient are shared out to, where it has fewer tiles.
    ``mask_numbers``: the most numbers that their partial sums may take.
    """

    decoding_rows: int = 16
    split_programs: int = 264
    split_keys: int = 256
    short_keys: tuple[tuple[int, int], ...] = ((64, 256), (128, 128))
    short_keys_of_more: tuple[tuple[int, int], ...] = ((64, 128),)
    short_keys_before_hopper: tuple[tuple[int, int], ...] = ((64, 128),)
    short_keys_single: tuple[tuple[int, int], ...] = ((64, 32),)
    described: int = 1024
    one_launch: int = 640
    mask_programs: int = 264
    mask_numbers: int = 2**24


LIMITS = Limits()


class Problem(NamedTuple):
    """A call as plans see it; ``samples`` counts sequences, and the lengths are the longest's.

    ``more``: there is a mask, dropout or a cap.
    """

    itemsize: int
    samples: int
    heads: int
    key_heads: int
    length: int
    keys: int
    features: int
    values: int
    windowed: bool
    more: bool
    varlen: bool
    architecture: int

    @property
    def block(self) -> int:
        return max(feature_block(self.features), feature_block(self.values))

    @property
    def chunk(self) -> int:
        """How many features the products over them take at a time: all of them, but where those are too many."""
        return CHUNKS.get((self.itemsize, self.block), self.block)


class Tile(NamedTuple):
    """Rows of queries x columns of keys, and of the part that is not a whole tile; warps and stages."""

    rows: int
    columns: int
    edge: int
    edges: bool
    interior: bool
    warps: int
    stages: int


class Forward(NamedTuple):
    """``described``: keys and values are read by descriptors, where they lie so that these can be made."""

    tile: Tile
    packed: bool
    splits: int
    described: bool = False


def feature_block(features: int) -> int:
    """The matrix instructions take 16 features at least."""
    return max(power_of_two(features), 16)


_architectures: dict[int | None, int] = {}


def architecture_of(device: torch.device) -> int:
    """90 for Hopper. Tensors without a GPU are planned for as on Hopper, or for ``assumed_architecture``."""
    if device.type != "cuda":
        return assumed_architecture
    return _capability(device.index if device.index is not None else torch.cuda.current_device())


assumed_architecture = 90


@cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


def _tile(rows: int, columns: int, warps: int, stages: int, count: int, width: int, windowed: bool) -> Tile:
    """``count`` others in blocks of ``width``: whether there are whole ones and a rest, and how wide the rest is."""
    rest = count % width
    edge = width if windowed else max(power_of_two(rest), 16)
    return Tile(rows, columns, edge, windowed or rest > 0, count >= width, warps, stages)


# (rows, columns, warps, stages) by bytes a number and block of features.
FORWARD = {
    (2, 16): (128, 64, 8, 3),
    (2, 32): (128, 64, 8, 3),
    (2, 64): (128, 64, 8, 3),
    (2, 128): (128, 64, 8, 2),
    (2, 256): (64, 32, 8, 2),
    (4, 16): (64, 32, 4, 2),
    (4, 32): (64, 32, 4, 2),
    (4, 64): (64, 32, 4, 2),
    (4, 128): (16, 32, 4, 2),
    (4, 256): (32, 16, 8, 2),
}
COLUMNS_BACKWARD = {
    (2, 16): (32, 128, 8, 2),
    (2, 32): (32, 128, 8, 2),
    (2, 64): (32, 128, 8, 2),
    (2, 128): (32, 128, 8, 2),
    (2, 256): (32, 32, 8, 2),
    (4, 16): (16, 32, 4, 2),
    (4, 32): (16, 32, 4, 2),
    (4, 64): (16, 32, 4, 2),
    (4, 128): (16, 16, 4, 2),
    (4, 256): (16, 16, 8, 2),
}
ROWS_BACKWARD = {
    (2, 16): (128, 64, 8, 2),
    (2, 32): (128, 64, 8, 2),
    (2, 64): (128, 64, 8, 2),
    (2, 128): (128, 32, 8, 2),
    (2, 256): (64, 16, 8, 2),
    (4, 16): (32, 32, 4, 2),
    (4, 32): (32, 32, 4, 2),
    (4, 64): (32, 16, 4, 2),
    (4, 128): (16, 16, 4, 2),
    (4, 256): (32, 16, 8, 2),
}
# Features that products take at a time, by bytes a number and block of features, where all of them at once spill.
CHUNKS = {(4, 256): 32}
# Where a mask, dropout or a cap needs registers besides.
FORWARD_OF_MORE = {(2, 128): (128, 32, 8, 2), (4, 64): (32, 32, 4, 2), (4, 128): (16, 16, 4, 2)}
COLUMNS_OF_MORE = {(2, 128): (16, 128, 8, 2), (4, 64): (16, 16, 4, 2)}
ROWS_OF_MORE = {(4, 64): (16, 16, 4, 2)}
# In place of both on the architectures beside Hopper, where those spill: before it, operands lie in registers.
FORWARD_ELSEWHERE = {
    80: {(2, 128): (128, 32, 8, 2), (4, 64): (32, 32, 4, 2), (4, 128): (16, 16, 4, 2)},
    100: {(4, 64): (32, 32, 4, 2)},
}
COLUMNS_ELSEWHERE = {
    80: {(2, 64): (16, 128, 8, 2), (2, 128): (32, 64, 8, 2), (4, 256): (16, 16, 8, 1)},
    100: {(4, 64): (16, 16, 4, 2), (4, 128): (16, 16, 4, 1)},
}
# Of the short backward pass: (rows, warps) for up to 64, 128 and 256 keys.
SHORT_ROWS = ((64, 4), (32, 8), (16, 8))
SHORT_ROWS_OF_MORE = ((32, 8), (16, 8), (16, 8))
SHORT_ROWS_SINGLE = (16, 4)
# (rows, columns, warps)
MASK_TILE = (64, 32, 8)
MASK_TILE_LARGE = (16, 32, 4)
MASK_TILE_CHUNKED = (16, 32, 8)


Sizes = tuple[int, int, int, int]
Table = dict[tuple[int, int], Sizes]


def _sizes(problem: Problem, usual: Table, of_more: Table, elsewhere: dict[int, Table]) -> Sizes:
    at = (problem.itemsize, problem.block)
    found = of_more.get(at, usual[at]) if problem.more else usual[at]
    rows, columns, warps, stages = elsewhere.get(family(problem.architecture), {}).get(at, found)
    return rows, columns, warps, 1 if problem.architecture in SMALL_SHARED and problem.block >= 128 else stages


def family(architecture: int) -> int:
    """80, 90 or 100, whose plans are the nearest: consumers' Blackwell (120) has the matrix instructions of 80."""
    if architecture < 90 or architecture >= 120:
        return 80
    return 90 if architecture < 100 else 100


# A program may have 99 KiB of shared memory there; loads are then not asked for ahead.
SMALL_SHARED = frozenset({86, 87, 89, 120, 121})


@tuned.planned
@lru_cache(maxsize=4096)
def forward(problem: Problem, limits: Limits) -> Forward:
    rows, columns, warps, stages = _sizes(problem, FORWARD, FORWARD_OF_MORE, FORWARD_ELSEWHERE)
    group = problem.heads // problem.key_heads
    windowed = problem.windowed or problem.varlen
    if problem.length * group <= limits.decoding_rows and not problem.varlen:
        programs = problem.samples * problem.key_heads
        splits = max(min(limits.split_programs // programs, problem.keys // limits.split_keys), 1)
        columns, warps, stages = tuned.sizes("attention_decoding", (columns, 4, stages), **bucket_of(problem))
        # Lengths grow by one from call to call: the code for a rest of any width is compiled once.
        tile = Tile(16, columns, columns, True, True, warps, stages)
        return Forward(tile, group > 1, splits)
    rows, columns, warps, stages = tuned.sizes(
        "attention_forward", (rows, columns, warps, stages), **bucket_of(problem)
    )
    rows = min(rows, max(power_of_two(problem.length), 16))
    tile = _tile(rows, columns, warps, stages, problem.keys, columns, windowed)
    return Forward(tile, False, 1, _has_descriptors(problem) and problem.keys >= limits.described)


def bucket_of(problem: Problem) -> dict[str, int]:
    """What calls have in common that share tuned sizes."""
    return {
        "itemsize": problem.itemsize,
        "block": problem.block,
        "length": power_of_two(problem.length),
        "keys": power_of_two(problem.keys),
        "heads": power_of_two(problem.samples * problem.heads),
        "group": problem.heads // problem.key_heads,
        "windowed": problem.windowed,
        "more": problem.more,
        "varlen": problem.varlen,
    }


def _has_descriptors(problem: Problem) -> bool:
    """Whether loops read by descriptors, from Hopper on.

    Not in a packed batch, where a tile may reach into the next sequence, of which a descriptor does not know. Not where
    Blackwell's code spilled with them (16 and 24 bytes, at 128 registers).
    """
    architecture = family(problem.architecture)
    spills = architecture == 100 and problem.block >= (128 if problem.more else 256)
    return architecture >= 90 and not spills and problem.itemsize == 2 and not problem.varlen


def _short_rows(columns: int, problem: Problem) -> tuple[int, int]:
    """Rows and warps of the short backward pass."""
    if problem.itemsize == 4:
        return SHORT_ROWS_SINGLE
    return (SHORT_ROWS_OF_MORE if problem.more else SHORT_ROWS)[0 if columns <= 64 else 1 if columns <= 128 else 2]


class Backward(NamedTuple):
    """``kind``: short, one_launch or general. Of short the first tile alone is of use. ``described``: see `Forward`."""

    kind: str
    keys: Tile
    queries: Tile
    described: bool = False


@tuned.planned
@lru_cache(maxsize=4096)
def backward(problem: Problem, limits: Limits) -> Backward:
    windowed = problem.windowed or problem.varlen
    shorts = limits.short_keys_of_more if problem.more else limits.short_keys
    if problem.itemsize == 4:
        shorts = limits.short_keys_single if family(problem.architecture) > 80 else ()
    elif family(problem.architecture) == 80 and not problem.more:
        shorts = limits.short_keys_before_hopper
    most = max((keys for block, keys in shorts if problem.block <= block), default=0)
    if problem.keys <= most:
        columns = max(power_of_two(problem.keys), 16)
        rows, warps = tuned.sizes("attention_backward_short", _short_rows(columns, problem), **bucket_of(problem))
        tile = _tile(rows, columns, warps, 2, problem.length, rows, windowed)
        return Backward("short", tile, tile)
    found = _sizes(problem, COLUMNS_BACKWARD, COLUMNS_OF_MORE, COLUMNS_ELSEWHERE)
    rows, columns, warps, stages = tuned.sizes("attention_backward_keys", found, **bucket_of(problem))
    keys = _tile(rows, columns, warps, stages, problem.length, rows, windowed)
    found = _sizes(problem, ROWS_BACKWARD, ROWS_OF_MORE, {})
    rows, columns, warps, stages = tuned.sizes("attention_backward_queries", found, **bucket_of(problem))
    queries = _tile(rows, columns, warps, stages, problem.keys, columns, windowed)
    # Blackwell's code for both shares with a window spilled (16 bytes, 64 features), and so did that of products by
    # chunks with a mask, dropout and a cap (32 bytes before Hopper, 24 on it).
    most = 128 if problem.windowed and family(problem.architecture) == 100 else limits.one_launch
    if problem.more and problem.chunk < problem.block:
        most = 0
    kind = "one_launch" if max(problem.length, problem.keys) <= min(most, limits.one_launch) else "general"
    long = kind == "general" and min(problem.length, problem.keys) >= limits.described
    return Backward(kind, keys, queries, long and _has_descriptors(problem))


class MaskPlan(NamedTuple):
    rows: int
    columns: int
    tiles: int
    chunks: int
    warps: int


@tuned.planned
@lru_cache(maxsize=4096)
def mask_gradient(problem: Problem, shape: tuple[int, ...], limits: Limits) -> MaskPlan:
    if problem.chunk < problem.block:
        rows, columns, warps = MASK_TILE_CHUNKED
    else:
        rows, columns, warps = MASK_TILE if problem.itemsize == 2 and problem.block <= 128 else MASK_TILE_LARGE
    rows, columns, warps = tuned.sizes("attention_mask_gradient", (rows, columns, warps), **bucket_of(problem))
    samples, heads, length, keys = shape
    row_blocks, column_blocks = -(-problem.length // rows), -(-problem.keys // columns)
    own = samples * heads * (row_blocks if length > 1 else 1) * (column_blocks if keys > 1 else 1)
    total = problem.samples * problem.heads * row_blocks * column_blocks // own
    numbers = samples * heads * length * keys
    chunks = max(min(limits.mask_programs // own, total, limits.mask_numbers // numbers), 1)
    return MaskPlan(rows, columns, own, chunks, warps)
