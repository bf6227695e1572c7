"""The native CPU kernels: built from ``csrc/`` on first use, cached, checked against the machine, and loaded.

Environment variables:

FASTDL_BUILD     ``auto`` (default) builds on first use; ``0`` or ``never`` uses only a library that exists, built ahead
                 of time or cached; ``1`` or ``always`` is ``auto`` here, and during ``pip install`` builds ahead of
                 time.
FASTDL_CACHE     the cache folder; default ``$XDG_CACHE_HOME/fastdl`` or ``~/.cache/fastdl``, and where that cannot be
                 written a private folder in the system's temporary one.
FASTDL_CPU_ARCH  the architecture compiled for: ``native`` (default), ``x86-64``, ``x86-64-v3``, ``x86-64-v4``, or
                 another value of the compiler's ``-march``.
CXX, MAX_JOBS    the compiler, and how many of it run at once.

This package imports nothing else of fastdl: ``setup.py`` uses it before fastdl is installed.
"""

from .loader import Loader
from .status import FastdlWarning, NativeStatus, NativeUnavailableError

__all__ = ["FastdlWarning", "Loader", "NativeStatus", "NativeUnavailableError", "load", "status_without_building"]

_loader = Loader()


def load() -> NativeStatus:
    """Load the native library, building it first where it is missing.

    Its operators are then in ``torch.ops.fastdl_cpu``. May be called from any thread and any number of times; only
    the first call does anything. Never raises: where the library cannot be had, the status says why and what to do, and
    one ``FastdlWarning`` a process says it as well.
    """
    return _loader.load()


def status_without_building() -> NativeStatus:
    """What is known of the library without building, loading or warning of anything.

    Before the first ``load`` this looks at the disk: available means that a library lies there ready to be loaded.
    """
    return _loader.status_without_building()
