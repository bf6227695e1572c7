"""A profile on a GPU from beginning to end, where profiler, GPU and sensors are stand-ins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch.autograd import DeviceType

import fastdl
from fastdl.ops import group_norm
from fastdl.profile import Limits, profile, session
from fastdl.profile.annotations import ANNOTATOR
from tests.profile.fake_nvml import FakeNvml, Properties
from tests.profile.watching import event, with_children


class FakeProfiler:
    """`torch.profiler.profile`, which sees two kernels of 40 us in each call, and one of torch's."""

    on: ClassVar[bool] = False
    activities: ClassVar[list[Any]] = []

    def __init__(self, activities: list[Any], **options: Any) -> None:
        FakeProfiler.activities = activities
        self.calls: dict[int, Any] = {}

    def start(self) -> None:
        FakeProfiler.on = True

    def stop(self) -> None:
        FakeProfiler.on = False

    def events(self) -> list[Any]:
        roots, device = [event("aten::mm", 1, 2, kernels=(("gemm", 100.0),))], [("gemm", 100.0)]
        for i, (number, call) in enumerate(self.calls.items()):
            kernels = (("first", 40.0), ("second", 40.0))
            roots.append(event(call.name, 10 * i + 10, 10 * i + 15, number=number, kernels=kernels))
            device += kernels
        found = with_children(*roots)
        start = 0.0
        for name, length in device:
            found.append(event(name, start, start + length, device_type=DeviceType.CUDA))
            start += length
        return found


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("yes"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    monkeypatch.setattr(torch.profiler, "profile", FakeProfiler)
    monkeypatch.setattr(session, "_profiler_is_on", lambda: FakeProfiler.on)
    monkeypatch.setattr(session, "measure_limits", lambda device, calls: Limits(1e9))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml().module())
    yield waited
    FakeProfiler.on = False


def test_a_gpu_is_taken_where_there_is_one(stand_ins: list[str]) -> None:
    x = torch.randn(2, 8, 4, 4)
    with fastdl.use_backend("reference"), profile() as taken:
        for _ in range(2):
            group_norm(x, 2)
            taken.step()
        taken._profiler.calls = dict(ANNOTATOR.calls or {})
    assert len(stand_ins) == 2  # before the first and after the last
    assert FakeProfiler.activities == [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    assert [record.launches for record in taken.records] == [2, 2]
    assert [record.seconds for record in taken.records] == pytest.approx([80e-6, 80e-6])
    accounts = taken.accounts
    assert accounts.seconds_of_ops == pytest.approx(160e-6)
    assert accounts.seconds_of_others == pytest.approx(100e-6)
    assert accounts.rest == pytest.approx(accounts.whole - 260e-6)
    lines = taken.table().splitlines()
    assert lines[0].endswith("the times below are the GPU's time in one step")
    row = next(line.split() for line in lines if line.startswith("group_norm"))
    assert row[3:6] == ["1", "0.0800", "0.0800"]
    assert row[-1] == "2"
    assert any(line.startswith("idle") for line in lines)
    assert lines[-3:] == [
        "A GPU: SM clock 1980 MHz, memory clock 2619 MHz",
        "power 500 W (300 to 700), temperature 61 °C, energy 6.25 J a step",
        "clocks held back by: the power limit is reached; the temperature limit is reached (by the hardware)",
    ]
    assert taken.to_dict()["sensors"]["energy"] == 12.5


def test_the_cpu_of_a_machine_with_a_gpu(stand_ins: list[str]) -> None:
    with profile(device="cpu") as taken:
        pass
    assert stand_ins == []
    assert FakeProfiler.activities == [torch.profiler.ProfilerActivity.CPU]
    assert taken.readings is None
