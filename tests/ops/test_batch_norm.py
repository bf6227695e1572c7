"""Parity of batch_norm with torch's own ops, on every backend: the rows are in tests/support/batch_norm.py."""

from __future__ import annotations

import pytest
import torch

from tests.support.batch_norm import OPERATOR
from tests.support.problems import Case, check_parity, problem_rows


@pytest.mark.parametrize(("case", "dtype", "backend"), problem_rows(OPERATOR))
def test_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_parity(OPERATOR, case, dtype, backend)
