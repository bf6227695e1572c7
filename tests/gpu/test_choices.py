"""What ``auto`` takes on a GPU, from a table that a test writes; no GPU is needed to look it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fastdl import doctor
from fastdl.ops import dispatch, measured, measured_choices

Table = dict[str, dict[str, str]]
CACHED = (
    dispatch.choose,
    dispatch.implementation,
    dispatch.status,
    measured.capabilities,
    measured._fastest,
    measured._capability_of,
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Pretends GPUs of compute capability 9.0, backends that are there, and a table; gives the list of what was asked.

    Each backend's kernels are functions that tell which they are.
    """
    probed: list[str] = []

    def pretend(table: Table, available: tuple[str, ...] = ("triton", "cuda")) -> list[str]:
        def backend(name: str) -> dispatch.Backend:
            def probe() -> dispatch.BackendStatus:
                probed.append(name)
                return dispatch.BackendStatus(name in available, "" if name in available else "not here")

            def load(op: str) -> dispatch.Implementation:
                return dispatch.Implementation(
                    lambda x: f"{name} forward", lambda grad, x: f"{name} backward", "", lambda: name
                )

            row = dispatch.BACKENDS[name]
            return dispatch.Backend(probe, load, row.devices, row.dtypes)

        monkeypatch.setattr(measured, "CHOICES", table)
        monkeypatch.setattr(measured, "capabilities", lambda: ("9.0",))
        monkeypatch.setattr(measured, "_capability_of", lambda index: "9.0")
        monkeypatch.setattr(
            dispatch, "BACKENDS", {**dispatch.BACKENDS, **{name: backend(name) for name in ("triton", "cuda")}}
        )
        return probed

    clear()
    yield pretend
    monkeypatch.undo()
    clear()


def clear() -> None:
    for function in CACHED:
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def choice(dtype: torch.dtype = torch.float32, op: str = "group_norm") -> str:
    return dispatch.choose(op, "auto", "cuda", dtype)


def test_the_table_that_ships_favours_nothing_that_no_gpu_has_measured() -> None:
    for op, rows in measured_choices.CHOICES.items():
        for row, backend in rows.items():
            capability, dtype, layout, size = row.split()
            assert measured.key(capability, dtype, layout, size) == row
            assert float(capability) >= 8.0
            assert hasattr(torch, dtype)
            assert layout in ("nchw", "channels_last")
            assert size in ("small", "medium", "large")
            assert backend in dispatch.PREFERENCES["cuda"], op


def test_until_it_is_measured_it_is_triton_and_cuda_is_not_even_looked_for(gpu: Callable[..., list[str]]) -> None:
    probed = gpu({})
    assert choice() == "triton"
    assert probed == ["triton"]


def test_without_triton_it_is_cuda_and_without_both_the_reference(gpu: Callable[..., list[str]]) -> None:
    gpu({}, available=("cuda",))
    assert choice() == "cuda"
    clear()
    gpu({}, available=())
    assert choice() == "reference"


def test_float64_has_no_kernel_on_a_gpu(gpu: Callable[..., list[str]]) -> None:
    gpu({"group_norm": {"9.0 float64 nchw small": "cuda"}})
    assert choice(torch.float64) == "reference"


@pytest.mark.parametrize(
    "row", ["8.0 float32 nchw small", "9.0 bfloat16 nchw small", "10.0 float32 nchw small", "9.0 float32 nchw small"]
)
def test_only_a_row_of_this_gpu_op_and_dtype_counts(gpu: Callable[..., list[str]], row: str) -> None:
    gpu({"group_norm": {row: "cuda"}})
    assert choice() == (dispatch.BY_MEASUREMENT if row.startswith("9.0 float32") else "triton")
    assert choice(op="batch_norm") == "triton"


def test_a_row_for_the_usual_one_changes_nothing(gpu: Callable[..., list[str]]) -> None:
    probed = gpu({"group_norm": {"9.0 float32 nchw small": "triton"}})
    assert choice() == "triton"
    assert probed == ["triton"]


def test_a_favoured_backend_that_is_not_there_is_passed_over(gpu: Callable[..., list[str]]) -> None:
    gpu({"group_norm": {"9.0 float32 nchw small": "cuda"}}, available=("triton",))
    assert choice() == "triton"


def test_each_call_goes_where_its_size_and_layout_were_fastest(gpu: Callable[..., list[str]]) -> None:
    gpu({"group_norm": {"9.0 float32 nchw small": "cuda", "9.0 float32 channels_last small": "triton"}})
    kernels = dispatch.implementation("group_norm", choice())
    assert kernels.backend == dispatch.BY_MEASUREMENT
    small, large = torch.empty(2, 8, 4, 4), torch.empty(2, 8, 256, 256)
    assert kernels.forward(small) == "cuda forward"
    assert kernels.backward(small, small) == "cuda backward"
    rows = small.to(memory_format=torch.channels_last)
    # Backward looks at the input, as forward did, whatever the gradient's layout.
    assert kernels.forward(rows) == "triton forward"
    assert kernels.backward(small, rows) == "triton backward"
    assert kernels.forward(large) == "triton forward"
    assert kernels.update_running_statistics is not None


def test_the_doctor_tells_what_decides(gpu: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no GPU has been measured yet" in doctor._auto_on_gpus()["every op"] or any(measured_choices.CHOICES)
    table = {"group_norm": {"9.0 float32 nchw small": "cuda", "9.0 float32 nchw large": "triton"}}
    monkeypatch.setattr(doctor, "CHOICES", table)
    told = doctor._auto_on_gpus()["group_norm on 9.0"]
    assert "of 2 measured combinations" in told
    assert "cuda in 1, triton in 1" in told


def test_the_doctor_names_the_toolchain_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDL_CUDA_ARCHS", "90a;80")
    assert doctor._native_cuda()["archs"] == "80;90a"
    monkeypatch.setenv("FASTDL_CUDA_ARCHS", "hopper")
    assert "FASTDL_CUDA_ARCHS is 'hopper'" in doctor._native_cuda()["archs"]
    monkeypatch.setattr("fastdl.native.cuda_toolkit._on_path", lambda: None)
    monkeypatch.setattr("fastdl.native.cuda_toolkit._in_wheels", list)
    monkeypatch.setattr("fastdl.native.cuda_toolkit.SYSTEM_NVCC", Path("/no/such/nvcc"))
    for name in ("CUDACXX", "NVCC", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert "nvidia-cuda-nvcc" in doctor._nvcc()["reason"]
