"""How large the convolutions' tiles are, and how work is shared out: counted from a call's sizes, with no tuning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from fastdl.kernels import tuned
from fastdl.kernels.attention_plan import family
from fastdl.kernels.configs import power_of_two
from fastdl.kernels.convolution_layout import Geometry


@dataclass(frozen=True)
class Limits:
    """What bounds a program, each with its reason.

    ``few``: groups of fewer channels than a matrix instruction has columns take the direct kernels.
    ``flat``: so many channels or fewer share their block of depth with the next kernel positions.
    ``rows``: of a tile of half precision; ``rows_single`` of float32.
    ``columns``, ``columns_single``: the most columns, where there are so many channels. ``columns_data``: of the
    input's gradient, whose epilogue holds a tile of x beside: with 128 it spilled on sm_90.
    ``flat_columns``, ``flat_depth``: where an operand is gathered number by number, each with an address of its own.
    ``programs``: with fewer programs than this, one to an SM of an H100, tiles have half the rows.
    ``split_programs``: programs that the weight's gradient is shared out to.
    ``split_numbers``: the most numbers that its partial sums may take: 64 MiB.
    ``direct_bytes``: a line of a direct tile, along the channels; ``direct_values`` of it are 16 a thread at 4 warps,
    ``direct_values_single`` 8, for with 16 float32 spilled on sm_90.
    ``items``: partial results that one program merges; more are merged twice.
    """

    few: int = 16
    flat: int = 8
    rows: int = 128
    rows_single: int = 64
    columns: int = 128
    columns_single: int = 64
    columns_data: int = 64
    flat_columns: int = 64
    flat_depth: int = 32
    programs: int = 132
    split_programs: int = 264
    split_numbers: int = 2**24
    direct_values: int = 2048
    direct_values_single: int = 1024
    direct_bytes: int = 128
    items: int = 256


LIMITS = Limits()


# Of the forward's tiles, where the usual number spilled on sm_100 (8 to 24 bytes).
BLACKWELL_WARPS = {(128, 64): 4, (128, 16): 8}


class Problem(NamedTuple):
    """A call as plans see it. ``outers``: parts that tiles do not cross, which are samples where ``by_sample``.

    ``precise``: float32 operands are not rounded to TF32.
    """

    geometry: Geometry
    itemsize: int
    outers: int
    by_sample: bool
    precise: bool
    architecture: int


class Tile(NamedTuple):
    """``rows`` x ``columns`` values in steps of ``depth``, in ``chunks`` chunks of rows to an outer part or phase."""

    rows: int
    columns: int
    depth: int
    chunks: int
    flat: bool
    warps: int
    stages: int


class Weight(NamedTuple):
    """A tile, and ``splits`` splits of ``tiles`` steps of depth each."""

    tile: Tile
    tiles: int
    splits: int


def is_direct(geometry: Geometry, limits: Limits) -> bool:
    return geometry.groups > 1 and min(geometry.depth, geometry.columns) < limits.few


def is_flat(geometry: Geometry, limits: Limits) -> bool:
    return geometry.depth <= limits.flat and geometry.taps > 1


def periods(geometry: Geometry) -> tuple[int, int]:
    """How far apart, in kernel positions, those lie that meet one phase of input positions."""
    first, second = (s // gcd(s, d) for s, d in zip(geometry.stride, geometry.dilation, strict=True))
    return first, second


def rows_of_outer(problem: Problem, positions: int) -> int:
    """Positions that tiles run through: of a sample under group norm, else of all."""
    return positions if problem.by_sample else problem.geometry.samples * positions


def rows_of_phase(problem: Problem) -> int:
    """Rows of the largest phase of the input's gradient, in an outer part."""
    geometry = problem.geometry
    (height, width), (down, along) = geometry.size, geometry.stride
    return rows_of_outer(problem, -(-height // down) * -(-width // along))


def _block(count: int, most: int) -> int:
    return min(max(power_of_two(count), 16), most)


def _depth(count: int, most: int) -> int:
    """The largest block of depth that divides the channels, if it is not too small; else one with a rest."""
    block = _block(count, most)
    while block > 32 and count % block and count % (block // 2) == 0:
        block //= 2
    return block


def _tile(problem: Problem, rows: int, columns: int, depth: int, programs: int, widest: int, limits: Limits) -> Tile:
    """``rows``, ``columns``, ``depth``: how many there are; ``programs``: by how many each tile is multiplied."""
    single = problem.itemsize == 4
    width = _block(columns, min(widest, limits.columns_single) if single else widest)
    height = _block(rows, limits.rows_single if single else limits.rows)
    if height > 64 and -(-rows // height) * -(-columns // width) * programs < limits.programs:
        height = 64
    step = _depth(depth, 16 if problem.precise else 32 if single else 64)
    warps = 8 if height * width >= 128 * 64 else 4
    return Tile(height, width, step, -(-rows // height), False, warps, 2 if problem.precise else 3)


@tuned.planned
@lru_cache(maxsize=4096)
def forward(problem: Problem, limits: Limits) -> Tile:
    geometry = problem.geometry
    rows = rows_of_outer(problem, geometry.out_positions)
    if is_direct(geometry, limits):
        return _direct("direct_convolution_forward", problem, rows, geometry.out_channels, limits)
    programs = problem.outers * geometry.groups
    tile = _tile(problem, rows, geometry.columns, geometry.depth, programs, limits.columns, limits)
    if is_flat(geometry, limits):
        depth = _block(geometry.depth * geometry.taps, min(limits.flat_depth, 16 if problem.precise else 32))
        tile = tile._replace(flat=True, depth=depth, warps=8 if tile.rows * depth >= 4096 else 4)
    elif family(problem.architecture) == 100:
        tile = tile._replace(warps=BLACKWELL_WARPS.get((tile.rows, tile.columns), tile.warps))
    return _in_chunks(_tuned("convolution_forward", problem, tile), rows)


@tuned.planned
@lru_cache(maxsize=4096)
def data(problem: Problem, limits: Limits) -> Tile:
    geometry, rows = problem.geometry, rows_of_phase(problem)
    if is_direct(geometry, limits):
        return _direct("direct_convolution_data", problem, rows, geometry.channels, limits)
    phases = geometry.stride[0] * geometry.stride[1]
    programs = problem.outers * geometry.groups * phases
    tile = _tile(problem, rows, geometry.depth, geometry.columns, programs, limits.columns_data, limits)
    return _in_chunks(_tuned("convolution_data", problem, tile), rows)


def _tuned(name: str, problem: Problem, tile: Tile) -> Tile:
    sizes = (tile.rows, tile.columns, tile.depth, tile.warps, tile.stages)
    rows, columns, depth, warps, stages = tuned.sizes(name, sizes, **bucket_of(problem), flat=tile.flat)
    return tile._replace(rows=rows, columns=columns, depth=depth, warps=warps, stages=stages)


def _in_chunks(tile: Tile, rows: int) -> Tile:
    return tile._replace(chunks=-(-rows // tile.rows))


def bucket_of(problem: Problem) -> dict[str, int]:
    """What calls have in common that share tuned sizes."""
    geometry = problem.geometry
    return {
        "itemsize": problem.itemsize,
        "precise": problem.precise,
        "by_sample": problem.by_sample,
        "taps": geometry.taps,
        "stride": geometry.stride[0] * geometry.stride[1],
        "groups": power_of_two(geometry.groups),
        "depth": power_of_two(geometry.depth),
        "columns": power_of_two(geometry.columns),
        "positions": power_of_two(geometry.samples * geometry.out_positions),
    }


def _direct(name: str, problem: Problem, rows: int, channels: int, limits: Limits) -> Tile:
    columns = min(power_of_two(channels), max(limits.direct_bytes // problem.itemsize, 1))
    values = limits.direct_values_single if problem.itemsize == 4 else limits.direct_values
    height = min(power_of_two(rows), max(values // columns, 1))
    warps = min(max(height * columns * 4 // values, 1), 4)
    height, columns, warps = tuned.sizes(name, (height, columns, warps), **bucket_of(problem))
    return Tile(height, columns, 1, -(-rows // height), False, warps, 2)


@tuned.planned
@lru_cache(maxsize=4096)
def weight(problem: Problem, limits: Limits) -> Weight:
    geometry = problem.geometry
    positions = rows_of_outer(problem, geometry.out_positions)
    if is_direct(geometry, limits):
        taps = power_of_two(geometry.kernel[1])
        columns = min(power_of_two(geometry.out_channels), max(limits.direct_bytes // problem.itemsize, 1))
        height = min(power_of_two(positions), max(limits.direct_values // columns // taps, 1))
        warps = min(max(height * columns * taps // 512, 1), 8)
        sizes = (height, columns, warps)
        height, columns, warps = tuned.sizes("direct_convolution_weight", sizes, **bucket_of(problem))
        tile = Tile(height, columns, taps, -(-positions // height), False, warps, 2)
        others = -(-geometry.out_channels // columns) * geometry.kernel[0] * geometry.depth
    else:
        flat = is_flat(geometry, limits)
        count = geometry.depth * (geometry.taps if flat else 1)
        widest = limits.flat_columns if flat else limits.columns
        tile = _tile(problem, geometry.columns, count, positions, limits.programs, widest, limits)
        if problem.by_sample and problem.itemsize == 4:
            tile = tile._replace(warps=8)  # with 4 SiLU spilled on sm_80
        if flat:
            tile = tile._replace(flat=True, depth=min(tile.depth, limits.flat_depth))
        tile = _tuned("convolution_weight", problem, tile)
        blocks = -(-count // tile.columns) * (1 if flat else geometry.taps)
        others = blocks * -(-geometry.columns // tile.rows) * geometry.groups
        tile = tile._replace(chunks=-(-positions // tile.depth))
    total = tile.chunks * problem.outers
    room = max(limits.split_numbers // (geometry.out_channels * geometry.taps * geometry.depth), 1)
    tiles = -(-total // min(max(limits.split_programs // others, 1), total, room))
    return Weight(tile, tiles, -(-total // tiles))
