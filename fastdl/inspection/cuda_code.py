"""Compiles one CUDA C++ source for one architecture, without a GPU, and measures the machine code of its kernels."""

import hashlib
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from fastdl.native.sources import find_csrc
from fastdl.native.status import NativeUnavailableError
from fastdl.native.targets import CudaTarget, Tools, nvcc_command

from . import sass, store
from .dynamic_shared import fixed_sizes
from .entries import Entry, read_entries
from .resources import Launch, Resources
from .tools import ToolMissingError, cuobjdump_version, find_cuobjdump, find_demangler, run

# Hopper's and Blackwell's own instructions need the architecture's own name, which is also what the loader compiles.
NAMES = {80: "80", 90: "90a", 100: "100a"}


def folder() -> Path:
    """Where the sources lie, in a checkout or an installed package."""
    return find_csrc() / "cuda"


def sources() -> list[Path]:
    return sorted(folder().glob("*.cu"))


@cache
def missing() -> str:
    """What is missing on this machine to compile and to measure; empty where nothing is."""
    try:
        _tools()
        find_cuobjdump()
        find_demangler()
    except (NativeUnavailableError, ToolMissingError) as error:
        return str(error)
    return ""


@cache
def versions() -> str:
    """What the numbers depend on besides the source: ``nvcc 13.0.88``."""
    nvcc = _tools().nvcc
    assert nvcc is not None
    answer = run([str(nvcc.path), "--version"])
    found = re.search(r"V(\d+\.\d+\.\d+)", answer)
    return f"nvcc {found[1] if found else answer.strip()}"


@cache
def unknown(architecture: int) -> str:
    """Why this nvcc cannot compile for the architecture; empty where it can."""
    nvcc = _tools().nvcc
    assert nvcc is not None
    # The names with an `a` are not among those that it lists, but come with them.
    if f"sm_{architecture}" in run([str(nvcc.path), "--list-gpu-code"]).split():
        return ""
    return f"{versions()} does not know sm_{architecture}"


def measure(source: Path, architecture: int, flags: Sequence[str] = ()) -> dict[str, Resources]:
    """The resources of every kernel in the source, by its demangled name without arguments; compiled or remembered.

    ``flags`` are added to those by which the package builds the same source. Raises RuntimeError, with the compiler's
    words, for what does not compile.
    """
    command = [*nvcc_command(_tools(), CudaTarget().device_flags(NAMES[architecture])), *flags]
    description = f"{versions()} {cuobjdump_version()} {command} {source.name} {_digest(source)}"
    return store.remember(description, lambda: _compile(command, source))


@cache
def _tools() -> Tools:
    return CudaTarget().tools()


def _digest(source: Path) -> str:
    """Of the source and of every header that it may include."""
    folder = source.parent
    headers = [path for path in (*folder.rglob("*"), *folder.parent.glob("*")) if path.suffix in (".h", ".cuh")]
    digest = hashlib.sha256()
    for path in [source, *sorted(headers)]:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder.parent)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _compile(command: list[str], source: Path) -> dict[str, Resources]:
    with tempfile.TemporaryDirectory(prefix="fastdl-inspect-") as name:
        folder = Path(name)
        cubin = folder / f"{source.stem}.cubin"
        # The PTX on the way is kept: it tells how the kernels may be launched.
        run([*command, "--keep", "--keep-dir", name, "-cubin", "-o", str(cubin), str(source)])
        mangled = sass.measure(cubin)
        if not mangled:
            return {}
        entries = read_entries((folder / f"{source.stem}.ptx").read_text(encoding="utf-8"))
        names = _demangle(mangled, source)
        dynamic = fixed_sizes(
            source,
            [names[key] for key in mangled if entries[key].uses_dynamic_shared],
            folder,
            lambda probe, text: run([*command, "-ptx", "-o", str(text), str(probe)]),
        )
    return {
        names[key]: replace(resources, launch=_launch(resources.launch, entries[key], dynamic.get(names[key])))
        for key, resources in mangled.items()
    }


def _launch(launch: Launch, entry: Entry, dynamic: int | None) -> Launch:
    return replace(
        launch,
        threads=entry.threads or launch.threads,
        exact=entry.exact,
        minimum_blocks=entry.minimum_blocks,
        dynamic_shared_bytes=dynamic if entry.uses_dynamic_shared else 0,
    )


def _demangle(mangled: Iterable[str], source: Path) -> dict[str, str]:
    keys = list(mangled)
    lines = run([str(find_demangler()), *keys]).splitlines()
    names = {key: without_arguments(name) for key, name in zip(keys, lines, strict=True)}
    if len(set(names.values())) != len(names):
        raise ValueError(f"{source.name}: two kernels differ by nothing but their arguments")
    return names


def without_arguments(name: str) -> str:
    """``void ns::apply<float, (int)4>(ns::Problem)`` as ``ns::apply<float, 4>``."""
    name = re.sub(r"\((?:int|bool|unsigned int|unsigned long|long|ns::\w+)\)(?=[\w-])", "", name)
    depth = 0
    for index, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and not name.startswith("(anonymous namespace)", index):
            name = name[:index]
            break
    # A function template's name begins with the type that it gives, which for a kernel is always void.
    return name.removeprefix("void ")
