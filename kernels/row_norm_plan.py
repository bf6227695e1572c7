"""Which path a call over rows takes, and how large its tiles are: counted from its shape, with no tuning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import torch

from fastdl.kernels import tuned
from fastdl.kernels.configs import power_of_two
from fastdl.kernels.row_norm_layout import Rows


@dataclass(frozen=True)
class Limits:
    """What bounds a program, each with its reason.

    ``forward_columns``: the widest row kept on chip: 32 values a thread at 16 warps. 64 would be all of its registers.
    ``backward_columns``: the same where sums over rows stay in registers beside the row and its gradient.
    ``gradient_bytes``: where there are no such sums, 32 values a thread of half precision; those of float32 spill.
    ``forward_values``, ``backward_values``: of a tile that narrower rows share.
    ``shared_bytes``: for tiles that backward asks for ahead of their turn; what an SM of an A100 has.
    ``stages``: the most that is asked for, counting the tile at hand. Programs of which an SM has four make do with
    ``stages_of_four``: with one more, layer norm took 133 registers in float32 on sm_100.
    ``wide_values``: a step along a row that is not kept: 16 values a thread at 8 warps.
    ``column_rows``, ``column_bytes``: a tile of the sums over rows alone: a whole cache line of each row.
    ``column_programs``: programs of it to an SM, of 4 warps with 80 registers a thread.
    ``programs_each``: programs to an SM that a call should have at least, where it has rows enough.
    """

    forward_columns: int = 16384
    backward_columns: int = 8192
    gradient_bytes: int = 32768
    forward_values: int = 4096
    backward_values: int = 2048
    shared_bytes: int = 160 * 1024
    stages: int = 3
    stages_of_four: int = 2
    wide_values: int = 4096
    column_rows: int = 32
    column_bytes: int = 128
    column_programs: int = 6
    programs_each: int = 2


LIMITS = Limits()

# Beyond this a row's 32-bit number might wrap around in a program's next tile, behind its mask.
FARTHEST = 2**31 - 2**24

# Registers a thread, to which what ships is held, and so the warps that an SM has room for.
REGISTERS = 128
RESIDENT_WARPS = 65536 // (32 * REGISTERS)


class OnChip(NamedTuple):
    """Tiles of ``rows`` x ``columns`` (powers of two) that hold whole rows, for ``programs`` programs.

    ``stages``: of so many tiles at once backward has loads under way.
    """

    rows: int
    columns: int
    programs: int
    warps: int
    stages: int = 1


class Wide(NamedTuple):
    """Rows in ``parts`` parts, a program each, of ``tiles`` steps of ``columns`` values."""

    columns: int
    tiles: int
    parts: int
    programs: int
    warps: int


class Columns(NamedTuple):
    """Tiles of ``rows`` x ``columns``, and ``chunks`` programs to a block of columns, which share out the rows."""

    rows: int
    columns: int
    chunks: int
    programs: int
    warps: int


def processors(device: torch.device) -> int:
    """How many SMs share the work. Tensors without a GPU are planned for as on an H100."""
    if device.type != "cuda":
        return 132
    return _processors(device.index if device.index is not None else torch.cuda.current_device())


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@tuned.planned
@lru_cache(maxsize=4096)
def forward_on_chip(rows: Rows, processors: int, limits: Limits) -> OnChip | None:
    """A program for each tile; None where the rows are too wide."""
    columns = power_of_two(rows.width)
    if columns > limits.forward_columns:
        return None
    height, warps = tile(rows, columns, processors, limits.forward_values, 32, limits)
    height, warps = tuned.sizes("row_norm_forward", (height, warps), **bucket_of(rows))
    return OnChip(height, columns, -(-rows.rows // height), warps)


@tuned.planned
@lru_cache(maxsize=4096)
def backward_on_chip(rows: Rows, processors: int, sums: bool, tensors: int, limits: Limits) -> OnChip | None:
    """As many programs as there is room for, each of which goes over its share of the tiles.

    ``sums``: there are sums over rows; ``tensors``: how many are read.
    """
    columns = power_of_two(rows.width)
    if columns > (limits.backward_columns if sums else limits.gradient_bytes // rows.itemsize):
        return None
    height, warps = tile(rows, columns, processors, limits.backward_values, 16, limits)
    at_once = programs_at_once(warps)
    ahead = limits.shared_bytes // (at_once * tensors * height * columns * rows.itemsize)
    stages = min(1 + ahead, limits.stages if at_once < 4 else limits.stages_of_four)
    height, warps, stages = tuned.sizes(
        "row_norm_backward", (height, warps, stages), **bucket_of(rows), sums=sums, tensors=tensors
    )
    tiles = -(-rows.rows // height)
    programs = min(processors * programs_at_once(warps), tiles)
    return OnChip(height, columns, programs, warps, min(stages, -(-tiles // programs)))


def bucket_of(rows: Rows) -> dict[str, int]:
    """What calls have in common that share tuned sizes."""
    width = power_of_two(rows.width)
    return {"itemsize": rows.itemsize, "unit": rows.unit, "width": width, "rows": power_of_two(rows.rows)}


def tile(rows: Rows, columns: int, processors: int, values: int, each: int, limits: Limits) -> tuple[int, int]:
    """Rows of a tile, and warps of ``each`` values a thread, or 8 where few rows are shared out to more programs."""
    whole = max(values // columns, 1)
    share = max(rows.rows // (processors * limits.programs_each), 1)
    height = min(whole, 1 << (share.bit_length() - 1))
    warps = height * columns // (32 * (each if height == whole else 8))
    return height, min(max(warps, 1), 16)


def programs_at_once(warps: int) -> int:
    """How many programs an SM has room for."""
    return max(RESIDENT_WARPS // warps, 1)


@tuned.planned
@lru_cache(maxsize=4096)
def wide(rows: Rows, processors: int, limits: Limits) -> Wide:
    """Where there are fewer rows than room for programs, several share a row."""
    columns = min(limits.wide_values, power_of_two(rows.width))
    warps = min(max(columns // 512, 1), 8)
    columns, warps = tuned.sizes("row_norm_wide", (columns, warps), **bucket_of(rows))
    total = -(-rows.width // columns)
    room = processors * programs_at_once(warps)
    tiles = -(-total // min(max(room // rows.rows, 1), total))
    parts = -(-total // tiles)
    return Wide(columns, tiles, parts, rows.rows * parts, warps)


@tuned.planned
@lru_cache(maxsize=4096)
def column_blocks(rows: Rows, processors: int, limits: Limits) -> Columns:
    """As many programs as there is room for."""
    columns = min(limits.column_bytes // rows.itemsize, power_of_two(rows.width))
    height = min(limits.column_rows, power_of_two(rows.rows))
    warps = min(max(height * columns * rows.itemsize // 1024, 1), 4)
    height, columns, warps = tuned.sizes("row_norm_columns", (height, columns, warps), **bucket_of(rows))
    blocks = -(-rows.width // columns)
    room = processors * limits.column_programs
    chunks = min(max(room // blocks, 1), -(-rows.rows // height))
    return Columns(height, columns, chunks, blocks * chunks, warps)
