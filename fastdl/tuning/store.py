"""What was measured on this machine's devices: one JSON file a device in the cache folder.

A file counts only where its versions are those at hand: fastdl, torch, Triton, and the sources of the kernels. It is
written beside its place and renamed into it, under a lock, so that a reader finds a whole file and no writer's results
are lost to another's.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastdl import native
from fastdl.native import cpu_features
from fastdl.native.cache import readable_roots, writable_root
from fastdl.native.files import atomic_write
from fastdl.native.sources import find_csrc

if sys.platform != "win32":
    import fcntl

FORMAT = 1
FOLDER = "tuned"
CPU = "cpu"
SWITCH = "FASTDL_TUNED"
RENEW = "renew it with `fastdl tune`, or remove it with `fastdl tune --clear`"


@dataclass(frozen=True)
class Device:
    """A kind of device: its name as its maker gives it, and the compute capability (``9.0``), or ``cpu``."""

    name: str
    capability: str

    @property
    def label(self) -> str:
        return f"{self.name} ({self.capability})"

    @property
    def file_name(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", f"{self.name} {self.capability}".lower()).strip("-") + ".json"


@dataclass(frozen=True)
class Stored:
    """A device's file: ``content`` is None where there is none or it does not count, and ``complaint`` says why."""

    path: Path | None
    content: dict[str, Any] | None = None
    complaint: str = ""
    corrupt: bool = False


def gpu() -> Device | None:
    """The GPU whose file counts; None without one, and where several of different kinds are visible.

    A plan does not know on which of several devices its call runs, and sizes of one kind are not another's.
    """
    if not torch.cuda.is_available():
        return None
    found = {
        Device(torch.cuda.get_device_name(i), "{}.{}".format(*torch.cuda.get_device_capability(i)))
        for i in range(torch.cuda.device_count())
    }
    return found.pop() if len(found) == 1 else None


@cache
def processor() -> Device:
    """The CPU, as a device."""
    return Device(cpu_features.machine_model(), CPU)


def device_of(kind: str) -> Device | None:
    """The device of a kind, ``cpu`` or ``cuda``."""
    return processor() if kind == CPU else gpu()


@cache
def versions() -> dict[str, str]:
    """What a file must have been written with to count."""
    import fastdl

    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {"fastdl": fastdl.__version__, "torch": str(torch.__version__), "triton": triton, "kernels": digest()}


def digest() -> str:
    """Of the kernels' sources, in Triton, C++ and CUDA C++."""
    spec = importlib.util.find_spec("fastdl.kernels")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    with contextlib.suppress(native.NativeUnavailableError):
        folders.append(find_csrc())
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                content = path.read_bytes()
                total.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
                total.update(content)
    return total.hexdigest()[:16]


def is_on() -> bool:
    """Whether what is stored counts: unless ``FASTDL_TUNED`` is 0."""
    return os.environ.get(SWITCH, "").strip() != "0"


def load(device: Device) -> Stored:
    """A device's file, whether or not ``FASTDL_TUNED`` lets it count."""
    paths = {root / FOLDER / device.file_name for root in readable_roots()}
    path = max((path for path in paths if _written(path)), key=_written, default=None)
    if path is None:
        return Stored(None)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Stored(path, None, f"it cannot be read ({type(error).__name__}: {error})", corrupt=True)
    there = {"format": str(content["format"]), "device": content["device"], **content["versions"]}
    here = {"format": str(FORMAT), "device": device.label, **versions()}
    others = [f"{name} {there.get(name)} there, {here[name]} here" for name in here if there.get(name) != here[name]]
    if others:
        return Stored(path, None, f"it was measured with other versions ({'; '.join(others)})")
    return Stored(path, content)


def _written(path: Path) -> float:
    """When; 0 where there is no such file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _check(content: Any) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is no content of a file."""
    if not isinstance(content["format"], int) or not isinstance(content["device"], str):
        raise ValueError("format and device are not what they should be")
    for name, version in content["versions"].items():
        if not isinstance(name, str) or not isinstance(version, str):
            raise ValueError("a version is no text")
    for buckets in content["sizes"].values():
        for entry in buckets.values():
            sizes = entry["sizes"]
            if not isinstance(sizes, list) or any(type(size) is not int or size < 1 for size in sizes):
                raise ValueError(f"{sizes!r} are no sizes")
    for rows in content["backends"].values():
        for row, entry in rows.items():
            if not isinstance(row, str) or not isinstance(entry["backend"], str):
                raise ValueError(f"{entry!r} names no backend")


def state(stored: Stored) -> str:
    """Whether a device's file counts, in words."""
    if stored.path is None:
        return "nothing is stored (fastdl tune)"
    if stored.content is None:
        return f"{stored.path} is ignored: {stored.complaint}; {RENEW}"
    counts = [
        f"{sum(map(len, stored.content[part].values()))} {noun}"
        for part, noun in (("sizes", "sizes of kernels"), ("backends", "choices of backends"))
    ]
    off = "" if is_on() else f"; not used, since {SWITCH}=0"
    return f"{', '.join(counts)} in {stored.path}{off}"


_warned: set[Path] = set()


def used(device: Device | None) -> dict[str, Any]:
    """What counts of a device's file: its content, or nothing. One warning a process names a file that is torn."""
    if device is None or not is_on():
        return {}
    stored = load(device)
    if stored.corrupt and stored.path is not None and stored.path not in _warned:
        _warned.add(stored.path)
        text = f"{stored.path} is ignored: {stored.complaint}; {RENEW}"
        warnings.warn(text, native.FastdlWarning, stacklevel=2)
    return stored.content or {}


def sizes_of(device: Device | None) -> dict[str, dict[str, tuple[int, ...]]]:
    """Name of the sizes -> key of the bucket -> sizes; empty where nothing counts."""
    return {
        name: {key: tuple(entry["sizes"]) for key, entry in buckets.items()}
        for name, buckets in used(device).get("sizes", {}).items()
    }


def backends_of(device: Device | None) -> dict[str, dict[str, str]]:
    """Op -> row of the table (see `fastdl.ops.measured.key`) -> backend; empty where nothing counts."""
    return {
        op: {row: entry["backend"] for row, entry in rows.items()}
        for op, rows in used(device).get("backends", {}).items()
    }


def update(
    device: Device,
    *,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    backends: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Adds entries to a device's file, in place of those of the same names; returns its path.

    An entry of sizes holds ``sizes``, one of backends ``backend``; what else stands there is for people. A file that
    does not count any more is begun anew. Raises NativeUnavailableError where no cache folder can be written.
    """
    folder = writable_root() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / device.file_name
    with _locked(folder):
        content = load(device).content or {
            "format": FORMAT, "device": device.label, "versions": versions(), "sizes": {}, "backends": {}
        }  # fmt: skip
        for part, added in (("sizes", sizes), ("backends", backends)):
            for name, entries in (added or {}).items():
                content[part].setdefault(name, {}).update(entries)
        with atomic_write(path) as file:
            file.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")
    return path


def clear(device: Device) -> Path | None:
    """Removes a device's file, whatever it holds, and returns where it was; None where there was none."""
    path = load(device).path
    if path is not None:
        path.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; where files cannot be locked, the last one's file stands, whole."""
    if sys.platform == "win32":
        yield
        return
    with (folder / ".lock").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
