"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["held_folder", "hold"]


def hold(folder: Path, otherwise: str = "another folder") -> FileLock:
    """The lock of a folder, which is made if it is missing; to be released.

    Raises:
        ValueError: another process holds it; the message names the folder and what to choose ``otherwise``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is at work in {folder}; wait for it, or choose {otherwise}") from None
    return lock


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs; raises as `hold` does."""
    lock = hold(folder)
    try:
        yield
    finally:
        lock.release()
