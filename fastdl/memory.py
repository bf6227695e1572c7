"""The caching pool that large CPU outputs come from.

A fresh page costs more than the kernel that fills it: writing 40 MB of newly mapped memory takes over ten times as long
as writing 40 MB that was mapped before. So outputs of 1 MiB and more are taken from blocks that earlier tensors gave
back.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from functools import cache

from fastdl import native


@dataclass(frozen=True)
class CpuPoolStatus:
    """The pool as it stands; all sizes in bytes.

    Attributes:
        enabled: whether outputs of 1 MiB and more come from the pool.
        limit: the most that is kept in blocks no tensor uses.
        cached: what is kept now.
        in_use: what living tensors hold of the pool's blocks.
        hits, misses: how many outputs found a kept block, and how many had to map a new one.
        reason: why there is no pool, where there is none (the native library is not available); else empty.
    """

    enabled: bool
    limit: int
    cached: int
    in_use: int
    hits: int
    misses: int
    reason: str = ""


class _Snapshot(ctypes.Structure):
    """`fastdl_pool_snapshot` in csrc/cpu/pool.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("enabled", "limit", "cached", "in_use", "hits", "misses")]


@cache
def _library(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.fastdl_pool_configure.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.fastdl_pool_status.argtypes = [ctypes.POINTER(_Snapshot)]
    return library


def cpu_pool(mode: str | None = None, *, limit: int | str | None = None, clear: bool = False) -> CpuPoolStatus:
    """Switches, bounds, empties or just describes the pool of CPU outputs; what is not named stays as it is.

    The pool is on by default and keeps at most an eighth of the machine's memory in unused blocks. The environment
    variable ``FASTDL_CPU_POOL`` sets the start: ``off``, ``on`` or a limit such as ``512MiB``. Blocks are given back to
    the system when the limit is passed, when less than a sixteenth of the machine's (or its container's) memory is
    available, when the pool is switched off, and by ``clear``. Tensors that hold a block keep it for as long as they
    live, whatever the pool does meanwhile, in any thread; a forked child starts with an empty pool.

    Args:
        mode: ``"on"`` or ``"off"``.
        limit: bytes, or a string such as ``"512MiB"`` or ``"2GB"``.
        clear: give every unused block back now.

    Returns:
        The status after the change.

    Raises:
        ValueError: an unknown mode, or a limit that is negative or not a size.
    """
    if mode not in (None, "on", "off"):
        raise ValueError(f"cpu_pool: mode must be 'on', 'off' or None; got {mode!r}")
    size = -1 if limit is None else parse_size(limit)
    loaded = native.load()
    if not loaded.available:
        return CpuPoolStatus(False, 0, 0, 0, 0, 0, reason=loaded.reason)
    library = _library(str(loaded.path))
    if mode is not None or limit is not None:
        library.fastdl_pool_configure({None: -1, "off": 0, "on": 1}[mode], size)
    if clear:
        library.fastdl_pool_clear()
    snapshot = _Snapshot()
    library.fastdl_pool_status(ctypes.byref(snapshot))
    return CpuPoolStatus(
        bool(snapshot.enabled), snapshot.limit, snapshot.cached, snapshot.in_use, snapshot.hits, snapshot.misses
    )


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(size: int | str) -> int:
    """Bytes from a number or from text with a unit: 1024, "64MiB", "2 GB". Raises ValueError for anything else."""
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B?)\s*", size, re.IGNORECASE) if isinstance(size, str) else None
    )
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"cpu_pool: limit must be bytes, or a size such as '512MiB' or '2GB'; got {size!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _check_environment() -> None:
    """The native library reads this variable by itself when it is loaded; a mistake in it is told here, at import."""
    text = os.environ.get("FASTDL_CPU_POOL", "on")
    if text in ("", "on", "off"):
        return
    try:
        parse_size(text)
    except ValueError:
        raise ValueError(
            f"the environment variable FASTDL_CPU_POOL must be 'on', 'off' or a size such as '512MiB'; got {text!r}"
        ) from None


_check_environment()
