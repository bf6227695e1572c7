"""Compiles one shipped Triton configuration for one architecture, without a GPU, and measures its machine code."""

import contextlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fastdl.kernels.shipped import Shipped

from . import ptx, sass, store
from .entries import read_entries
from .resources import Launch, Resources
from .tools import ToolMissingError, cuobjdump_version, find_cuobjdump, run


@cache
def versions() -> str:
    """What the numbers depend on besides the kernel: ``Triton 3.7.1``."""
    import triton

    return f"Triton {triton.__version__}"


def missing() -> str:
    """Why Triton's kernels cannot be compiled and measured here; empty where they can."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install triton, which has wheels for Linux"
    if triton.knobs.runtime.interpret:
        # Under it ``@triton.jit`` gives no source to compile.
        return "Triton runs its interpreter, which compiles nothing: unset TRITON_INTERPRET"
    try:
        find_cuobjdump()
    except ToolMissingError as error:
        return str(error)
    return ""


def is_usable() -> bool:
    """Whether Triton can be imported and compiles."""
    return not missing()


@cache
def assembler(architecture: int) -> str:
    """The assembler that Triton calls for the architecture: ``ptxas 12.8.93``; empty where that cannot be told."""
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        found = re.search(r"V(\d+\.\d+\.\d+)", run([str(get_ptxas(architecture).path), "--version"]))
    except (ImportError, AttributeError, TypeError, RuntimeError, OSError):  # a private part of Triton
        return ""
    return f"ptxas {found[1]}" if found else ""


def source_of(entry: Shipped) -> Any:
    """What ``triton.compile`` takes. Raises ValueError for an entry that does not fit its kernel's arguments."""
    from triton.compiler import ASTSource

    names = list(entry.kernel.arg_names)
    if list(entry.signature) != names:
        raise ValueError(f"{entry.name}: the signature names {list(entry.signature)}, the kernel takes {names}")
    constants = {name for name, kind in entry.signature.items() if kind == "constexpr"}
    if constants != set(entry.constexprs):
        raise ValueError(f"{entry.name}: {sorted(constants ^ set(entry.constexprs))} are constants in one place only")
    unknown = (set(entry.divisible) | set(entry.limits.narrow)) - (set(names) - constants)
    if unknown:
        raise ValueError(f"{entry.name}: {sorted(unknown)} are no arguments of the kernel, or are constants")
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in entry.divisible}
    return ASTSource(entry.kernel, dict(entry.signature), dict(entry.constexprs), divisible)


def measure(entry: Shipped, architecture: int) -> Resources:
    """The configuration's resources, compiled now or remembered."""
    from triton._C.libtriton import get_cache_invalidating_env_vars

    source = source_of(entry)
    # The source's hash covers the functions that the kernel calls, and the constants that it uses.
    settings = sorted(get_cache_invalidating_env_vars().items())
    description = (
        f"{versions()} {cuobjdump_version()} {settings} {source.hash()} {list(source.signature.items())} "
        f"sm_{architecture} {_options(entry)}"
    )
    return store.remember(description, lambda: {"": _compile(entry, source, architecture)})[""]


def _compile(entry: Shipped, source: Any, architecture: int) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget

    with tempfile.TemporaryDirectory(prefix="fastdl-inspect-") as folder, _triton_cache(Path(folder)):
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", architecture, 32),
            options=_options(entry),
        )
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        (resources,) = sass.measure(cubin).values()
    arguments, pointers = _ptx_arguments(entry, compiled.metadata.tensordesc_meta)
    accesses = ptx.argument_accesses(compiled.asm["ptx"], arguments, pointers)
    _compare(entry, resources, compiled.asm["ptx"])
    launch = _launch(compiled.asm["ptx"], resources.launch, compiled.metadata)
    # Triton asks for all of its shared memory at launch; what the cubin records is the system's share.
    return replace(resources, shared_bytes=compiled.metadata.shared, arguments=accesses, launch=launch)


def _launch(text: str, launch: Launch, metadata: Any) -> Launch:
    (entry,) = read_entries(text).values()
    return replace(
        launch,
        threads=entry.threads or launch.threads,
        exact=entry.exact,
        minimum_blocks=entry.minimum_blocks,
        dynamic_shared_bytes=metadata.shared,
        tensor_memory_columns=getattr(metadata, "tmem_size", None) or 0,
    )


def _options(entry: Shipped) -> dict[str, int | None]:
    return {"num_warps": entry.num_warps, "num_stages": entry.num_stages, "maxnreg": entry.maxnreg}


def _ptx_arguments(entry: Shipped, descriptors: Any) -> tuple[list[str], list[str]]:
    """The names of the kernel's arguments as PTX numbers them, and those among them that are pointers to tensors.

    A tensor descriptor is one argument, followed by its sizes and strides. Raises ValueError where the architecture has
    no descriptors: what Triton makes of them there differs between its versions.
    """
    arguments: list[str] = []
    pointers: list[str] = []
    for name, kind in entry.signature.items():
        if kind == "constexpr":
            continue
        arguments.append(name)
        if kind.startswith("tensordesc"):
            if not descriptors:
                raise ValueError(f"{entry.name}: {name} is a tensor descriptor, which this architecture does not have")
            dimensions = kind.count(",") + 1
            arguments += [f"{name}.{index}" for index in range(1, 2 * dimensions + 1)]
        if kind.startswith(("*", "tensordesc")):
            pointers.append(name)
    return arguments, pointers


def _compare(entry: Shipped, resources: Resources, text: str) -> None:
    """The widths are attributed to arguments in PTX; this sees that the assembler has split none of them.

    It may drop an access that no thread makes, and repeat one by unrolling a loop; both at once, fewer wide ones and
    more narrow ones, is a wide one in pieces.
    """
    for kind, counted in (("load", resources.loads), ("store", resources.stores)):
        written = Counter(
            width for _, width, is_store in map(ptx.describe, ptx.read(text).accesses) if is_store == (kind == "store")
        )
        wide, narrow = (
            [sum(count for width, count in widths.items() if (width >= 16) == is_wide) for widths in (written, counted)]
            for is_wide in (True, False)
        )
        if wide[1] < wide[0] and narrow[1] > narrow[0]:
            raise ValueError(
                f"{entry.name}: PTX has {wide[0]} {kind}s of 16 bytes or more and {narrow[0]} narrower ones, the "
                f"machine code {wide[1]} and {narrow[1]}"
            )


@contextlib.contextmanager
def _triton_cache(folder: Path) -> Iterator[None]:
    """Triton's own cache in a folder that goes away: what is kept are the numbers."""
    previous = os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if previous is None:
            del os.environ["TRITON_CACHE_DIR"]
        else:
            os.environ["TRITON_CACHE_DIR"] = previous
