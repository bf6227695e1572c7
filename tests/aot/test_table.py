"""``docs/kernels.md`` is written and read alike, and a change of a number is seen."""

from dataclasses import replace

import pytest

from fastdl.inspection.resources import Resources
from fastdl.kernels.shipped import Limits

from . import table

RESOURCES = Resources(
    registers=32,
    shared_bytes=512,
    local_bytes=0,
    spill_store_bytes=0,
    spill_load_bytes=0,
    loads={4: 1, 16: 2},
    stores={16: 2},
    matrix={},
    float_atomics=0,
)
CELLS = table.cells(RESOURCES, Limits(40, 1024))
OTHER = table.cells(replace(RESOURCES, registers=38, local_bytes=8, matrix={"HGMMA": 4}), Limits(40, 1024))
SECTION = table.Section(
    "Triton",
    "Triton 1.2.3",
    {"norm.forward": {"forward/bf16": {80: CELLS, 90: OTHER, 100: CELLS}, "forward/cluster": {90: CELLS, 100: CELLS}}},
)


def test_a_row_shows_one_value_where_architectures_agree() -> None:
    lines = table.render([SECTION]).splitlines()
    (row,) = [line for line in lines if line.startswith("| `forward/bf16`")]
    assert row == (
        "| `forward/bf16` | 32 of 40 · 38 of 40 · 32 of 40 | 512 | 0 · 8 · 0 | 16×2 4×1 | 16×2 | "
        "none · HGMMA×4 · none |"
    )
    (row,) = [line for line in lines if line.startswith("| `forward/cluster`")]
    assert row.startswith("| `forward/cluster` | – · 32 of 40 · 32 of 40 | – · 512 · 512 |")


def test_what_is_written_is_read_again() -> None:
    text = table.render([SECTION])
    assert table.parse(text) == {"Triton": SECTION}
    assert table.differences("Triton", 90, {"forward/bf16": OTHER, "forward/cluster": CELLS}, text) == []


def test_a_change_is_told_by_its_column() -> None:
    text = table.render([SECTION])
    assert table.differences("Triton", 90, {"forward/bf16": CELLS}, text) == [
        "forward/bf16 on sm_90: registers is 32 of 40, not 38 of 40, spilled is 0, not 8, matrix is none, not HGMMA×4"
    ]
    assert table.differences("Triton", 80, {"forward/cluster": CELLS}, text) == ["forward/cluster on sm_80 has no row"]
    assert table.differences("CUDA C++", 80, {"x": CELLS}, text) == ["x on sm_80 has no row"]


def test_a_row_that_was_edited_by_hand_is_an_error() -> None:
    text = table.render([SECTION]).replace("0 · 8 · 0", "0 · 8")
    with pytest.raises(ValueError, match="spilled: '0 · 8' has a value for each of 2 architectures"):
        table.parse(text)
