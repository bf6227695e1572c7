"""Parity of layer_norm and rms_norm with torch's own ops, on every backend: rows in tests/support/row_norms.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.problems import Case, Operator, check_parity, problem_rows
from tests.support.row_norms import LAYER_NORM, RMS_NORM


def rows(operator: Operator) -> list[Any]:
    """Every row of the kernels'; of the reference those in float32 and float64, since it does the same in all."""
    half = (torch.bfloat16, torch.float16)
    return [row for row in problem_rows(operator) if row.values[2] != "reference" or row.values[1] not in half]


@pytest.mark.parametrize(("case", "dtype", "backend"), rows(LAYER_NORM))
def test_layer_norm(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_parity(LAYER_NORM, case, dtype, backend)


@pytest.mark.parametrize(("case", "dtype", "backend"), rows(RMS_NORM))
def test_rms_norm(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_parity(RMS_NORM, case, dtype, backend)
