"""Everything that was measured, for programs: what ``fastdl inspect --json`` prints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import fastdl

from . import cuda_code, instructions, triton_code
from .catalog import CUDA, TRITON
from .measuring import Failure, Row
from .occupancy import ARCHITECTURES
from .tools import cuobjdump_version

# Goes up when a key is taken away or changes its meaning.
SCHEMA_VERSION = 1


def document(
    rows: Sequence[Row], failures: Sequence[Failure], missing: Mapping[str, str], architectures: Sequence[int]
) -> dict[str, Any]:
    """Ready for JSON. Bytes are of shared memory per block, of spills per thread; shares are of 1."""
    return {
        "schema_version": SCHEMA_VERSION,
        "fastdl": fastdl.__version__,
        "compilers": compilers(rows),
        "architectures": {f"sm_{number}": asdict(ARCHITECTURES[number]) for number in architectures},
        "kernels": [_kernel(row) for row in rows],
        "failures": [{**asdict(failure), "architecture": f"sm_{failure.architecture}"} for failure in failures],
        "missing": dict(missing),
    }


def compilers(rows: Sequence[Row]) -> dict[str, str]:
    """The versions that the numbers were made with, of the compilers that made any."""
    found: dict[str, str] = {}
    for row in rows:
        if row.language == TRITON:
            found[TRITON] = triton_code.versions()
            found[f"{TRITON} sm_{row.architecture}"] = triton_code.assembler(row.architecture)
        else:
            found[CUDA] = cuda_code.versions()
    if rows:
        found["cuobjdump"] = cuobjdump_version()
    return {name: version for name, version in found.items() if version}


def _kernel(row: Row) -> dict[str, Any]:
    resources, launch, fits = row.resources, row.resources.launch, row.occupancy
    classes = instructions.by_class(resources.instructions)
    total = sum(classes.values())
    return {
        "architecture": f"sm_{row.architecture}",
        "language": row.language,
        "subject": row.subject,
        "name": row.name,
        "full_name": row.full_name,
        "threads_per_block": {"value": launch.threads, "exact": launch.exact},
        "registers_per_thread": resources.registers,
        "shared_bytes": {
            "static": launch.static_shared_bytes,
            "dynamic": launch.dynamic_shared_bytes,
            "dynamic_by_shape": row.is_bound,
        },
        "spilled_bytes": {
            "local": resources.local_bytes,
            "stored": resources.spill_store_bytes,
            "loaded": resources.spill_load_bytes,
        },
        "launch_bounds_minimum_blocks": launch.minimum_blocks or None,
        "tensor_memory_columns": launch.tensor_memory_columns,
        "occupancy": {"for_threads": launch.threads, **asdict(fits), "is_upper_bound": row.is_bound},
        "instructions": {
            "total": total,
            "by_class": {
                name: {"count": count, "share": count / total} for name, count in sorted(classes.items()) if total
            },
            "by_name": dict(sorted(resources.instructions.items())),
            "tensor": dict(resources.matrix),
            "copies": instructions.by_name(resources.instructions, instructions.COPY),
        },
        "global_loads": _by_width(resources.loads),
        "global_stores": _by_width(resources.stores),
        "pointer_arguments": {
            name: {"loads": _by_width(access.loads), "stores": _by_width(access.stores)}
            for name, access in resources.arguments.items()
        },
    }


def _by_width(widths: Mapping[int, int]) -> dict[str, int]:
    return {str(width): count for width, count in sorted(widths.items(), reverse=True)}
