"""``fastdl inspect`` on a small kernel of each language: what it prints and keeps, and what it says where it cannot."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from fastdl import cli
from fastdl.inspection import catalog, columns, cuda_code, measuring, store, triton_code
from fastdl.kernels.shipped import Limits, Shipped

if cuda_code.missing() or triton_code.missing():
    pytest.skip("needs both compilers", allow_module_level=True)

from tests.aot import toys

ENTRY = Shipped(
    name="toy/4x1024/centre/1024/fp32",
    kernel=toys.centre,
    signature={"input_pointer": "*fp32", "unused_pointer": "*fp32", "output_pointer": "*fp32", "BLOCK": "constexpr"},
    constexprs={"BLOCK": 1024},
    divisible=("input_pointer", "output_pointer"),
    num_warps=4,
    num_stages=1,
    limits=Limits(64, 1024, narrow=("unused_pointer",)),
)
SOURCE = """
namespace fastdl::cuda::toy_fill {
template <class T>
__global__ void __launch_bounds__(256) kernel(T* output) { output[threadIdx.x] = T(exp2f(threadIdx.x)); }
template __global__ void kernel<float>(float*);
__global__ void plain(float4* output) {
    extern __shared__ float4 dynamic[];
    dynamic[threadIdx.x] = output[threadIdx.x];
    __syncthreads();
    output[threadIdx.x] = dynamic[threadIdx.x ^ 1];
}
}
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests of this file share, so that each kernel is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def package(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One Triton kernel and one .cu file."""
    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    (folder / "toy_fill.cu").write_text(SOURCE)
    limits = {"fastdl::cuda::toy_fill::kernel<*>": {}, "fastdl::cuda::toy_fill::plain": {}}
    (folder / "toy_fill.limits.json").write_text(json.dumps(limits))
    monkeypatch.setattr(cuda_code, "folder", lambda: folder)
    monkeypatch.setattr(catalog, "all_shipped", lambda: (ENTRY,))
    monkeypatch.setenv("FASTDL_CACHE", str(kept))
    return folder


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FASTDL_DEBUG", raising=False)
        yield


def cells(text: str, column: str) -> dict[str, str]:
    """Of the table that has the column: by name, what stands there."""
    found: dict[str, str] = {}
    header = ""
    for line in text.splitlines():
        if line.startswith("   "):
            header = line if re.search(rf"\s\s{re.escape(column)}(\s\s|$)", line) else ""
        elif not line:
            header = ""
        elif header and line.startswith("  "):
            end = header.index(column) + len(column)
            found[line.split("  ")[1].strip()] = line[:end].rpartition("  ")[2].strip()
    return found


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # whatever terminal the tests run in: notes are wrapped at its width
    assert cli.main(["inspect", "*", "--arch", "sm_90"]) == 0
    text = capsys.readouterr().out
    assert f"sm_90 · Triton · {triton_code.versions()}, " in text
    assert f"sm_90 · CUDA C++ · {cuda_code.versions()} · 2 kernels" in text
    assert "\ntoy · toys.centre\n" in text
    assert "\ntoy_fill.cu · toy_fill\n" in text
    triton, kernel, plain = "4x1024/1024/fp32", "kernel<fp32>", "plain"
    assert cells(text, "threads") == {triton: "128", kernel: "≤256", plain: "≤1024"}
    rows = [line.split() for line in text.splitlines()]
    (shared,) = [cells[3] for cells in rows if cells[:2] == [triton, "128"]]
    assert re.fullmatch(r"0\+[1-9]\d*", shared)  # the sum of a block goes through shared memory
    assert [cells[3] for cells in rows if cells[:2] == [kernel, "≤256"]] == ["0"]
    assert [cells[3] for cells in rows if cells[:2] == [plain, "≤1024"]] == ["0+shape"]
    assert cells(text, "loads")[triton].startswith("16×2")  # 1024 numbers of 4 bytes by 128 threads
    assert cells(text, "stores") == {triton: "16×2", kernel: "4×1", plain: "16×1"}
    assert cells(text, "occup.")[kernel] == "100%"
    assert cells(text, "occup.")[plain].startswith("≤")
    assert cells(text, "MUFU")[kernel] != "–"
    assert cells(text, "MUFU")[plain] == "–"
    assert columns.BOUND_NOTE in text
    assert columns.SHAPE_NOTE in text
    assert cli.main(["inspect", "toys"]) == 0
    text = capsys.readouterr().out
    assert columns.BOUND_NOTE not in text
    assert columns.SHAPE_NOTE not in text


@pytest.mark.parametrize("width", [20, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    items, _ = catalog.catalog()
    rows, failures = measuring.measure_all(items, [80, 90], ["*"], [])
    assert not failures
    lines = columns.tables(rows, width).splitlines()
    assert max(map(len, lines)) <= min(max(width, columns.NARROWEST), columns.WIDEST)


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "toy", "--arch", "sm_80", "--arch", "sm_90", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert found["compilers"]["Triton"] == triton_code.versions()
    assert found["compilers"]["CUDA C++"] == cuda_code.versions()
    assert found["compilers"]["Triton sm_90"].startswith("ptxas ")
    assert found["architectures"]["sm_90"]["shared_per_multiprocessor"] == 228 * 1024
    assert found["missing"] == {}
    assert found["failures"] == []
    assert [(kernel["architecture"], kernel["name"]) for kernel in found["kernels"]] == [
        (architecture, name)
        for architecture in ("sm_80", "sm_90")
        for name in ("toy/4x1024/centre/1024/fp32", "toy_fill::kernel<fp32>", "toy_fill::plain")
    ]
    triton, kernel, plain = found["kernels"][3:]
    assert (
        set(triton)
        == set(kernel)
        == {
            *("architecture", "language", "subject", "name", "full_name", "threads_per_block", "registers_per_thread"),
            *("shared_bytes", "spilled_bytes", "launch_bounds_minimum_blocks", "tensor_memory_columns", "occupancy"),
            *("instructions", "global_loads", "global_stores", "pointer_arguments"),
        }
    )
    assert triton["threads_per_block"] == {"value": 128, "exact": True}
    assert kernel["threads_per_block"] == {"value": 256, "exact": False}
    assert kernel["full_name"] == "fastdl::cuda::toy_fill::kernel<float>"
    assert plain["shared_bytes"] == {"static": 0, "dynamic": None, "dynamic_by_shape": True}
    assert kernel["shared_bytes"] == {"static": 0, "dynamic": 0, "dynamic_by_shape": False}
    assert plain["occupancy"]["is_upper_bound"]
    assert not kernel["occupancy"]["is_upper_bound"]
    assert triton["pointer_arguments"]["input_pointer"] == {"loads": {"16": 2}, "stores": {}}
    mix = triton["instructions"]
    assert mix["total"] == sum(mix["by_name"].values()) == sum(entry["count"] for entry in mix["by_class"].values())
    assert sum(entry["share"] for entry in mix["by_class"].values()) == pytest.approx(1)
    assert kernel["instructions"]["by_name"]["MUFU.EX2"] == 1


def test_one_kernel_of_a_file_and_one_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "toy_fill::plain"]) == 0
    assert set(cells(capsys.readouterr().out, "threads")) == {"plain"}
    assert cli.main(["inspect", "toy", "--dtype", "fp32", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["kernels"]) == 3
    assert cli.main(["inspect", "toy", "--dtype", "bf16", "--json"]) == 0
    assert [kernel["name"] for kernel in json.loads(capsys.readouterr().out)["kernels"]] == ["toy_fill::plain"]


def test_a_second_call_compiles_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["inspect", "toy"]) == 0
    first = capsys.readouterr().out

    def refuse(*arguments: object) -> None:
        raise AssertionError("compiles again")

    monkeypatch.setattr(cuda_code, "_compile", refuse)
    monkeypatch.setattr(triton_code, "_compile", refuse)
    assert cli.main(["inspect", "toy"]) == 0
    assert capsys.readouterr().out == first


def test_progress_is_told_apart_from_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "toy", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == ["[1/2] sm_90 toy_fill.cu", "[2/2] sm_90 toys.centre"]
    json.loads(told.out)


def test_an_interruption_leaves_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(triton_code, "_compile", interrupt)
    assert cli.main(["inspect", "toy"]) == 130
    told = capsys.readouterr()
    assert "Nothing is left half-written" in told.err
    assert told.out == ""
    (entry,) = (tmp_path / "cache" / store.FOLDER).iterdir()  # the file that was compiled before
    assert store.from_json(entry.read_text())


def test_what_does_not_compile_is_told_beside_what_does(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "toy_fill.cu").write_text("__global__ void broken() { unheard_of(); }\n")
    assert cli.main(["inspect", "toy"]) == 1
    told = capsys.readouterr()
    assert "toy_fill.cu failed on sm_90: " in told.err
    assert "unheard_of" in told.err
    assert "toys.centre" in told.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toi"], "there is no kernel 'toi'. Did you mean 'toy'"),
        (["toy", "--arch", "sm_70"], "--arch takes sm_80, sm_90, sm_100, got 'sm_70'"),
        (["toy", "--dtype", "int8"], "--dtype takes bf16, fp16, fp32, got 'int8'"),
        (["toys", "--dtype", "bf16"], "none of the kernels that toys names is made for the --arch and --dtype given"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *words]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"fastdl: {message}")
    assert len(told.err.splitlines()) == 1
    assert told.out == ""


def test_without_a_kernel_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect"]) == 2
    assert "usage: fastdl inspect" in capsys.readouterr().out


def test_the_list_compiles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "cache"))
    assert cli.main(["inspect", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  toy" in lines
    assert "  toys.centre  1 configuration" in lines
    assert "  toy_fill.cu  2 kernel templates" in lines
    assert not (tmp_path / "cache").exists()


def test_without_nvcc_triton_is_inspected_and_the_rest_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_code, "missing", lambda: "nvcc was not found. Install it.")
    assert cli.main(["inspect", "toy", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["missing"] == {"CUDA C++": "nvcc was not found. Install it."}
    assert {kernel["language"] for kernel in found["kernels"]} == {"Triton"}
    assert "the CUDA C++ kernels cannot be compiled here. nvcc was not found. Install it." in told.err


def test_without_triton_the_rest_is_inspected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_code, "missing", lambda: "Triton cannot be imported")
    assert cli.main(["inspect", "toy"]) == 0
    told = capsys.readouterr()
    assert set(cells(told.out, "threads")) == {"kernel<fp32>", "plain"}
    assert "Triton kernels cannot be compiled here. Triton cannot be imported" in told.err
    assert cli.main(["inspect", "toys"]) == 2
    assert "there is no kernel 'toys'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "total", "text"), [(0, 100, "–"), (1, 1000, "<1%"), (3, 600, "<1%"), (6, 1000, "1%"), (100, 100, "100%")]
)
def test_a_share_is_never_shown_as_nothing(count: int, total: int, text: str) -> None:
    assert columns._share(count, total) == text
