"""A GPU's sensors as NVIDIA's management library tells of them, with values that a test chooses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

UUID = "5d3a1c0e-0000-1111-2222-333344445555"


class NVMLError(Exception):
    """`pynvml.NVMLError`."""


class FakeNvml:
    """What answers as NVML does, in its units; the functions in ``missing`` are refused."""

    def __init__(self, *missing: str) -> None:
        self.missing = missing
        self.running = 0
        self.asked: list[str] = []
        self.powers = [300_000, 700_000]
        self.bits = [0x1, 0x4 | 0x40]

    def module(self) -> SimpleNamespace:
        """What is used of `pynvml` (nvidia-ml-py), by the names and with the arguments that it has there."""
        reasons = {
            "nvmlDeviceGetCurrentClocksEventReasons": self.reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.reasons,
        }
        return SimpleNamespace(
            NVMLError=NVMLError,
            NVML_CLOCK_SM=1,
            NVML_CLOCK_MEM=2,
            NVML_TEMPERATURE_GPU=0,
            nvmlInit=self.init,
            nvmlShutdown=self.shut_down,
            nvmlDeviceGetHandleByUUID=lambda uuid: self.answer("handle", f"handle of {uuid}"),
            nvmlDeviceGetName=self.name,
            nvmlDeviceGetTotalEnergyConsumption=lambda handle: self.answer(
                "energy", 1_000_000 + 12_500 * self.asked.count("energy")
            ),
            nvmlDeviceGetClockInfo=lambda handle, kind: self.answer("clock", {1: 1980, 2: 2619}[kind]),
            nvmlDeviceGetPowerUsage=lambda handle: self.answer("power", following(self.powers)),
            nvmlDeviceGetTemperature=lambda handle, kind: self.answer("temperature", {0: 61}[kind]),
            **{name: function for name, function in reasons.items() if name not in self.missing},
        )

    def answer(self, name: str, value: Any) -> Any:
        assert self.running == 1, f"{name} was asked while NVML does not run"
        if name in self.missing:
            raise NVMLError("Not Supported")
        self.asked.append(name)
        return value

    def init(self) -> None:
        if "init" in self.missing:
            raise NVMLError("Driver Not Loaded")
        self.running += 1

    def shut_down(self) -> None:
        self.running -= 1

    def name(self, handle: str) -> str:
        assert handle == f"handle of GPU-{UUID}"
        return str(self.answer("name", "A GPU"))

    def reasons(self, handle: str) -> int:
        return int(self.answer("reasons", following(self.bits)))


def following(values: list[int]) -> int:
    """The next one; the last one again and again."""
    return values.pop(0) if len(values) > 1 else values[0]


class Properties:
    uuid = UUID
