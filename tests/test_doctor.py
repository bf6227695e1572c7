"""The doctor tells the truth, in both forms, and survives what it examines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdl
from fastdl import doctor

PARTS = {
    *("versions", "platform", "cpu", "devices", "backends", "native", "native_cuda", "toolchain", "cache", "cpu_pool"),
    *("auto", "auto_on_gpus", "tuned", "environment"),
}


def test_the_report_holds_what_the_package_says_of_itself() -> None:
    report = doctor.report()
    assert set(report) == PARTS
    assert not [name for name, part in report.items() if "error" in part]
    assert report["versions"]["fastdl"] == fastdl.__version__
    assert report["versions"]["torch"] == torch.__version__
    for name, status in fastdl.backends().items():
        assert report["backends"][name] == {"available": status.available, "reason": status.reason}
    assert report["native"]["available"] is report["backends"]["cpu"]["available"]
    assert len(report["devices"]["gpus"]) == torch.cuda.device_count()
    best = "cpu" if report["backends"]["cpu"]["available"] else "reference"
    assert report["auto"]["group_norm"]["cpu/float32"] == best


def test_json_is_all_that_stands_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(json=True) == 0
    assert set(json.loads(capsys.readouterr().out)) == PARTS


@pytest.mark.parametrize("with_rich", [True, False])
def test_people_read_every_part(
    with_rich: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    if with_rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)  # importing it now raises ImportError
    assert doctor.main() == 0
    text = capsys.readouterr().out
    for word in (
        "Versions",
        "Backends",
        "reference",
        "What auto chooses",
        "group_norm",
        "FASTDL_CACHE",
        torch.__version__,
    ):
        assert word in text


def test_a_part_that_breaks_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down() -> None:
        raise RuntimeError("no [such] device")

    monkeypatch.setattr("fastdl.doctor._devices", break_down)
    assert doctor.report()["devices"] == {"error": "RuntimeError: no [such] device"}
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor.main() == 0
    text = capsys.readouterr().out
    assert "RuntimeError: no [such] device" in text
    assert "What auto chooses" in text


def test_variables_that_are_set_are_shown_and_misspelt_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "3")
    monkeypatch.setenv("FASTDL_BULD", "0")
    environment = doctor.report()["environment"]
    assert environment["MAX_JOBS"]["value"] == "3"
    assert environment["FASTDL_DATA"]["value"] == os.environ.get("FASTDL_DATA")
    assert "no such variable" in environment["FASTDL_BULD"]["effect"]
    assert "FASTDL_BUILD" in environment["FASTDL_BULD"]["effect"]


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = {"index": 0, "name": "A GPU", "capability": "9.0", "memory_bytes": 2**30, "multiprocessors": 132}
    facts = {"cuda_of_torch": "13.0", "driver": "580.1", "gpus": [gpu]}
    monkeypatch.setattr("fastdl.doctor._devices", lambda: facts)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert doctor.main() == 0
    text = capsys.readouterr().out
    assert "A GPU, capability 9.0, 132 multiprocessors, 1,024.0 MiB" in text
    assert "580.1" in text


def test_without_permission_to_build_nothing_is_built_and_the_reason_is_told(tmp_path: Path) -> None:
    environment = {**os.environ, "FASTDL_BUILD": "0", "FASTDL_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "fastdl.doctor", "--json"], env=environment, capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert not (tmp_path / "cache").exists()
    assert done.stderr == ""
    assert report["cache"]["entries"] == []
    assert not report["backends"]["cpu"]["available"]
    assert "FASTDL_BUILD=0 forbids building" in report["backends"]["cpu"]["reason"]
    assert report["auto"]["group_norm"]["cpu/float32"] == "reference"
    assert report["environment"]["FASTDL_BUILD"]["value"] == "0"
