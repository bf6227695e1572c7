"""A GPU's clocks, temperature and power, as its driver tells them: a time without them cannot be compared.

Through NVML (``nvidia-ml-py``). Whatever the driver does not tell is left out, and without NVML there is nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

# Bits of NVML's "clocks event reasons" that mean a GPU runs slower than it was asked to.
REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def read(device: torch.device) -> dict[str, Any]:
    """``graphics_mhz``, ``memory_mhz``, ``celsius``, ``watts`` and ``slowed_by``, a list of reasons, of now."""
    nvml = _nvml()
    handle = _handle(nvml, device)
    if handle is None:
        return {}
    questions: dict[str, Callable[[], Any]] = {
        "graphics_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "slowed_by": lambda: reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
    }
    return _answers(nvml, questions)


def limits(device: torch.device) -> dict[str, Any]:
    """What the machine is described with: its ``driver``, and the highest clocks and power that it may reach."""
    nvml = _nvml()
    handle = _handle(nvml, device)
    if handle is None:
        return {}
    return _answers(
        nvml,
        {
            "driver": nvml.nvmlSystemGetDriverVersion,
            "most_graphics_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "most_memory_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "most_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        },
    )


def reasons(bits: int) -> list[str]:
    return [name for bit, name in REASONS.items() if bits & bit]


def _nvml() -> Any:
    """The module with its library started, or None."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()  # counts how often it was started, and starts once
    except Exception:  # no package, no library, no driver
        return None
    return nvml


def _handle(nvml: Any, device: torch.device) -> Any:
    """NVML's device, found by its UUID: its numbers do not follow CUDA_VISIBLE_DEVICES."""
    if nvml is None or device.type != "cuda":
        return None
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except (nvml.NVMLError, AttributeError):
        return None


def _answers(nvml: Any, questions: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    found = {}
    for name, ask in questions.items():
        try:
            found[name] = ask()
        except (nvml.NVMLError, AttributeError):
            continue
    return found
