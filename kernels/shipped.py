"""What ships: every kernel configuration that the heuristics can choose, and the limits held against its machine code.

Each kernel module tells its own by a function ``shipped() -> tuple[Shipped, ...]``, derived from the code that chooses
configurations, so that the two cannot differ. ``tests/aot`` compiles each for every architecture, without a GPU. This
module needs no Triton; the modules that it collects from do.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Limits:
    """What a configuration's machine code may use, and how wide it must reach memory.

    ``registers``
        The most registers per thread.
    ``shared_bytes``
        The most shared memory per program, in bytes.
    ``access_bytes``
        The least width, in bytes a thread, of each global load and store through a pointer argument that is not named
        in ``narrow``. Each such argument must be accessed at all: one that the compiler dropped would prove nothing.
    ``narrow``
        The pointer arguments that may be reached in narrower pieces: statistics, parameters, per-group values.
    ``tail_accesses``
        How many narrower loads (and as many stores) each of the other arguments may have besides its wide ones, where
        the kernel splits off a ragged tail.
    ``spill_bytes``
        The most bytes of local memory per thread: spilled registers, and arrays that found no register.
    ``matrix``
        By architecture, the matrix instruction that must be there: ``"HMMA"``, ``"HGMMA"`` (wgmma), ``"UTCHMMA"``
        (tcgen05). An architecture that is not named needs none.
    """

    registers: int
    shared_bytes: int
    access_bytes: int = 16
    narrow: tuple[str, ...] = ()
    tail_accesses: int = 0
    spill_bytes: int = 0
    matrix: Mapping[int, str] | None = None


@dataclass(frozen=True)
class Shipped:
    """One kernel in one configuration, as it is launched.

    ``name`` is unique among all that ship (``group_norm_forward/strips/bf16/4096x1``); ``kernel`` is the
    ``triton.JITFunction``. ``signature`` holds every argument of the kernel by name, with Triton's type strings
    (``"*bf16"``, ``"i32"``, ``"fp32"``, ``"constexpr"``); ``constexprs`` holds the values of those that are constants,
    an argument ``None`` and a stride of 1 included. ``divisible`` names the arguments that are multiples of 16
    (pointers: aligned to 16 bytes), as Triton's launcher finds out for itself at run time. ``maxnreg`` is the option of
    that name which the launch gives, None where it gives none.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
    limits: Limits
    architectures: tuple[int, ...] = ARCHITECTURES
    maxnreg: int | None = None


def all_shipped() -> tuple[Shipped, ...]:
    """Every configuration of every kernel module beside this one, in the order of the modules' names.

    Imports the modules, and with them Triton. Raises ValueError where two configurations have one name.
    """
    package = __name__.rpartition(".")[0]
    folder = importlib.import_module(package).__path__
    found: list[Shipped] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(folder)):
        tell = getattr(importlib.import_module(f"{package}.{module}"), "shipped", None)
        if callable(tell):
            found += tell()
    names = [entry.name for entry in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"configurations that share a name: {', '.join(twice)}")
    return tuple(found)
