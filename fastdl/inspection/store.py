"""Keeps what was measured between runs, by the content of everything that it was made from.

An entry is one JSON file in ``aot/`` of the package's cache folder (``FASTDL_CACHE``, or else the user's), written
beside its place and renamed into it: of two processes that compile the same at once, either one's file is whole. A warm
run reads files and starts no compiler.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from fastdl.native import cache as native_cache
from fastdl.native.files import atomic_write

from .resources import Resources, from_json, to_json

FOLDER = "aot"
KEEP_SECONDS = 30 * 24 * 3600.0
# What reads the numbers out of the machine code is part of what made them.
READERS = (
    *("resources.py", "sass.py", "instructions.py", "ptx.py", "entries.py", "triton_code.py", "cuda_code.py"),
    "dynamic_shared.py",
)


def remember(description: str, make: Callable[[], dict[str, Resources]]) -> dict[str, Resources]:
    """What ``make`` gave when it was last called for this description, or else what it gives now.

    ``description`` names everything that decides the result: sources, versions, flags, architecture.
    """
    path = _folder() / f"{_digest(description)}.json"
    try:
        found = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found is not None:
        with contextlib.suppress(OSError):
            os.utime(path)
        return found
    made = make()
    with atomic_write(path) as file:
        file.write(to_json(made).encode())
    _prune(path.parent)
    return made


def _digest(description: str) -> str:
    return hashlib.sha256(f"{_readers_digest()}\0{description}".encode()).hexdigest()


@cache
def _readers_digest() -> str:
    folder = Path(__file__).resolve().parent
    return hashlib.sha256(b"\0".join((folder / name).read_bytes() for name in READERS)).hexdigest()


def _folder() -> Path:
    folder = native_cache.writable_root() / FOLDER
    folder.mkdir(exist_ok=True)
    return folder


def _prune(folder: Path) -> None:
    """Remove entries (and what a killed process left) that no run has read for a month."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEEP_SECONDS:
                path.unlink()
