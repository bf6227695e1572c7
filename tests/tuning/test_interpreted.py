"""`interpreted.py` in a process with Triton's interpreter."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.interpreter.child import run_interpreted

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the triton package is missing")


@pytest.mark.parametrize(
    ("part", "least"), [("convolutions", 5), pytest.param("not convolutions", 28, marks=pytest.mark.slow)]
)
def test_kernels_are_right_at_other_sizes(tmp_path: Path, part: str, least: int) -> None:
    outcome = run_interpreted(tmp_path, "tests/tuning/interpreted.py", "-k", part)
    assert not outcome.failed, "\n".join(outcome.failed)
    assert not outcome.skipped, "\n".join(outcome.skipped)
    assert outcome.passed >= least, outcome.output[-2000:]
