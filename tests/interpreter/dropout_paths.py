"""Dropout in Triton: the table of rows, both widths of places, and rows beyond 32 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from fastdl.kernels import dropout
from fastdl.reference.dropout import keep
from tests.support.backends import short
from tests.support.dropout import CASES, Case, check_parity, seed_after

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rows() -> list[Any]:
    """Each row in one dtype, in turn."""
    found = []
    for turn, case in enumerate(CASES):
        served = [dtype for dtype in DTYPES if dtype in case.dtypes]
        dtype = served[turn % len(served)]
        found.append(pytest.param(case, dtype, id=f"{case.name}-{short(dtype)}"))
    return found


@pytest.mark.parametrize(("case", "dtype"), rows())
def test_is_right(case: Case, dtype: torch.dtype) -> None:
    check_parity(case, dtype, "triton")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_places_of_64_bits(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "LAST_OF_32_BITS", 0)
    check_parity(Case("wide", (2, 18, 3, 11), layout, layout), torch.float32, "triton")


@triton.jit
def choices(output, seed_low, seed_high, first_row, dropped, CALLS: tl.constexpr):
    call = tl.arange(0, CALLS)
    keep = dropout.kept_of(None, seed_low, seed_high, first_row.to(tl.int64) + call, call % 3, dropped, True, CALLS)
    tl.store(output + call[:, None] * 8 + tl.arange(0, 8)[None, :], keep.to(tl.int32))


@pytest.mark.parametrize("first_row", [0, (1 << 32) - 20, (5 << 32) + 7])
def test_rows_beyond_32_bits(first_row: int) -> None:
    seed = seed_after(3)
    output = torch.zeros(64, 8, dtype=torch.int32)
    _, low, high = dropout.seed_arguments(seed, False)
    choices[(1,)](output, low, high, first_row, 20000, CALLS=64)
    rows = first_row + torch.arange(64)[:, None]
    columns = torch.arange(64)[:, None] % 3 * 8 + torch.arange(8)
    expected = keep(seed, 20000 / 65536, torch.zeros_like(rows), rows >> 32, rows & 0xFFFFFFFF, columns)
    assert torch.equal(output.bool(), expected)


def test_a_seed_in_memory_is_the_one_on_the_host() -> None:
    """As on a GPU under a graph, whose replays find another value there."""
    x, seed = torch.randn(20, 50), seed_after(9)
    expected = dropout.forward(x, None, seed, 0.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropout, "seed_arguments", lambda seed, on_meta: (seed, 0, 0))
        assert torch.equal(dropout.forward(x, None, seed, 0.4), expected)
