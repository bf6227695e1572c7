"""The folder of built libraries: where it is, what an entry holds, and when an entry may go.

An entry is a folder ``native/<key>/`` with the shared library and ``manifest.json``, which is written last and holds
the library's size and SHA-256. Both arrive by rename, so a process that is killed at any moment leaves an entry that is
whole or one that does not count.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .status import NativeUnavailableError

if sys.platform != "win32":  # without flock nothing is pruned, and so nothing needs holding
    import fcntl

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
KEEP_ENTRIES = 8
KEEP_SECONDS = 24 * 3600.0
PRIVATE = 0o700


@dataclass(frozen=True)
class Manifest:
    """What is recorded of a built library; lists are tuples here and lists in the file."""

    format: int
    library: str
    size: int
    sha256: str
    source_digest: str
    system: str
    machine: str
    arch: str
    required_features: tuple[str, ...]
    flags: tuple[str, ...]
    compiler: str
    compiler_version: str
    torch: str
    torch_target: str
    built_in_seconds: float


def candidate_roots() -> list[Path]:
    """Cache folders in the order in which they are tried: FASTDL_CACHE or the user's, then a private temporary one."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    temporary = Path(tempfile.gettempdir()) / f"fastdl-{user}"
    asked = os.environ.get("FASTDL_CACHE", "").strip()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    try:
        if asked:
            return [Path(asked).expanduser().absolute(), temporary]
        if base and Path(base).is_absolute():
            return [Path(base) / "fastdl", temporary]
        return [Path("~/.cache/fastdl").expanduser(), temporary]
    except RuntimeError:  # a user without a home, as containers have them
        return [temporary, temporary]


def readable_roots() -> list[Path]:
    """The candidates whose content may be trusted: the temporary one only where nobody else could have put it there."""
    first, temporary = candidate_roots()
    return [first, *([temporary] if _is_private(temporary) else [])]


def writable_root() -> Path:
    """The first candidate in which an entry can be made; raises NativeUnavailableError with each one's error."""
    errors = []
    first, temporary = candidate_roots()
    for root in (first, temporary):
        try:
            if root == temporary:
                root.mkdir(mode=PRIVATE, exist_ok=True)
                if not _is_private(root):
                    raise PermissionError(f"{root} belongs to somebody else")
            (root / "native").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root / "native"):
                return root
        except OSError as error:
            errors.append(f"{root}: {error}")
    raise NativeUnavailableError(
        f"No cache folder can be written ({'; '.join(errors)}).",
        "Set FASTDL_CACHE to a folder that can be written and has free space.",
    )


def _is_private(folder: Path) -> bool:
    # A library from a folder that others may write to would run their code.
    try:
        status = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode) or not hasattr(os, "getuid"):
        return stat.S_ISDIR(status.st_mode)
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def read_manifest(entry: Path) -> Manifest | None:
    """The entry's manifest, or None where it is missing, torn or of another format."""
    try:
        content: Any = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != MANIFEST_FORMAT:
            return None
        values = {field.name: content[field.name] for field in fields(Manifest)}
        for name in ("required_features", "flags"):
            values[name] = tuple(str(item) for item in values[name])
        manifest = Manifest(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # The name is joined to a path below: it must stay in its folder.
    return manifest if Path(manifest.library).name == manifest.library else None


def write_manifest(entry: Path, manifest: Manifest) -> None:
    descriptor, name = tempfile.mkstemp(dir=entry, prefix=".manifest-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(manifest), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.replace(name, entry / MANIFEST)  # noqa: PTH105  (the rename is the point; os.replace says so)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def is_whole(entry: Path, manifest: Manifest) -> bool:
    """Whether the library is, byte for byte, the one that the manifest was written for."""
    path = entry / manifest.library
    try:
        return path.stat().st_size == manifest.size and file_digest(path) == manifest.sha256
    except OSError:
        return False


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def entries() -> Iterator[tuple[Path, Manifest]]:
    """Every entry with a manifest in any readable cache folder, the last used first within a folder."""
    for root in readable_roots():
        for entry in sorted(_entry_folders(root), key=last_used, reverse=True):
            manifest = read_manifest(entry)
            if manifest is not None:
                yield entry, manifest


def _entry_folders(root: Path) -> list[Path]:
    try:
        return [path for path in (root / "native").iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def last_used(entry: Path) -> float:
    """When a process last held the entry; for one without a manifest, when it was begun."""
    for path in (entry / MANIFEST, entry):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


# Manifests kept open (and locked) for the process's life: one per library in use.
_held: dict[Path, int] = {}


def hold(entry: Path) -> bool:
    """Mark the entry as in use by this process, until it ends; False if it is being removed at this moment."""
    if entry in _held:
        return True
    with contextlib.suppress(OSError):  # a cache that can only be read keeps no record of use
        os.utime(entry / MANIFEST)
    if sys.platform == "win32":
        return True
    try:
        descriptor = os.open(entry / MANIFEST, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # a file system without locks: nothing is pruned there either
        os.close(descriptor)
        return True
    _held[entry] = descriptor
    return True


def prune(root: Path, keep: Path) -> list[Path]:
    """Remove all entries but the KEEP_ENTRIES last used, those used within a day and those in use now; return them."""
    if sys.platform == "win32":
        return []
    old = sorted(_entry_folders(root), key=last_used, reverse=True)[KEEP_ENTRIES:]
    stale = [entry for entry in old if entry != keep and time.time() - last_used(entry) > KEEP_SECONDS]
    return [entry for entry in stale if _remove(entry)]


def _remove(entry: Path) -> bool:
    assert sys.platform != "win32"
    try:
        descriptor = os.open(entry / MANIFEST, os.O_RDONLY)
    except FileNotFoundError:  # never finished, or a failed build's log: no process can be using it
        shutil.rmtree(entry, ignore_errors=True)
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Without its manifest the entry does not count; only then may its library go.
        (entry / MANIFEST).unlink()
        shutil.rmtree(entry, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
