"""What a GPU's driver tells of its clocks, by a driver of the test's own."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fastdl.bench import clocks

CUDA = torch.device("cuda")


class NVMLError(Exception):
    pass


def driver(**changes):
    def refused(handle):
        raise NVMLError("not supported")

    def by_uuid(uuid):
        if uuid != "GPU-1234":
            raise NVMLError("not found")
        return "handle"

    module = {
        "NVMLError": NVMLError,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1755, 2: 3201}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: {1: 1980, 2: 3202}[kind],
        "nvmlDeviceGetTemperature": lambda handle, kind: 41,
        "nvmlDeviceGetPowerUsage": lambda handle: 123456,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700000,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x4 | 0x40 | 0x1,
    }
    return SimpleNamespace(
        **{**module, **{name: refused if value is None else value for name, value in changes.items()}}
    )


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))

    def use(nvml):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)

    return use


def test_state_and_limits(gpu):
    gpu(driver())
    assert clocks.read(CUDA) == {
        "graphics_mhz": 1755,
        "memory_mhz": 3201,
        "celsius": 41,
        "watts": 123.456,
        "slowed_by": ["power cap", "hardware thermal slowdown"],
    }
    assert clocks.limits(CUDA) == {
        "driver": "580.1",
        "most_graphics_mhz": 1980,
        "most_memory_mhz": 3202,
        "most_watts": 700.0,
    }


def test_what_the_driver_does_not_tell_is_left_out(gpu):
    gpu(driver(nvmlDeviceGetPowerUsage=None, nvmlDeviceGetCurrentClocksThrottleReasons=None))
    assert clocks.read(CUDA) == {"graphics_mhz": 1755, "memory_mhz": 3201, "celsius": 41}


def test_there_is_nothing_without_a_driver_without_a_gpu_or_for_a_part_of_one(gpu, monkeypatch):
    gpu(driver(nvmlInit=None))
    assert clocks.read(CUDA) == {}
    gpu(None)  # importing it fails
    assert clocks.read(CUDA) == clocks.limits(CUDA) == {}
    gpu(driver())
    assert clocks.read(torch.device("cpu")) == {}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a part"))
    assert clocks.read(CUDA) == {}
