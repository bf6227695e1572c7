"""What one kernel's machine code uses: the numbers that are shown, held to limits, and cached."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Width of an access in bytes per thread -> how many such instructions the code holds.
Widths = Mapping[int, int]


@dataclass(frozen=True)
class Access:
    """The loads and stores that one pointer argument is reached by."""

    loads: Widths = field(default_factory=dict)
    stores: Widths = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """What the code says of its launches.

    ``threads``: per block, the most where not ``exact``. ``minimum_blocks``: how many blocks of a multiprocessor the
    compiler was asked to leave room for, 0 where it was not asked. ``static_shared_bytes``: per block, without what the
    system reserves. ``dynamic_shared_bytes``: per block, what a launch asks for besides; None where that depends on the
    shape of the tensors. ``tensor_memory_columns``: of Blackwell's 512.
    """

    threads: int = 1024
    exact: bool = False
    minimum_blocks: int = 0
    static_shared_bytes: int = 0
    dynamic_shared_bytes: int | None = 0
    tensor_memory_columns: int = 0


@dataclass(frozen=True)
class Resources:
    """One kernel on one architecture.

    ``registers``, ``local_bytes``: per thread; ``shared_bytes``: per block, as the cubin records it (of CUDA C++
    without what the launch adds, from sm_90 on with what the system keeps), or of Triton what its launcher asks for.
    ``spill_store_bytes``, ``spill_load_bytes``: bytes that the code moves to and from local memory, once through.
    ``loads``, ``stores``: of global memory, in the machine code. ``matrix``: matrix instructions by class.
    ``float_atomics``: atomic additions of floating-point numbers. ``arguments``: the accesses of each pointer argument,
    in the code that the assembler was given; empty where that was not asked for. ``instructions``: how many there are
    of each, by the names of ``instructions.key``.
    """

    registers: int
    shared_bytes: int
    local_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    loads: Widths
    stores: Widths
    matrix: Mapping[str, int]
    float_atomics: int
    arguments: Mapping[str, Access] = field(default_factory=dict)
    instructions: Mapping[str, int] = field(default_factory=dict)
    launch: Launch = field(default_factory=Launch)

    @property
    def spilled_bytes(self) -> int:
        """What a thread has in local memory, or what the code moves to or from there once through: the most of them."""
        return max(self.local_bytes, self.spill_store_bytes, self.spill_load_bytes)


def to_json(resources: Mapping[str, Resources]) -> str:
    return json.dumps({name: asdict(entry) for name, entry in resources.items()}, indent=1, sort_keys=True)


def from_json(text: str) -> dict[str, Resources]:
    """The reverse of ``to_json``. Raises ValueError for anything else."""
    content: dict[str, dict[str, Any]] = json.loads(text)
    try:
        return {name: _resources(entry) for name, entry in content.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no resources of kernels: {error}") from error


def _resources(entry: dict[str, Any]) -> Resources:
    arguments = {
        name: Access(_widths(access["loads"]), _widths(access["stores"]))
        for name, access in entry.pop("arguments").items()
    }
    loads, stores = _widths(entry.pop("loads")), _widths(entry.pop("stores"))
    launch = Launch(**entry.pop("launch"))
    return Resources(**entry, loads=loads, stores=stores, arguments=arguments, launch=launch)


def _widths(entry: Mapping[str, int]) -> dict[int, int]:
    # JSON knows no integer keys.
    return {int(width): count for width, count in entry.items()}
