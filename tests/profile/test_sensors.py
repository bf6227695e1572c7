"""The GPU's sensors, through a module that answers as NVIDIA's does."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from fastdl.profile import sensors
from fastdl.profile.report import sensor_lines
from fastdl.profile.sensors import Range, Readings, Sensors, in_words
from tests.profile.fake_nvml import FakeNvml, Properties


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())


def read(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None) -> Readings:
    monkeypatch.setitem(sys.modules, "pynvml", None if nvml is None else nvml.module())
    reading = Sensors(0, interval=60)
    reading.start()
    return reading.stop()


def test_units_and_what_changes_between_the_first_and_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    found = read(monkeypatch, nvml)
    assert found == Readings(
        name="A GPU",
        sm_clock=Range(1980, 1980, 1980),
        memory_clock=Range(2619, 2619, 2619),
        power=Range(300, 500, 700),  # milliwatts
        temperature=Range(61, 61, 61),
        energy=12.5,  # millijoules
        reasons=("the power limit is reached", "the temperature limit is reached (by the hardware)"),
    )
    assert nvml.running == 0


def test_it_reads_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml.module())
    reading = Sensors(0, interval=0.001)
    reading.start()
    deadline = time.monotonic() + 10
    while nvml.asked.count("power") < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    reading.stop()
    assert nvml.asked.count("power") >= 5
    assert nvml.running == 0


@pytest.mark.parametrize("missing", ["energy", "power", "temperature", "name", "reasons"])
def test_what_a_gpu_does_not_support_is_not_reported(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, FakeNvml(missing))
    assert getattr(found, missing) is None
    assert found.sm_clock == Range(1980, 1980, 1980)
    assert ("not reported" in sensor_lines(found, 1)) == (missing != "name")


def test_older_libraries_know_the_reasons_by_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, FakeNvml("nvmlDeviceGetCurrentClocksEventReasons"))
    assert found.reasons is not None
    assert "the power limit is reached" in found.reasons


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("init", "NVML does not start: Driver Not Loaded"),
        ("handle", "NVML does not know this GPU: Not Supported"),
    ],
)
def test_no_nvml_is_told_and_no_failure(missing: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(missing)
    found = read(monkeypatch, nvml)
    assert found == Readings(missing=message)
    assert sensor_lines(found, 1) == f"GPU sensors: not reported ({message})"
    assert nvml.running == 0


def test_no_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, None).missing == "nvidia-ml-py is not installed"


def test_every_reason_that_nvml_names_has_words() -> None:
    pynvml = pytest.importorskip("pynvml")
    prefix = "nvmlClocksEventReason"
    named = {name: getattr(pynvml, name) for name in dir(pynvml) if name.startswith(prefix)}
    named = {name: bit for name, bit in named.items() if bit and name != f"{prefix}All"}
    assert set(named.values()) == set(sensors.REASONS)
    assert named[f"{prefix}SwPowerCap"] == 0x4
    assert in_words(named[f"{prefix}SwPowerCap"]) == ("the power limit is reached",)
    assert in_words(named[f"{prefix}HwThermalSlowdown"]) == ("the temperature limit is reached (by the hardware)",)


def test_bits_in_words() -> None:
    assert in_words(0) == in_words(0x1) == ()
    assert in_words(0x9) == ("the hardware slows down (temperature, or its power brake)",)
    assert in_words(0x400) == ("unknown reason 0x400",)


def test_what_the_sensors_said_is_told_by_step() -> None:
    found = Readings("A GPU", Range(1500, 1700.4, 1980), None, Range(300, 500, 700), Range(61, 61, 61), 12.5, ())
    assert sensor_lines(found, 5).splitlines() == [
        "A GPU: SM clock 1700 MHz (1500 to 1980), memory clock not reported",
        "power 500 W (300 to 700), temperature 61 °C, energy 2.5 J a step",
        "clocks held back by: nothing",
    ]
