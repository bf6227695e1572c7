"""What is stored: what counts and what does not, whole files, and nothing read where nothing is to be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from fastdl import doctor, native
from fastdl.tuning import store

DEVICE = store.Device("NVIDIA H100 80GB HBM3", "9.0")
ENTRY = {"sizes": [64, 4], "default": [32, 4]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(store.SWITCH, raising=False)
    monkeypatch.setattr(store, "_warned", set())
    return tmp_path / "cache" / "tuned"


def test_what_was_stored_is_read_again_and_added_to(folder: Path) -> None:
    assert store.load(DEVICE) == store.Stored(None)
    assert store.sizes_of(DEVICE) == {}
    path = store.update(DEVICE, sizes={"row_norm_forward": {"width=64": ENTRY}})
    assert path == folder / "nvidia-h100-80gb-hbm3-9.0.json"
    store.update(DEVICE, sizes={"row_norm_forward": {"width=128": ENTRY}}, backends={"x": {"row": {"backend": "cuda"}}})
    store.update(DEVICE, sizes={"row_norm_forward": {"width=64": {"sizes": [1, 2]}}})
    assert store.sizes_of(DEVICE) == {"row_norm_forward": {"width=64": (1, 2), "width=128": (64, 4)}}
    assert store.backends_of(DEVICE) == {"x": {"row": "cuda"}}
    assert store.sizes_of(store.Device("NVIDIA A100", "8.0")) == {}
    assert store.clear(DEVICE) == path
    assert store.load(DEVICE) == store.Stored(None)
    assert store.clear(DEVICE) is None


@pytest.mark.parametrize("name", ["fastdl", "torch", "triton", "kernels", "format", "device"])
def test_a_file_of_another_version_is_ignored_and_says_so(name: str) -> None:
    path = store.update(DEVICE, sizes={"dropout": {"a": ENTRY}})
    content = json.loads(path.read_text())
    if name in content["versions"]:
        content["versions"][name] = "0.0"
    else:
        content[name] = 0 if name == "format" else "another"
    path.write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is no fault
        assert store.sizes_of(DEVICE) == {}
    stored = store.load(DEVICE)
    assert not stored.corrupt
    assert name in stored.complaint
    assert "fastdl tune" in store.state(stored)
    store.update(DEVICE, sizes={"dropout": {"b": ENTRY}})
    assert store.sizes_of(DEVICE) == {"dropout": {"b": (64, 4)}}  # begun anew: the old entry does not come back


TORN: list[Any] = [
    "{",
    "",
    "[]",
    '"text"',
    json.dumps({"format": 1}),
    ("sizes", {"dropout": {"a": {"sizes": [0, 4]}}}),
    ("sizes", {"dropout": {"a": {"sizes": [True, 4]}}}),
    ("sizes", {"dropout": {"a": [64, 4]}}),
    ("sizes", ["dropout"]),
    ("backends", {"dropout": {"a": {"backend": 3}}}),
    ("versions", {"fastdl": 1}),
]


@pytest.mark.parametrize("torn", TORN, ids=range(len(TORN)))
def test_a_torn_file_is_ignored_with_one_warning_that_names_it(torn: Any) -> None:
    path = store.update(DEVICE, sizes={"dropout": {"a": ENTRY}})
    if isinstance(torn, tuple):
        torn = json.dumps(json.loads(path.read_text()) | dict([torn]))
    path.write_text(torn)
    with pytest.warns(native.FastdlWarning, match="is ignored") as caught:
        assert [store.sizes_of(DEVICE), store.backends_of(DEVICE)] == [{}, {}]
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    assert "fastdl tune" in str(caught[0].message)
    store.update(DEVICE, sizes={"dropout": {"b": ENTRY}})
    assert store.sizes_of(DEVICE) == {"dropout": {"b": (64, 4)}}


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    store.update(DEVICE, sizes={"dropout": {"a": ENTRY}}, backends={"x": {"row": {"backend": "cuda"}}})
    monkeypatch.setenv(store.SWITCH, "0")
    assert store.sizes_of(DEVICE) == {}
    assert store.backends_of(DEVICE) == {}
    assert "not used" in store.state(store.load(DEVICE))
    monkeypatch.setenv(store.SWITCH, "1")
    assert store.sizes_of(DEVICE)


def test_writers_at_once_lose_nothing_and_readers_see_whole_files() -> None:
    path = store.update(DEVICE)
    torn: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            stored = store.load(DEVICE)
            if stored.content is None:
                torn.append(stored.complaint)

    code = (
        "import sys; from fastdl.tuning import store\n"
        "device = store.Device('NVIDIA H100 80GB HBM3', '9.0')\n"
        "for i in range(15): store.update(device, sizes={'dropout': {f'{sys.argv[1]} {i}': {'sizes': [i + 1, 2]}}})"
    )
    reader = threading.Thread(target=read)
    reader.start()
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    done.set()
    reader.join()
    assert not torn
    assert len(store.sizes_of(DEVICE)["dropout"]) == 45
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".lock")] == [path.name]


def test_a_writer_that_fails_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.update(DEVICE, sizes={"dropout": {"a": ENTRY}})

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        store.update(DEVICE, sizes={"dropout": {"b": ENTRY}})
    assert store.sizes_of(DEVICE) == {"dropout": {"a": (64, 4)}}
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".json"] == [path.name]
    assert not list(path.parent.glob(f".{path.stem}-*"))


def test_without_a_folder_that_can_be_written_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(native.NativeUnavailableError, match="FASTDL_CACHE"):
        store.update(DEVICE)


def test_the_digest_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    source = tmp_path / "csrc" / "cpu" / "one.cpp"
    source.write_text("1")
    monkeypatch.setattr(store, "find_csrc", lambda: tmp_path / "csrc")
    first = store.digest()
    assert store.digest() == first
    source.write_text("2")
    second = store.digest()
    source.rename(source.with_name("two.cpp"))
    assert len({first, second, store.digest()}) == 3


def test_the_doctor_tells_what_is_stored() -> None:
    device = store.processor()
    assert doctor._tuned() == {device.label: "nothing is stored (fastdl tune)"}
    path = store.update(device, backends={"group_norm": {"cpu float32 nchw small": {"backend": "reference"}}})
    assert "1 choices of backends" in doctor._tuned()[device.label]
    content = json.loads(path.read_text())
    content["versions"]["kernels"] = "other"
    path.write_text(json.dumps(content))
    told = doctor._tuned()[device.label]
    assert "is ignored" in told
    assert "other there" in told
    assert "fastdl tune" in told


def test_importing_the_package_reads_nothing(folder: Path) -> None:
    """Nor does a call on the CPU read what is stored of GPUs; what is torn is found by the first call that asks."""
    folder.mkdir(parents=True)
    (folder / store.processor().file_name).write_text("{")
    code = (
        "import sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "import fastdl, torch\n"
        "print('fastdl.tuning.store' in sys.modules)\n"
        "fastdl.set_backend('reference')\n"
        "fastdl.ops.group_norm(torch.randn(2, 4), 2)\n"
        "print('fastdl.tuning.store' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_two_kinds_of_gpu_have_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA H100", "NVIDIA H100"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: names[index])
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (9, 0))
    assert store.gpu() == store.Device("NVIDIA H100", "9.0")
    names[1] = "NVIDIA A100"
    assert store.gpu() is None
    assert store.sizes_of(store.gpu()) == {}


def test_a_benchmark_knows_whether_it_measures_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from fastdl.bench import machine

    cpu = torch.device("cpu")
    assert machine.is_tuned(cpu) is False
    store.update(store.processor(), sizes={}, backends={"x": {"row": {"backend": "cpu"}}})
    assert machine.is_tuned(cpu) is True
    monkeypatch.setenv(store.SWITCH, "0")
    assert machine.is_tuned(cpu) is False
