"""Writing files so that no reader ever sees half of one, hashing them, and where the cache lies."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastdl.native.cache import candidate_roots

__all__ = ["atomic_write", "cache_directory", "file_digest", "remove_leftovers", "write_json"]

_TEMPORARY_SUFFIX = ".fastdl-tmp"


@contextmanager
def atomic_write(path: Path | str) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an error.

    A process that is killed while writing leaves the old file, or none, under ``path``; the temporary file that it
    leaves behind is swept up by :func:`remove_leftovers`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON in one piece; raises ValueError for a number that JSON does not know, such as NaN."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def remove_leftovers(path: Path) -> None:
    """Delete what writers of ``path`` that were killed left beside it; the caller holds the lock of ``path``."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_TEMPORARY_SUFFIX}"):
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
