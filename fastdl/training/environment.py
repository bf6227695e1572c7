"""What a result depends on besides its configuration: versions, threads, and which kernels are there."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

import fastdl

__all__ = ["describe_environment", "environment_changes"]

_PACKAGES = ("torch", "lightning", "torchmetrics", "numpy", "triton")


def describe_environment() -> dict[str, Any]:
    """Return versions, machine, threads and available backends, as values that JSON can hold."""
    versions = {"fastdl": fastdl.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "backends": [name for name, status in fastdl.backends().items() if status.available],
    }


def environment_changes(before: Mapping[str, Any]) -> list[str]:
    """Describe in what the machine differs from that of an earlier attempt, each a reason for other rounding."""
    now = describe_environment()
    old = {**before, **before["versions"]}
    new = {**now, **now["versions"]}
    return [
        f"{name} was {old.get(name)}, is {new[name]}"
        for name in new
        if name != "versions" and old.get(name) != new[name]
    ]
