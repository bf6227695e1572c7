"""The machine and the software that a result belongs to. No host, user or folder is named."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import clocks

BENCH = Path(__file__).resolve().parent
CHECKOUT = BENCH.parent
SYSTEM_CPU = Path("/sys/devices/system/cpu/cpu0/cache")
PACKAGES = ("triton", "numpy", "apex", "flash-attn", "flash-attn-3", "liger-kernel", "onnx", "onnxruntime", "xformers")
DEFAULT_L2, DEFAULT_L3 = 1 << 20, 32 << 20


@dataclass(frozen=True)
class Caches:
    """``private_bytes``: the largest cache that one core has to itself; ``shared_bytes``: the last level."""

    private_bytes: int
    shared_bytes: int


@cache
def cpu_caches() -> Caches:
    """Of the first core, as the system tells it; where it does not, 1 MiB and 32 MiB."""
    sizes: dict[int, int] = {}
    for folder in sorted(SYSTEM_CPU.glob("index*")):
        try:
            if (folder / "type").read_text().strip() == "Instruction":
                continue
            level = int((folder / "level").read_text())
            number, unit = re.fullmatch(r"(\d+)([KMG]?)", (folder / "size").read_text().strip()).groups()  # type: ignore[union-attr]
        except (OSError, ValueError, AttributeError):
            continue
        sizes[level] = int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
    private = sizes.get(2, DEFAULT_L2)
    return Caches(
        private, max([private, *(size for level, size in sizes.items() if level >= 3)]) if sizes else DEFAULT_L3
    )


def cuda_l2_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def available_memory() -> int:
    """Bytes that can be had without swapping, the container's limit included."""
    free = 4 << 30
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit ("max")
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()) // 2)
    return free


def load_average() -> float | None:
    """Processes that ran or waited to run over the last minute; None where the system keeps no count."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@cache
def cpu_name() -> str:
    """The processor's model as it names itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    except OSError:
        pass
    if sys.platform == "darwin":
        answer = _run("sysctl", "-n", "machdep.cpu.brand_string")
        if answer:
            return answer
    return platform.processor() or platform.machine() or "unknown processor"


def describe(device: torch.device) -> dict[str, Any]:
    """What is recorded of the machine."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "device": "cuda",
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "l2_bytes": cuda_l2_bytes(device),
            "cpu": cpu_name(),
            **clocks.limits(device),
        }
    caches = cpu_caches()
    return {
        "device": "cpu",
        "name": cpu_name(),
        "cores": cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "private_cache_bytes": caches.private_bytes,
        "shared_cache_bytes": caches.shared_bytes,
    }


def slug(device: torch.device) -> str:
    """The machine as a file name: ``intel-xeon-gold-6240-8-cores``, ``nvidia-h200``."""
    return slug_of(describe(device))


def slug_of(described: dict[str, Any]) -> str:
    """The same of what `describe` has told."""
    name, count = str(described["name"]), described.get("cores", 0)
    name = re.sub(r"\((?:r|tm)\)|\bCPU\b|@.*$", " ", name, flags=re.IGNORECASE)
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
    return words if described["device"] == "cuda" else f"{words}-{count}-core{'' if count == 1 else 's'}"


def is_tuned(device: torch.device) -> bool:
    """Whether what `fastdl tune` has stored for the device is in use."""
    from fastdl.tuning import store

    return bool(store.used(store.device_of(device.type)))


def versions() -> dict[str, str]:
    """Of everything that a time depends on; packages that are not there are left out."""
    import fastdl

    found = {"python": platform.python_version(), "torch": str(torch.__version__), "fastdl": fastdl.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.machine()}"
    return found


def commit() -> str | None:
    """The commit of this checkout, with ``+changes`` where a measured file differs from it; None outside a checkout."""
    top = _run("git", "-C", str(CHECKOUT), "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != CHECKOUT:
        return None
    head = _run("git", "-C", str(CHECKOUT), "rev-parse", "--verify", "--quiet", "HEAD")
    if not head:
        return None
    measured = ("fastdl", "csrc", "kernels", "bench/*.py")
    changed = _run("git", "-C", str(CHECKOUT), "status", "--porcelain", "--", *measured)
    return f"{head}+changes" if changed else head


def _run(*command: str) -> str:
    """What the command prints, or nothing where it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
