"""``python -m tests.aot`` writes the table, finds it up to date, and says what is out of date or past a limit."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fastdl.inspection import cuda_code, triton_code
from fastdl.kernels.shipped import Limits, Shipped

from . import jobs, table
from .__main__ import main

if cuda_code.missing() or not triton_code.is_usable():
    pytest.skip("the table needs both compilers", allow_module_level=True)

from . import toys

ENTRY = Shipped(
    name="toy/centre",
    kernel=toys.centre,
    signature={"input_pointer": "*fp32", "unused_pointer": "*fp32", "output_pointer": "*fp32", "BLOCK": "constexpr"},
    constexprs={"BLOCK": 1024},
    divisible=("input_pointer", "output_pointer"),
    num_warps=4,
    num_stages=1,
    limits=Limits(64, 1024, narrow=("unused_pointer",)),
)
SOURCE = """
__global__ void fill(float4* output) { output[threadIdx.x] = make_float4(0, 0, 0, 0); }
"""
LIMITS = {"registers": 32, "shared_bytes": 0, "wide_loads": 0, "wide_stores": 1, "narrow_loads": 0, "narrow_stores": 0}

Ship = Callable[[Shipped], None]


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ship:
    """A package of one Triton kernel and one .cu file; the function given changes what the former ships."""
    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    (folder / "toy.cu").write_text(SOURCE)
    (folder / "toy.limits.json").write_text(json.dumps({"fill": LIMITS}))
    monkeypatch.setattr(cuda_code, "folder", lambda: folder)
    monkeypatch.setattr(table, "DOCUMENT", tmp_path / "kernels.md")

    def change(entry: Shipped) -> None:
        jobs.triton_kernels.cache_clear()
        monkeypatch.setattr(jobs, "all_shipped", lambda: (entry,))

    change(ENTRY)
    return change


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    jobs.triton_kernels.cache_clear()


def test_the_table_is_written_and_found_up_to_date(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--workers", "1"]) == 1
    assert "toy/centre on sm_80 has no row" in capsys.readouterr().out

    assert main(["--workers", "1"]) == 0
    text = table.DOCUMENT.read_text()
    assert "| `toy/centre` | 4 | " in text
    assert "### toys.centre" in text
    assert "| `fill` | " in text
    assert "Compiled by nvcc " in text
    assert main(["--check", "--workers", "1"]) == 0
    assert "every limit is kept" in capsys.readouterr().out


def test_a_changed_kernel_makes_the_table_out_of_date(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workers", "1"]) == 0
    ship(replace(ENTRY, num_warps=8))
    assert main(["--check", "--workers", "1"]) == 1
    assert "toy/centre on sm_90: warps is 8, not 4" in capsys.readouterr().out


def test_a_row_too_many_makes_the_table_out_of_date(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workers", "1"]) == 0
    lines = table.DOCUMENT.read_text().splitlines(keepends=True)
    (row,) = [line for line in lines if "`fill`" in line]
    table.DOCUMENT.write_text("".join(lines).replace(row, row + row.replace("fill", "gone")))
    assert main(["--check", "--workers", "1"]) == 1
    assert "CUDA C++: the rows are right, but there are others too" in capsys.readouterr().out


def test_another_version_leaves_its_part_unchecked(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workers", "1"]) == 0
    text = table.DOCUMENT.read_text().replace(triton_code.versions(), "Triton 0.1.2").replace("`toy/centre`", "`old`")
    table.DOCUMENT.write_text(text)
    assert main(["--check", "--workers", "1"]) == 0
    assert f"Triton: unchecked, written with Triton 0.1.2, here is {triton_code.versions()}" in capsys.readouterr().out


def test_a_limit_that_is_not_kept_is_told_and_the_numbers_are_written(
    ship: Ship, capsys: pytest.CaptureFixture[str]
) -> None:
    ship(replace(ENTRY, limits=replace(ENTRY.limits, registers=8)))
    assert main(["--workers", "1"]) == 1
    assert " registers, limit 8" in capsys.readouterr().out
    assert " of 8" in table.DOCUMENT.read_text()
