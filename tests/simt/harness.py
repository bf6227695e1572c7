"""Runs CUDA sources on the host: every thread of a kernel is a fibre, and what a GPU would not report is checked.

How a kernel joins:

1. Its ``.cu`` file uses the machine through ``csrc/cuda/device.cuh`` alone, and launches from plain functions on raw
   pointers.
2. A driver, a ``.cpp`` beside the test, names its cases (``include/simt/case.h``)::

       #include "group_norm.h"
       #include "simt/case.h"

       SIMT_CASE(group_norm_forward) {
         c.check(fastdl::group_norm_forward(c.array<const void>("input"), c.array<void>("output"), c.integer("n")));
       }

3. The test builds the sources once for each variant, and gives cases in batches; each runs in a process of its own::

       runner = harness.build([CSRC / "cuda/group_norm.cu", HERE / "norms/group_norm.cpp"], "race")
       case = Case("group_norm_forward", arrays={"input": x, "output": Output(x.shape, x.dtype)}, scalars={"n": 4})
       [result] = harness.run(runner, [case], order="random", seed=3)
       result.check()                      # raises with the runtime's report
       result.arrays["output"]             # NumPy arrays, for what was given as Output or InOut
       result.reports, result.kernels      # what the driver reported, and which kernels were launched

Variants: ``plain``; ``address`` (AddressSanitizer and UndefinedBehaviorSanitizer); ``race`` (every access of a kernel
is checked against those of the other threads of its block and cluster).

Orders: ``forward``, ``reversed``, ``random`` with a seed: of the blocks, of the warps, and of the lanes of a warp, each
of which runs until it must wait.

NumPy has no bfloat16: pass such a tensor as uint16. A pointer that is not aligned is had by ``offset`` bytes.

The folder of built runners is ``simt`` in the package's cache (``$FASTDL_CACHE``); it may be removed at any time.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastdl.native import cache
from tests.simt.cases import ORDERS, Case, InOut, Input, Machine, Output, Result, SimtError, decode, encode

__all__ = [
    "CSRC",
    "HERE",
    "ORDERS",
    "VARIANTS",
    "Case",
    "InOut",
    "Input",
    "Machine",
    "Output",
    "Result",
    "Runner",
    "SimtError",
    "build",
    "compile_once",
    "find_compiler",
    "run",
]

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
RUNTIME = HERE / "runtime"
INCLUDES = (CSRC / "cuda", CSRC, HERE / "include")

# `#pragma unroll` is nvcc's; and in shared memory one type takes another's place, which nvcc allows.
TOLERANCES = ("-Wno-unknown-pragmas", "-fno-strict-aliasing")
COMMON_FLAGS = ("-std=c++20", "-O1", "-g1", "-DFASTDL_SIMT", "-Wall", "-Wextra", "-Werror", *TOLERANCES)
# The runtime is compiled once, without any of these. Only the sources and the linking differ.
SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ()),
    "address": (SANITIZERS, SANITIZERS),
    # The runtime itself answers the marks that the compiler sets.
    "race": (("-fsanitize=thread",), ()),
}
KEEP_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Runner:
    """A built program, which runs cases; ``prefix`` is what the system needs to start it."""

    path: Path
    variant: str
    prefix: tuple[str, ...] = ()


@dataclass(frozen=True)
class HostCompiler:
    command: tuple[str, ...]
    version: str
    prefix: tuple[str, ...] = ()


def find_compiler() -> HostCompiler:
    """``$CXX`` or the system's C++ compiler; skips the test, with the reason, where none can do it."""
    found = _probe(os.environ.get("CXX", ""))
    if isinstance(found, str):
        pytest.skip(found)
    return found


def _compiles(command: Sequence[str], options: Sequence[str], program: str) -> str:
    """Why the compiler does not make a program of this, or nothing."""
    with tempfile.TemporaryDirectory(prefix="simt-") as name:
        words = [*command, *options, "-x", "c++", "-", "-o", str(Path(name) / "out")]
        try:
            done = subprocess.run(words, input=program, capture_output=True, text=True, errors="replace")
        except OSError as error:
            return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"it ended with {done.returncode}"


@functools.cache
def _probe(asked: str) -> HostCompiler | str:
    if sys.platform != "linux":
        return "the host SIMT harness runs on Linux"
    command = shlex.split(asked) or [name for name in ("g++", "clang++", "c++") if shutil.which(name)][:1]
    if not command:
        return "no C++ compiler on this machine: install g++ or clang++, or set CXX"
    program = "#include <type_traits>\nstd::type_identity_t<int> x;\nint main() {}\n"
    why = _compiles(command, ["-std=c++20"], program)
    if why:
        return f"{shlex.join(command)} does not compile C++20: {why}"
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace").stdout
    return HostCompiler(tuple(command), version)


@functools.cache
def _links(compiler: HostCompiler, flags: Sequence[str]) -> str:
    """Why no program can be linked with these flags, or nothing: the sanitizers' libraries may not be installed."""
    return _compiles(compiler.command, flags, "int main() {}\n") if flags else ""


def build(
    sources: Sequence[Path],
    variant: str,
    flags: Sequence[str] = (),
    *,
    together: bool = False,
    compiler: HostCompiler | None = None,
) -> Runner:
    """Compile kernels (``.cu``) and drivers (``.cpp``) with the runtime into a program, or take it from the cache.

    ``variant`` is a key of VARIANTS; ``flags`` are for the sources alone. ``together`` compiles them as one unit, which
    takes less time for many small ones. ``compiler`` is for another than find_compiler's. Safe when several processes
    build the same at once. Skips the test where there is no compiler or where it lacks the sanitizers' libraries;
    raises SimtError with the compiler's words if it refuses the sources.
    """
    compiler = compiler or find_compiler()
    source_flags, link_flags = VARIANTS[variant]
    why = _links(compiler, link_flags)
    if why:
        pytest.skip(f"{shlex.join(compiler.command)} has no libraries for the {variant} build: {why}")
    folder = _folder()
    units = [tuple(sources)] if together else [(source,) for source in sources]
    jobs = [(unit, (*COMMON_FLAGS, *source_flags, *flags)) for unit in units]
    jobs += [((source,), COMMON_FLAGS) for source in sorted(RUNTIME.glob("*.cpp"))]
    workers = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    with ThreadPoolExecutor(workers) as pool:
        objects = list(pool.map(lambda job: _compile(compiler, folder, *job), jobs))
    key = _digest("link", compiler.version, *link_flags, *(each.name for each in objects))
    # Every symbol by name, so that reports can name the kernels.
    tail = [*map(str, objects), *link_flags, "-rdynamic", "-ldl"]
    path = _make(folder / f"runner-{key}", lambda out: [*compiler.command, "-o", str(out), *tail])
    return Runner(path, variant, compiler.prefix)


def run(runner: Runner, cases: Sequence[Case], order: str = "forward", seed: int = 0) -> list[Result]:
    """Run cases, each in a process of its own, with the threads in this order.

    Gives one result a case, failed or not. Raises SimtError if the runner itself does not work.
    """
    with tempfile.TemporaryDirectory(prefix="simt-") as name:
        given, produced = Path(name) / "cases", Path(name) / "results"
        given.write_bytes(encode(cases, order, seed))
        command = [*runner.prefix, str(runner.path), str(given), str(produced)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        results = decode(produced.read_bytes(), cases) if produced.exists() else []
    if done.returncode != 0 or len(results) != len(cases):
        raise SimtError(f"{runner.path} ended with {done.returncode} after {len(results)} cases:\n{done.stderr}")
    for result in results:
        if result.failure is not None:
            result.failure = _name_places(runner.path, result.failure)
    return results


def compile_once(command: Sequence[str], source: Path, compiler_version: str) -> Path:
    """Compile ``source`` by a command that ends before its name, unless that was done; what it made, from the cache.

    Raises SimtError with what the command says if it says anything.
    """
    key = _digest("once", compiler_version, *command, _headers(), source.read_bytes())
    return _make(_folder() / f"{source.stem}-{key}.o", lambda out: [*command, str(source), "-o", str(out)])


def _folder() -> Path:
    folder = cache.writable_root() / "simt"
    folder.mkdir(parents=True, exist_ok=True)
    _prune(folder)
    return folder


def _compile(compiler: HostCompiler, folder: Path, unit: Sequence[Path], flags: Sequence[str]) -> Path:
    contents = [part for source in unit for part in (str(source), source.read_bytes())]
    key = _digest("object", compiler.version, *flags, _headers(unit[0].parent == RUNTIME), *contents)
    options = [*flags, *(f"-I{path}" for path in INCLUDES), "-x", "c++", "-c"]
    options += [word for source in unit[1:] for word in ("-include", str(source))]
    return _make(
        folder / f"{unit[0].stem}-{key}.o",
        lambda out: [*compiler.command, *options, str(unit[0]), "-o", str(out)],
    )


@functools.cache
def _headers(of_the_runtime: bool = False) -> str:
    """A digest of every header that a source may include; the runtime's own include one of the kernels' alone."""
    folders = (
        (HERE / "include", RUNTIME) if of_the_runtime else (CSRC / "cuda", CSRC / "cpu", HERE / "include", RUNTIME)
    )
    paths = sorted(path for each in folders for path in each.rglob("*") if path.suffix in (".h", ".cuh"))
    paths.append(CSRC / "cuda" / "device_types.cuh")
    return _digest(*(part for path in paths for part in (path.name, path.read_bytes())))


def _make(out: Path, command: Callable[[Path], list[str]]) -> Path:
    """Run a command that makes ``out``, unless it is there; one process at a time, into place by renaming."""
    with _locked(out.with_name(out.name + ".lock")):
        if out.exists():
            with contextlib.suppress(OSError):
                os.utime(out)
            return out
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        words = command(temporary)
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", env=environment)
        if done.returncode != 0 or done.stdout or done.stderr:
            temporary.unlink(missing_ok=True)
            raise SimtError(f"{shlex.join(words)}\n{done.stdout}{done.stderr}")
        temporary.rename(out)
    return out


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prune(folder: Path) -> None:
    """Remove what was not used for a week."""
    oldest = time.time() - KEEP_SECONDS
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:24]


def _name_places(program: Path, report: str) -> str:
    """Put files and lines for the addresses that the race detector names."""
    addresses = sorted(set(re.findall(r"\{program\+(0x[0-9a-f]+)\}", report)))
    if not addresses or shutil.which("addr2line") is None:
        return report
    done = subprocess.run(
        ["addr2line", "-e", str(program), "-C", "-s", *addresses], capture_output=True, text=True, errors="replace"
    )
    for address, name in zip(addresses, done.stdout.splitlines(), strict=False):
        report = report.replace(f"{{program+{address}}}", name.split(" ")[0])
    return report
