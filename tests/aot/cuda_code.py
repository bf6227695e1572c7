"""Compiles one CUDA C++ source for one architecture, without a GPU, and measures the machine code of its kernels."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fastdl.native.status import NativeUnavailableError
from fastdl.native.targets import CudaTarget, Tools, nvcc_command

from . import sass, store
from .resources import Resources

FOLDER = Path(__file__).resolve().parent.parent.parent / "csrc" / "cuda"
# Hopper's and Blackwell's own instructions need the architecture's own name, which is also what the loader compiles.
NAMES = {80: "80", 90: "90a", 100: "100a"}


def sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cu"))


@cache
def missing() -> str:
    """What is missing on this machine to compile and to measure; empty where nothing is."""
    try:
        _tools()
        sass.find_cuobjdump()
        _demangler()
    except (NativeUnavailableError, sass.ToolMissingError) as error:
        return str(error)
    return ""


@cache
def versions() -> str:
    """What the numbers depend on besides the source: ``nvcc 13.0.88``."""
    nvcc = _tools().nvcc
    assert nvcc is not None
    answer = sass.run([str(nvcc.path), "--version"])
    found = re.search(r"V(\d+\.\d+\.\d+)", answer)
    return f"nvcc {found[1] if found else answer.strip()}"


@cache
def unknown(architecture: int) -> str:
    """Why this nvcc cannot compile for the architecture; empty where it can."""
    nvcc = _tools().nvcc
    assert nvcc is not None
    # The names with an `a` are not among those that it lists, but come with them.
    if f"sm_{architecture}" in sass.run([str(nvcc.path), "--list-gpu-code"]).split():
        return ""
    return f"{versions()} does not know sm_{architecture}"


def measure(source: Path, architecture: int, flags: Sequence[str] = ()) -> dict[str, Resources]:
    """The resources of every kernel in the source, by its demangled name without arguments; compiled or remembered.

    ``flags`` are added to those by which the package builds the same source.
    """
    command = [*nvcc_command(_tools(), CudaTarget().device_flags(NAMES[architecture])), *flags]
    description = f"{versions()} {sass.cuobjdump_version()} {command} {source.name} {_digest(source)}"
    return store.remember(description, lambda: _compile(command, source))


@cache
def _tools() -> Tools:
    return CudaTarget().tools()


@cache
def _demangler() -> str:
    found = shutil.which("cu++filt") or shutil.which("c++filt")
    if found is None:
        raise sass.ToolMissingError("c++filt was not found: it comes with the C++ compiler (binutils)")
    return found


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
    with tempfile.TemporaryDirectory(prefix="fastdl-aot-") as folder:
        cubin = Path(folder) / f"{source.stem}.cubin"
        sass.run([*command, "-cubin", "-o", str(cubin), str(source)])
        mangled = sass.measure(cubin)
    names = sass.run([_demangler(), *mangled]).splitlines() if mangled else []
    kernels = {_without_arguments(name): mangled[key] for name, key in zip(names, mangled, strict=True)}
    if len(kernels) != len(mangled):
        raise ValueError(f"{source.name}: two kernels differ by nothing but their arguments")
    return kernels


def _without_arguments(name: str) -> str:
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
