"""Compiler, ninja and torch's headers: what a build needs, found or named as missing."""

import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cpu_features import features_of_macros
from .status import NativeUnavailableError

# The oldest torch whose stable ABI the library keeps to: one binary then serves every torch from this one on.
TORCH_TARGET = (2, 11)
TORCH_TARGET_VERSION = f"0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}{0:012x}"

# -ffp-contract=fast lets a*b+c become one rounding; -fno-math-errno lets sqrt and exp be vectorised. Nothing here
# changes what NaN and infinity mean, as -ffast-math would.
COMPILE_FLAGS = ("-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast")
LINUX_COMPILE_FLAGS = ("-fno-semantic-interposition",)
# The newest name first; GCC 9 and Clang 9 know C++20 as c++2a.
CXX_STANDARDS = ("-std=c++20", "-std=c++2a")
LIBRARY_SUFFIX = ".dylib" if platform.system() == "Darwin" else ".so"

INSTALL_COMPILER = (
    "Install Xcode's command line tools (xcode-select --install)"
    if platform.system() == "Darwin"
    else "Install g++ 10 or newer (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda install gxx)"
)


@dataclass(frozen=True)
class Compiler:
    """``command`` is what is run (``$CXX`` may be several words), ``identity`` changes when the program does."""

    command: tuple[str, ...]
    path: Path
    identity: str


@dataclass(frozen=True)
class TorchInstallation:
    """What of torch goes into a build: its version, headers, libraries, C++ string ABI, and CUDA version if any."""

    version: str
    include: Path
    library: Path
    cxx11_abi: bool
    cuda: str | None = None


@dataclass(frozen=True)
class Probe:
    """What a compiler says of itself: the C++ standard flag, its version, and the extensions it may use."""

    standard: str
    version: str
    features: tuple[str, ...]


def find_compiler() -> Compiler:
    """``$CXX``, or else the first of g++, clang++ and c++ (on macOS clang++ first) on PATH."""
    asked = os.environ.get("CXX", "").strip()
    if asked:
        command = tuple(shlex.split(asked))
        candidates = [command]
    else:
        names = ("clang++", "g++", "c++") if platform.system() == "Darwin" else ("g++", "clang++", "c++")
        candidates = [(name,) for name in names]
    for command in candidates:
        found = shutil.which(command[0])
        if found:
            path = Path(found).resolve()
            return Compiler((found, *command[1:]), path, program_identity(path, command[1:]))
    if asked:
        raise NativeUnavailableError(
            f"The compiler {asked!r} named by the environment variable CXX was not found.",
            "Set CXX to a C++20 compiler, or unset it to use the system's.",
        )
    raise NativeUnavailableError(
        "No C++ compiler was found (g++, clang++, c++).", f"{INSTALL_COMPILER}, or set CXX to a C++20 compiler."
    )


def find_ninja() -> Path:
    """The binary of the ``ninja`` package, or else the one on PATH."""
    try:
        import ninja

        bundled = shutil.which("ninja", path=ninja.BIN_DIR)
    except ImportError:
        bundled = None
    found = bundled or shutil.which("ninja")
    if found:
        return Path(found)
    raise NativeUnavailableError("The build tool ninja was not found.", "Install it: pip install ninja.")


def torch_installation() -> TorchInstallation:
    """The torch that this process uses; imports it."""
    import torch

    if torch_release(torch.__version__) < TORCH_TARGET:
        raise NativeUnavailableError(
            f"torch {torch.__version__} is older than {TORCH_TARGET[0]}.{TORCH_TARGET[1]}, whose stable ABI is needed.",
            f"Upgrade it: pip install 'torch>={TORCH_TARGET[0]}.{TORCH_TARGET[1]}'.",
        )
    root = Path(torch.__file__).parent
    return TorchInstallation(
        str(torch.__version__), root / "include", root / "lib", torch.compiled_with_cxx11_abi(), torch.version.cuda
    )


def torch_release(version: str) -> tuple[int, int]:
    """(major, minor) of a torch version such as ``2.13.0+cpu``; (0, 0) of one that has no such form."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def arch_flags(arch: str) -> tuple[str, ...]:
    """The flag for a processor, and none for "": what every processor of this kind can run."""
    if not arch:
        return ()
    # On Arm, -march names only the architecture; the processor at hand is -mcpu=native.
    if arch == "native" and platform.machine() in ("aarch64", "arm64"):
        return ("-mcpu=native",)
    return (f"-march={arch}",)


def compile_flags(arch: str, torch: TorchInstallation) -> tuple[str, ...]:
    """All flags but the standard and the include folders; what they are is part of a build's name in the cache."""
    return (
        *COMPILE_FLAGS,
        *(LINUX_COMPILE_FLAGS if platform.system() == "Linux" else ()),
        *arch_flags(arch),
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.cxx11_abi)}",
    )


def link_flags(torch: TorchInstallation) -> tuple[str, ...]:
    """Linked against libtorch_cpu by name alone, without a path: at load time torch is in the process already."""
    if platform.system() == "Darwin":
        return ("-dynamiclib", "-undefined", "dynamic_lookup")
    return ("-shared", f"-L{torch.library}", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed")


def probe(compiler: Compiler, arch: str) -> Probe:
    """Ask the compiler for the standard it knows and the macros it predefines for ``arch``."""
    errors = ""
    for standard in CXX_STANDARDS:
        result = run_tool([*compiler.command, standard, *arch_flags(arch), "-x", "c++", "-dM", "-E", "/dev/null"])
        if result.returncode == 0:
            version = run_tool([*compiler.command, "--version"]).stdout.strip().partition("\n")[0]
            return Probe(standard, version, features_of_macros(result.stdout))
        errors = (result.stderr or result.stdout).strip()
    raise NativeUnavailableError(
        f"The compiler {shlex.join(compiler.command)} takes neither of {' and '.join(CXX_STANDARDS)} together with "
        f"{' '.join(arch_flags(arch)) or 'its default processor'}: {errors[-500:]}",
        "Use a newer compiler (set CXX), or another FASTDL_CPU_ARCH ('native', 'x86-64', 'x86-64-v3', 'x86-64-v4').",
    )


def run_tool(command: list[str], variable: str = "CXX") -> "subprocess.CompletedProcess[str]":
    """Run a compiler to ask it something; ``variable`` is the one that names another."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(
            f"The compiler {shlex.join(command[:1])} could not be run: {error}.",
            f"Set {variable} to a compiler that works.",
        ) from error


def program_identity(path: Path, arguments: tuple[str, ...] = ()) -> str:
    """Changes when the program does. Asking for its version would cost a process at every start; its file tells too."""
    stat = path.stat()
    return " ".join([*arguments, str(path), str(stat.st_size), str(stat.st_mtime_ns)])
