"""Parity of attention with torch's own ops, on every backend: the rows are in tests/support/attention_cases.py."""

from __future__ import annotations

import pytest
import torch

from tests.support.attention import Case, check_parity, problem_rows
from tests.support.attention_cases import CASES


@pytest.mark.parametrize(("case", "dtype", "backend"), problem_rows(CASES))
def test_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_parity(case, dtype, backend)
