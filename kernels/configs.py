"""Which path a call takes, and how large its tiles are: counted from its shape, with no tuning at start-up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from fastdl.kernels import tuned
from fastdl.kernels.layout import Strides, View


@dataclass(frozen=True)
class Limits:
    """What bounds a program, each with its reason.

    ``forward_values``, ``backward_values``, ``backward_values_of_lines``, ``backward_values_of_more``: the largest tile
    kept on chip. 16 warps (512 threads) may use 128 of an SM's 65536 registers a thread. Forward: 32 float32 values of
    them; 64 spill with some activations. Backward keeps x and the gradient, two tiles. In channels last a thread also
    holds seven coefficients for each of 4 or 8 channels, and two tiles of 32 values spill there. So they do with a
    residual or the activation first, where the slope of sigmoid, tanh, SiLU, GELU or Mish stands beside a third tile.
    ``small_values``: groups smaller than this share a program.
    ``segment_bytes``: the least run of memory a line of a tile should cover, a sector of the L2 cache. Narrower tiles
    would fetch every sector for several programs.
    ``line_bytes``: the run that it does cover where the size is free: a whole cache line.
    ``split_values``: a tile of the split path: 16 values a thread at 8 warps, two or four accesses of 16 bytes.
    ``split_values_of_sums``: of its backward sums in float32: 8 values a thread. With 16, Mish spilled on sm_90.
    ``split_positions``: the most positions of such a tile in NCHW, 2 or 4 KiB in one run.
    ``reduce_programs``: programs that share out a pass which ends in partial results, about eight to an SM of an H100.
    ``apply_programs``: those of a pass that leaves none: more, so that the last wave is a small part.
    """

    forward_values: int = 16384
    backward_values: int = 16384
    backward_values_of_lines: int = 8192
    backward_values_of_more: int = 8192
    small_values: int = 1024
    segment_bytes: int = 32
    line_bytes: int = 128
    split_values: int = 4096
    split_values_of_sums: int = 2048
    split_positions: int = 1024
    reduce_programs: int = 1024
    apply_programs: int = 4096


LIMITS = Limits()


class Problem(NamedTuple):
    """A call as kernels see it: (outer, positions, groups x width), see `fastdl.kernels.tiles`.

    ``inner``: positions of a sample; ``by_sample``: positions run through samples that do not lie in one run.
    ``unit``: what all strides and extents are multiples of, up to 16 bytes. ``wide``: offsets need 64 bits.
    """

    outer: int
    groups: int
    width: int
    positions: int
    inner: int
    by_sample: bool
    channels_last: bool
    unit: int
    wide: bool
    itemsize: int

    @property
    def channels(self) -> int:
        return self.groups * self.width


class OnChip(NamedTuple):
    """A tile of ``positions`` x ``channels`` (powers of two) that holds ``groups`` whole groups."""

    positions: int
    channels: int
    groups: int
    table: int
    warps: int


class Split(NamedTuple):
    """Tiles of ``positions`` x ``channels``, ``tiles`` of them to a program, ``chunks`` programs to a channel block."""

    positions: int
    channels: int
    tiles: int
    chunks: int
    programs: int
    warps: int


class Merge(NamedTuple):
    """Tiles of ``rows`` chunks x ``channels`` that hold ``groups`` groups, or one in ``blocks`` blocks."""

    rows: int
    channels: int
    groups: int
    table: int
    blocks: int
    warps: int


# Beyond this a 32-bit position might wrap around in the last tile, behind its mask.
FARTHEST = 2**31 - 2**20


@lru_cache(maxsize=4096)
def problem_of(view: View, groups: int | None, itemsize: int, *strides: Strides) -> Problem:
    """The problem of a call; ``groups`` None is batch norm, whose positions run through all samples."""
    samples, channels, positions = view.samples, view.channels, view.positions
    run = view.positions  # positions in one run of memory
    if groups is None:
        step = [positions * (s.line if view.channels_last else 1) for s in strides]
        by_sample = samples > 1 and any(s.sample != there for s, there in zip(strides, step, strict=True))
        outer, width, total = 1, 1, samples * positions
        groups = channels
        run = positions if by_sample else total
    else:
        by_sample = False
        outer, width, total = samples, channels // groups, positions
    unit = gcd(16 // itemsize, channels if view.channels_last else run)
    for s in strides:
        unit = gcd(unit, s.sample if by_sample or outer > 1 else 0, s.line)
    last_sample = samples - 1 if by_sample else 0
    lines = run if view.channels_last else channels
    along = channels if view.channels_last else run
    span = max(last_sample * s.sample + (lines - 1) * s.line + along for s in strides)
    wide = max(span, total) >= FARTHEST
    return Problem(outer, groups, width, total, run, by_sample, view.channels_last, unit, wide, itemsize)


def power_of_two(n: int) -> int:
    """The smallest power of two of at least n."""
    return 1 << max(n - 1, 0).bit_length()


@tuned.planned
@lru_cache(maxsize=4096)
def on_chip(problem: Problem, backward: bool, limits: Limits, more: bool = False) -> OnChip | None:
    """The tile that keeps whole groups on chip, or None where they are too large or their lines too short.

    ``more``: there is a residual, or the activation comes first.

    A group that fits is always kept, however few there are: its 32 or 64 KiB are soon read even by one SM alone, and
    the split path costs two further launches, and reads everything twice.
    """
    most = limits.forward_values
    if backward:
        most = limits.backward_values_of_lines if problem.channels_last else limits.backward_values
        most = min(most, limits.backward_values_of_more) if more else most
    positions = power_of_two(problem.positions)
    if problem.wide or positions * power_of_two(problem.width) > most:
        return None
    room = most // positions
    wanted = max(limits.small_values // positions, 1)
    if problem.channels_last:
        wanted = max(wanted, limits.line_bytes // problem.itemsize)
    groups = min(max(min(wanted, room) // problem.width, 1), problem.groups)
    if problem.channels_last:
        aligned = problem.unit // gcd(problem.unit, problem.width)
        groups -= groups % aligned if groups > aligned and groups < problem.groups else 0
        if groups < problem.groups and groups * problem.width * problem.itemsize < limits.segment_bytes:
            return None
    channels = power_of_two(groups * problem.width)
    warps = min(max(positions * channels // 512, 1), 16)
    groups, warps = tuned.sizes(
        "norm_backward" if backward else "norm_forward", (groups, warps), **bucket_of(problem), more=more
    )
    groups = min(groups, problem.groups)
    channels = power_of_two(groups * problem.width)
    return OnChip(positions, channels, groups, power_of_two(groups), warps)


def bucket_of(problem: Problem) -> dict[str, int]:
    """What problems have in common that share tuned sizes."""
    return {
        "itemsize": problem.itemsize,
        "unit": problem.unit,
        "channels_last": problem.channels_last,
        "positions": power_of_two(problem.positions),
        "width": power_of_two(problem.width),
        "channels": power_of_two(problem.channels),
        "outer": power_of_two(problem.outer),
    }


@tuned.planned
@lru_cache(maxsize=4096)
def split(problem: Problem, programs: int, limits: Limits, *, sums: bool = False, name: str = "norm_moments") -> Split:
    """Chunks of about ``programs`` programs; ``sums`` is the pass that sums the gradient's products.

    ``name``: the pass, among tuned sizes.
    """
    values = limits.split_values_of_sums if sums and problem.itemsize == 4 else limits.split_values
    if problem.channels_last:
        channels = min(power_of_two(problem.channels), max(limits.line_bytes // 2, 1))
        positions = min(power_of_two(problem.positions), max(values // channels, 1))
    else:
        positions = min(power_of_two(problem.positions), limits.split_positions)
        channels = min(power_of_two(problem.channels), max(values // positions, 1))
    warps = min(max(positions * channels * 8 // values, 1), 8)
    positions, channels, warps = tuned.sizes(name, (positions, channels, warps), **bucket_of(problem))
    total = -(-problem.positions // positions)
    others = problem.outer * -(-problem.channels // channels)
    tiles = -(-total // min(max(programs // others, 1), total))
    chunks = -(-total // tiles)
    return Split(positions, channels, tiles, chunks, others * chunks, warps)


@lru_cache(maxsize=4096)
def merge(problem: Problem, chunks: int) -> Merge:
    """Four channels of batch norm to a program are a sector of float64; a group of group norm has its own program."""
    groups = max(min(4 // problem.width, problem.groups), 1)
    channels = min(power_of_two(groups * problem.width), 1024)
    blocks = -(-problem.width // channels) if groups == 1 else 1
    rows = max(min(power_of_two(chunks), 1024 // channels), 1)
    return Merge(rows, channels, groups, power_of_two(groups), blocks, 4)
