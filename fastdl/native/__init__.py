"""The native kernels: built from ``csrc/`` on first use, cached, checked against the machine, and loaded.

There are two libraries, independent of each other: ``cpu`` (C++) and ``cuda`` (CUDA C++, where torch has CUDA, a GPU is
visible and nvcc is found).

Environment variables:

FASTDL_BUILD      ``auto`` (default) builds on first use; ``0`` or ``never`` uses only a library that exists, built
                  ahead of time or cached; ``1`` or ``always`` is ``auto`` here, and during ``pip install`` builds
                  ahead of time.
FASTDL_CACHE      the cache folder; default ``$XDG_CACHE_HOME/fastdl`` or ``~/.cache/fastdl``, and where that cannot be
                  written a private folder in the system's temporary one.
FASTDL_CPU_ARCH   the architecture compiled for: ``native`` (default), ``x86-64``, ``x86-64-v3``, ``x86-64-v4``, or
                  another value of the compiler's ``-march``.
FASTDL_CUDA_ARCHS the GPUs compiled for: ``native`` (default: those at hand) or a list such as ``80;90a;100a``.
CXX, MAX_JOBS     the C++ compiler, and how many compilers run at once.
CUDACXX, CUDA_HOME  nvcc, or the toolkit that it is in; see ``cuda_toolkit.find_nvcc``.

This package imports nothing else of fastdl: ``setup.py`` uses it before fastdl is installed.
"""

from .loader import PREBUILT, Loader, without_forks
from .status import FastdlWarning, NativeStatus, NativeUnavailableError
from .targets import TARGETS

__all__ = [
    "FastdlWarning",
    "Loader",
    "NativeStatus",
    "NativeUnavailableError",
    "load",
    "status_without_building",
    "without_forks",
]

# A wheel holds the CPU library in `prebuilt`, and the CUDA library below it.
_loaders = {"cpu": Loader(), "cuda": Loader(prebuilt=PREBUILT / "cuda", target=TARGETS["cuda"])}


def load(library: str = "cpu") -> NativeStatus:
    """Load a native library, ``cpu`` or ``cuda``, building it first where it is missing.

    Its operators are then in ``torch.ops.fastdl_cpu`` or ``torch.ops.fastdl_cuda``. May be called from any thread and
    any number of times; only the first call does anything. Never raises: where the library cannot be had, the status
    says why and what to do, and where that is a fault one ``FastdlWarning`` a process says it as well.
    """
    return _loaders[library].load()


def status_without_building(library: str = "cpu") -> NativeStatus:
    """What is known of a library without building, loading or warning of anything.

    Before the first ``load`` this looks at the disk: available means that a library lies there ready to be loaded.
    """
    return _loaders[library].status_without_building()
