"""nvcc and its toolkit: from the system, or from the ``nvidia-cuda-nvcc`` wheel; and what its architectures mean."""

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .settings import LEAST_CUDA_ARCH
from .status import NativeAbsentError, NativeUnavailableError
from .toolchain import Compiler, TorchInstallation, program_identity, run_tool

# C++20 in device code came with 12.0; 12.4 is the oldest that has everything which the kernels use.
LEAST_NVCC = (12, 4)
# Where the wheels put nvcc below site-packages/nvidia: since CUDA 13, and before.
WHEEL_FOLDERS = ("cu13", "cuda_nvcc")
SYSTEM_NVCC = Path("/usr/local/cuda/bin/nvcc")
INSTALL_NVCC = (
    "Install the CUDA toolkit of torch's CUDA version, or its wheels (pip install nvidia-cuda-nvcc nvidia-cuda-crt "
    "nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl), or set CUDACXX to an nvcc."
)
# Wrappers that stand before a compiler's name; nvcc is told the compiler itself.
WRAPPERS = frozenset({"ccache", "sccache", "distcc"})
NVCC_FLAGS = ("-O3", "-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden")


@dataclass(frozen=True)
class Nvcc:
    """The compiler for the GPU; ``identity`` changes when the program does."""

    path: Path
    identity: str


@dataclass(frozen=True)
class Toolkit:
    """What nvcc says of itself: its release, and the folders that a C++ compiler needs."""

    release: tuple[int, int]
    include: Path
    libraries: tuple[Path, ...]

    def link_flags(self) -> tuple[str, ...]:
        """The CUDA runtime, linked in where it can be, so that no library of another release is looked for."""
        for folder in self.libraries:
            if (folder / "libcudart_static.a").is_file():
                return (str(folder / "libcudart_static.a"), "-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread")
        for folder in self.libraries:
            shared = sorted(folder.glob("libcudart.so*"))
            if shared:
                return (str(shared[0]),)
        places = ", ".join(map(str, self.libraries))
        raise NativeUnavailableError(
            f"The CUDA runtime (libcudart) is in none of {places}.", "Install it: pip install nvidia-cuda-runtime."
        )


def find_nvcc() -> Nvcc:
    """``$CUDACXX`` or ``$NVCC``, ``$CUDA_HOME/bin``, PATH, ``/usr/local/cuda``, or the wheels' own, in this order."""
    for variable in ("CUDACXX", "NVCC"):
        asked = os.environ.get(variable, "").strip()
        if asked:
            found = shutil.which(asked)
            if found is None:
                raise NativeUnavailableError(
                    f"The compiler {asked!r} named by the environment variable {variable} was not found.",
                    f"Set {variable} to an nvcc, or unset it to have one looked for.",
                )
            return _nvcc(Path(found))
    home = os.environ.get("CUDA_HOME", "").strip()
    for candidate in ([Path(home) / "bin" / "nvcc"] if home else []) + [_on_path(), SYSTEM_NVCC, *_in_wheels()]:
        if candidate is not None and os.access(candidate, os.X_OK):
            return _nvcc(candidate)
    raise NativeAbsentError("No nvcc was found, which compiles the CUDA C++ kernels.", INSTALL_NVCC)


def _nvcc(path: Path) -> Nvcc:
    # The path as it was found: a link into a toolkit is resolved by nvcc itself, a wrapper by nobody.
    return Nvcc(path.absolute(), program_identity(path.resolve()))


def _on_path() -> Path | None:
    found = shutil.which("nvcc")
    return Path(found) if found else None


def _in_wheels() -> list[Path]:
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [Path(root) / folder / "bin" / "nvcc" for root in roots for folder in WHEEL_FOLDERS]


def probe_toolkit(nvcc: Nvcc, torch: TorchInstallation) -> Toolkit:
    """Ask nvcc for its release and its folders; raise NativeUnavailableError where it does not suit this torch."""
    answer = run_tool([str(nvcc.path), "--version"], "CUDACXX")
    found = re.search(r"release (\d+)\.(\d+)", answer.stdout)
    if answer.returncode or not found:
        raise NativeUnavailableError(
            f"{nvcc.path} does not say its release: {(answer.stderr or answer.stdout).strip()[-300:]}.", INSTALL_NVCC
        )
    release = (int(found[1]), int(found[2]))
    if release < LEAST_NVCC:
        raise NativeUnavailableError(
            f"{nvcc.path} is of CUDA {release[0]}.{release[1]}; the kernels need {LEAST_NVCC[0]}.{LEAST_NVCC[1]}.",
            INSTALL_NVCC,
        )
    if torch.cuda and release[0] > int(torch.cuda.partition(".")[0]):
        raise NativeUnavailableError(
            f"{nvcc.path} is of CUDA {release[0]}.{release[1]}, later than the {torch.cuda} of torch {torch.version}: "
            "the driver that serves this torch may not serve what it compiles.",
            f"Set CUDACXX to an nvcc of CUDA {torch.cuda.partition('.')[0]}.",
        )
    return _folders(nvcc, release)


def _folders(nvcc: Nvcc, release: tuple[int, int]) -> Toolkit:
    # A wrapper may stand anywhere; a dry run names the toolkit's own place.
    dry_run = run_tool([str(nvcc.path), "--dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null"], "CUDACXX")
    top = re.search(r"^#\$ TOP=(.*)$", dry_run.stderr + dry_run.stdout, re.MULTILINE)
    root = Path(top[1]).resolve() if top else nvcc.path.resolve().parents[1]
    # The wheels before CUDA 13 put each part into a folder of its own.
    homes = [root, *sorted((root / "targets").glob("*-linux")), root.parent / "cuda_runtime"]
    include = next((home / "include" for home in homes if (home / "include" / "cuda_runtime.h").is_file()), None)
    if include is None:
        raise NativeUnavailableError(
            f"The toolkit of {nvcc.path} lacks cuda_runtime.h (looked in {root}).",
            "Install the whole toolkit: pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl.",
        )
    libraries = tuple(home / name for home in homes for name in ("lib64", "lib") if (home / name).is_dir())
    return Toolkit(release, include, libraries)


def host_compiler(compiler: Compiler) -> str:
    """The program that nvcc takes as ``-ccbin``: one path, without a wrapper such as ccache."""
    command = compiler.command
    if len(command) > 1 and Path(command[0]).name in WRAPPERS:
        return shutil.which(command[1]) or command[1]
    return command[0]


def generation_flags(archs: tuple[str, ...]) -> tuple[str, ...]:
    """nvcc's ``-gencode`` for each architecture: machine code, and its PTX as well for ``+ptx``."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+ptx")
        code = f"[compute_{number},sm_{number}]" if arch.endswith("+ptx") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return tuple(flags)


def arch_of(capability: tuple[int, int]) -> str:
    """What is compiled for a device: its own architecture, and for one that is not known, PTX that its driver takes.

    Hopper's and Blackwell's own instructions (``90a``, ``100a``) run on no other architecture.
    """
    major, minor = capability
    if major * 10 + minor < LEAST_CUDA_ARCH:
        raise NativeAbsentError(
            f"The CUDA C++ kernels need a GPU of compute capability 8.0 or higher; this one has {major}.{minor}.",
            "Use the backend 'triton' or 'reference'.",
        )
    if capability in ((9, 0), (10, 0)):
        return f"{major * 10 + minor}a"
    return str(major * 10 + minor) if major == 8 else "90+ptx"


def serves(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for ``arch`` runs on a device.

    Machine code runs on its own generation from its own number on, that with an ``a`` on its own number alone; PTX on
    everything from its number on.
    """
    number, device = int(re.sub(r"\D", "", arch)), capability[0] * 10 + capability[1]
    if arch.endswith("a"):
        return device == number
    return number <= device and (arch.endswith("+ptx") or number // 10 == capability[0])
