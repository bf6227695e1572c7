"""The gate: everything that ships keeps its limits on every architecture, and the table says what it uses."""

from typing import Any

import pytest

from fastdl.inspection import triton_code

from . import table
from .jobs import CUDA, TRITON, Job, jobs, names, obstacle, run, triton_kernels, versions

# Kernels of many configurations, which take the compiler 10 to 60 s an architecture: by default, for Hopper alone.
LONG = (
    "attention_backward.attend_backward", "attention_forward.attend_forward", "attention_mask.attend_mask_gradient",
    "attention_short.attend_backward_short", "convolution_data.convolve_data", "convolution_forward.convolve_forward",
    "convolution_weight.convolve_weight", "on_chip.on_chip_backward", "on_chip.on_chip_forward",
    "row_norm_on_chip.row_norm_backward", "row_norm_on_chip.row_norm_forward",
)  # fmt: skip


def is_slow(job: Job) -> bool:
    """All that is for Blackwell, and the long ones for Ampere: together they take as long as the rest of the gate."""
    return job.architecture > 90 or (job.subject in LONG and job.architecture != 90)


def rows() -> list[Any]:
    return [pytest.param(job, id=str(job), marks=[pytest.mark.slow] if is_slow(job) else []) for job in jobs()]


@pytest.mark.parametrize("job", rows())
def test_what_ships_keeps_its_limits(job: Job) -> None:
    if reason := obstacle(job):
        pytest.skip(reason)
    outcome = run(job)
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert outcome.cells or job.language == CUDA  # a .cu file may hold host code alone

    document = table.DOCUMENT.read_text(encoding="utf-8")
    written = table.parse(document)[job.language].version
    if written == versions(job.language):  # another compiler gives other numbers, which are held to the limits alone
        stale = table.differences(job.language, job.architecture, outcome.cells, document)
        assert not stale, "docs/kernels.md is out of date (python -m tests.aot):\n" + "\n".join(stale)
        rows = table.parse(document)[job.language].subjects.get(job.subject, {})
        assert {name for name, row in rows.items() if job.architecture in row} == set(outcome.cells)


def test_the_table_has_no_row_of_what_no_longer_ships() -> None:
    document = table.parse(table.DOCUMENT.read_text(encoding="utf-8"))
    expected = {language: {job.subject for job in jobs() if job.language == language} for language in (TRITON, CUDA)}
    assert set(document) == {TRITON, CUDA}
    assert set(document[CUDA].subjects) <= expected[CUDA]
    if not expected[TRITON]:
        pytest.skip("Triton cannot be imported, or runs its interpreter")
    assert set(document[TRITON].subjects) == expected[TRITON]
    assert set(document[TRITON].cells()) == {name for job in jobs() for name in names(job) or []}


def test_every_op_ships_clean_on_hopper() -> None:
    """No spills and 16-byte accesses, in both of the dtypes that training uses most: no limit may say otherwise."""
    entries = [entry for found in triton_kernels().values() for entry in found] if triton_code.is_usable() else []
    if not entries:
        pytest.skip("Triton cannot be imported, or runs its interpreter")
    for op in ("group_norm", "batch_norm"):
        mine = [entry for entry in entries if entry.name.startswith(f"{op}/")]
        for dtype in ("*bf16", "*fp32"):
            assert any(dtype in entry.signature.values() for entry in mine), (op, dtype)
        for entry in mine:
            assert 90 in entry.architectures, entry.name
            assert entry.limits.access_bytes >= 16, entry.name
            assert entry.limits.spill_bytes == 0, entry.name


def test_attention_ships_clean_on_hopper() -> None:
    """No spills, and warp-group products in both passes of the long path in half precision."""
    entries = [entry for found in triton_kernels().values() for entry in found] if triton_code.is_usable() else []
    if not entries:
        pytest.skip("Triton cannot be imported, or runs its interpreter")
    mine = [entry for entry in entries if entry.name.startswith("attention") and 90 in entry.architectures]
    assert all(entry.limits.spill_bytes == 0 for entry in mine)
    for dtype in ("*bf16", "*fp16"):
        hopper = {
            entry.kernel.__name__
            for entry in mine
            if dtype in entry.signature.values() and (entry.limits.matrix or {}).get(90) == "HGMMA"
        }
        assert len(hopper) >= 2, (dtype, hopper)
