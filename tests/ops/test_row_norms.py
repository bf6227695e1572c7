"""Parity of layer_norm and rms_norm with torch's own ops, on every backend: rows in tests/support/row_norms.py."""

from __future__ import annotations

import pytest
import torch

from tests.support.problems import Case, check_parity, problem_rows
from tests.support.row_norms import LAYER_NORM, RMS_NORM


@pytest.mark.parametrize(("case", "dtype", "backend"), problem_rows(LAYER_NORM))
def test_layer_norm(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_parity(LAYER_NORM, case, dtype, backend)


@pytest.mark.parametrize(("case", "dtype", "backend"), problem_rows(RMS_NORM))
def test_rms_norm(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_parity(RMS_NORM, case, dtype, backend)
