"""Holds what was measured against the limits that stand beside each kernel, and says in words what goes past one.

For Triton the limits are ``fastdl.kernels.shipped.Limits``. For CUDA C++ they are a JSON file beside the source,
``csrc/cuda/<op>.limits.json``: patterns of the kernels' demangled names, each with a ``CudaLimits``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fastdl.inspection.resources import Resources, Widths
from fastdl.kernels.shipped import Limits


@dataclass(frozen=True)
class CudaLimits:
    """The limits of every kernel whose name fits a pattern.

    ``registers``, ``shared_bytes`` (static), ``spill_bytes``: the most. ``wide_loads``, ``wide_stores``: how many
    instructions of at least ``access_bytes`` there must be; ``narrow_loads``, ``narrow_stores``: how many narrower ones
    there may be, None for any number (kernels whose vectors are one number wide). A tensor that is no longer reached in
    whole vectors has fewer wide instructions and several narrow ones for each: it fails on both counts.
    ``matrix``: as in ``Limits``. ``architectures``: where kernels of these names exist; everywhere if None.
    """

    registers: int
    shared_bytes: int
    wide_loads: int
    wide_stores: int
    narrow_loads: int | None
    narrow_stores: int | None
    access_bytes: int = 16
    spill_bytes: int = 0
    matrix: Mapping[int, str] | None = None
    architectures: tuple[int, ...] | None = None


def check_triton(name: str, architecture: int, resources: Resources, limits: Limits) -> list[str]:
    """One sentence for each limit that is not kept; none if all are."""
    found = _check_common(name, architecture, resources, limits)
    place = f"{name} on sm_{architecture}"
    for argument, access in resources.arguments.items():
        if argument in limits.narrow:
            continue
        if not access.loads and not access.stores:
            found.append(
                f"{place}: {argument} is neither loaded nor stored; a pointer that is not needed is a constant"
            )
        for kind, widths in (("load", access.loads), ("store", access.stores)):
            wide, narrow = _split(widths, limits.access_bytes)
            if narrow > limits.tail_accesses or (narrow and not wide):
                found.append(
                    f"{place}: {narrow} {kind}s of {argument} are narrower than {limits.access_bytes} bytes "
                    f"({_describe(widths)}), limit {limits.tail_accesses if wide else 0}"
                )
    return found


def check_cuda(name: str, architecture: int, resources: Resources, limits: CudaLimits) -> list[str]:
    """One sentence for each limit that is not kept; none if all are."""
    found = _check_common(name, architecture, resources, limits)
    place = f"{name} on sm_{architecture}"
    for kind, widths, least, most in (
        ("load", resources.loads, limits.wide_loads, limits.narrow_loads),
        ("store", resources.stores, limits.wide_stores, limits.narrow_stores),
    ):
        wide, narrow = _split(widths, limits.access_bytes)
        if wide < least:
            found.append(
                f"{place}: {wide} {kind}s of {limits.access_bytes} bytes or more ({_describe(widths)}), "
                f"at least {least} are required"
            )
        if most is not None and narrow > most:
            found.append(
                f"{place}: {narrow} {kind}s narrower than {limits.access_bytes} bytes ({_describe(widths)}), "
                f"limit {most}"
            )
    return found


def _check_common(name: str, architecture: int, resources: Resources, limits: Limits | CudaLimits) -> list[str]:
    place = f"{name} on sm_{architecture}"
    found = [
        f"{place}: {used} {what}, limit {limit}"
        for what, used, limit in (
            ("registers", resources.registers, limits.registers),
            ("bytes of shared memory", resources.shared_bytes, limits.shared_bytes),
            ("bytes of local memory (spills)", resources.spilled_bytes, limits.spill_bytes),
            (
                "atomic additions of floating-point numbers, whose order differs from run to run",
                resources.float_atomics,
                0,
            ),
        )
        if used > limit
    ]
    needed = (limits.matrix or {}).get(architecture)
    if needed and not resources.matrix.get(needed):
        found.append(f"{place}: no {needed} instruction, which is required ({_describe(resources.matrix)})")
    return found


def _split(widths: Widths, access_bytes: int) -> tuple[int, int]:
    """How many accesses are at least that wide, and how many are narrower."""
    wide = sum(count for width, count in widths.items() if width >= access_bytes)
    return wide, sum(widths.values()) - wide


def _describe(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} of {what}" for what, count in sorted(counts.items())) or "none"


def read_cuda_limits(path: Path) -> dict[str, CudaLimits]:
    """By pattern. Raises ValueError for a file that is no such thing, with the file's name and what is wrong."""
    try:
        content: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {pattern: _cuda_limits(entry) for pattern, entry in content.items()}
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing: each .cu file has its kernels' limits beside it") from None
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _cuda_limits(entry: dict[str, Any]) -> CudaLimits:
    matrix, architectures = entry.pop("matrix", None), entry.pop("architectures", None)
    return CudaLimits(
        **entry,
        matrix=matrix and {int(architecture): name for architecture, name in matrix.items()},
        architectures=architectures and tuple(architectures),
    )


def assign(
    kernels: Sequence[str], limits: Mapping[str, CudaLimits], architecture: int
) -> tuple[dict[str, CudaLimits], list[str]]:
    """Each kernel's limits, and one sentence for each kernel with none or several and each pattern that fits no kernel.

    A pattern with wildcards that are too wide would take a new kernel in unseen: it must fit by one pattern alone.
    """
    here = {
        pattern: entry
        for pattern, entry in limits.items()
        if entry.architectures is None or architecture in entry.architectures
    }
    found: dict[str, CudaLimits] = {}
    wrong: list[str] = []
    used: set[str] = set()
    for kernel in kernels:
        fitting = [pattern for pattern in here if fnmatchcase(kernel, pattern)]
        used.update(fitting)
        if len(fitting) == 1:
            found[kernel] = here[fitting[0]]
        elif fitting:
            wrong.append(f"{kernel} on sm_{architecture} fits several limits: {', '.join(fitting)}")
        else:
            wrong.append(f"{kernel} on sm_{architecture} has no limits")
    wrong += [f"the limits of {pattern} fit no kernel on sm_{architecture}" for pattern in here if pattern not in used]
    return found, wrong
