"""Writing JSON whole, sweeping up after killed writers, hashing files, and where the cache lies."""

from __future__ import annotations

import glob
import hashlib
import json
from pathlib import Path
from typing import Any

from fastdl.native.cache import candidate_roots
from fastdl.native.files import TEMPORARY_SUFFIX, atomic_write

__all__ = ["atomic_write", "cache_directory", "file_digest", "remove_leftovers", "write_json"]


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON in one piece; raises ValueError for a number that JSON does not know, such as NaN."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def remove_leftovers(path: Path) -> None:
    """Delete what writers of ``path`` that were killed left beside it; the caller holds the lock of ``path``."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file, read in pieces of 1 MiB."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def cache_directory() -> Path:
    """Return the folder for decoded and downloaded data, in ``$FASTDL_CACHE`` or the user's cache folder."""
    return candidate_roots()[0] / "data"
