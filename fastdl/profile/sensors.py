"""Clocks, power, temperature and energy of a GPU while it works, through NVIDIA's management library (NVML).

What a GPU or its driver does not tell is None, and read as "not reported": it is never a reason to stop.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

INTERVAL = 0.05
"""Seconds between two readings."""

# The bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, "ClocksEventReasons").
REASONS = {
    0x1: "the GPU is idle",
    0x2: "clocks are set by an application",
    0x4: "the power limit is reached",
    0x8: "the hardware slows down (temperature, or its power brake)",
    0x10: "clocks are kept equal with other GPUs",
    0x20: "the temperature limit is reached (by the driver)",
    0x40: "the temperature limit is reached (by the hardware)",
    0x80: "the power brake is drawn from outside",
    0x100: "clocks are set for a display",
}
IDLE = 0x1


@dataclass(frozen=True)
class Range:
    """The least, the mean and the most of what was read."""

    least: float
    mean: float
    most: float


@dataclass(frozen=True)
class Readings:
    """What the sensors said; None for what is not reported.

    Attributes:
        name: of the GPU.
        sm_clock, memory_clock: MHz.
        power: watts.
        temperature: degrees Celsius.
        energy: joules over the whole time.
        reasons: why clocks were below the most there is, in words; an idle GPU between two kernels is no reason.
        missing: why there are no readings at all; empty where there are some.
    """

    name: str | None = None
    sm_clock: Range | None = None
    memory_clock: Range | None = None
    power: Range | None = None
    temperature: Range | None = None
    energy: float | None = None
    reasons: tuple[str, ...] | None = None
    missing: str = ""


class Sensors:
    """Reads a GPU's sensors from `start` to `stop`, in a thread of its own.

    ``device`` is torch's number of the GPU, which is not NVML's where CUDA_VISIBLE_DEVICES hides some: it is found by
    its UUID.
    """

    def __init__(self, device: int, interval: float = INTERVAL) -> None:
        self._device = device
        self._interval = interval
        self._values: dict[str, list[float]] = {}
        self._bits: int | None = None
        self._energy: float | None = None
        self._missing = ""
        self._nvml: Any = None
        self._handle: Any = None
        self._enough = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        try:
            import pynvml
        except ImportError:
            self._missing = "nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._missing = f"NVML does not start: {error}"
            return
        self._nvml = pynvml
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid_of(self._device))
        except (pynvml.NVMLError, AttributeError) as error:
            self._missing = f"NVML does not know this GPU: {error}"
            self._shut_down()
            return
        self._energy = self._ask(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        self._read()
        self._thread = threading.Thread(target=self._keep_reading, name="fastdl sensors", daemon=True)
        self._thread.start()

    def stop(self) -> Readings:
        """Ends the reading. Energy is what the GPU's own counter has gone on by."""
        if self._nvml is None:
            return Readings(missing=self._missing)
        self._enough.set()
        if self._thread is not None:
            self._thread.join()
        self._read()
        nvml, handle = self._nvml, self._handle
        last = self._ask(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        name = self._ask(lambda: nvml.nvmlDeviceGetName(handle))
        self._shut_down()
        return Readings(
            name=name.decode() if isinstance(name, bytes) else name,
            sm_clock=self._range("sm_clock"),
            memory_clock=self._range("memory_clock"),
            power=self._range("power"),
            temperature=self._range("temperature"),
            energy=None if last is None or self._energy is None else (last - self._energy) / 1e3,
            reasons=None if self._bits is None else in_words(self._bits),
        )

    def _keep_reading(self) -> None:
        while not self._enough.wait(self._interval):
            self._read()

    def _read(self) -> None:
        nvml, handle = self._nvml, self._handle
        asked: dict[str, tuple[Callable[[], Any], float]] = {
            "sm_clock": (lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM), 1.0),
            "memory_clock": (lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM), 1.0),
            "power": (lambda: nvml.nvmlDeviceGetPowerUsage(handle), 1e-3),
            "temperature": (lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU), 1.0),
        }
        for name, (question, unit) in asked.items():
            value = self._ask(question)
            if value is not None:
                self._values.setdefault(name, []).append(value * unit)
        bits = self._ask(lambda: _reason_bits(nvml, handle))
        if bits is not None:
            self._bits = (self._bits or 0) | bits

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer; None where this GPU, or this version of the library, has none."""
        try:
            return question()
        except (self._nvml.NVMLError, AttributeError):
            return None

    def _range(self, name: str) -> Range | None:
        values = self._values.get(name)
        return Range(min(values), sum(values) / len(values), max(values)) if values else None

    def _shut_down(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()
        self._nvml = None


def _reason_bits(nvml: Any, handle: Any) -> int:
    """By the name that the library has for it now, or the one before."""
    ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return int((ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))


def in_words(bits: int) -> tuple[str, ...]:
    """Each reason whose bit is set, but that the GPU was idle; a bit that nobody here knows is told as a number."""
    known = [text for bit, text in REASONS.items() if bits & bit and bit != IDLE]
    unknown = bits & ~sum(REASONS)
    return (*known, *([f"unknown reason {unknown:#x}"] if unknown else []))


def uuid_of(device: int) -> str:
    """As NVML writes it, which torch does without the word in front."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
