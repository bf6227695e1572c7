"""What one kernel's machine code uses: the numbers that are held to limits, cached, and written into the table."""

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
class Resources:
    """One kernel on one architecture.

    ``registers``, ``local_bytes``: per thread; ``shared_bytes``: per block, without what the launch adds.
    ``spill_store_bytes``, ``spill_load_bytes``: bytes that the code moves to and from local memory, once through.
    ``loads``, ``stores``: of global memory, in the machine code. ``matrix``: matrix instructions by class.
    ``float_atomics``: atomic additions of floating-point numbers. ``arguments``: the accesses of each pointer argument,
    in the code that the assembler was given; empty where that was not asked for.
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
    return Resources(**entry, loads=loads, stores=stores, arguments=arguments)


def _widths(entry: Mapping[str, int]) -> dict[int, int]:
    # JSON knows no integer keys.
    return {int(width): count for width, count in entry.items()}
