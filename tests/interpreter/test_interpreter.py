"""The Triton kernels compute what torch computes: under the interpreter, on the CPU, with no GPU.

The interpreter is chosen when a kernel is defined, for the whole process, so each suite runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.interpreter.child import run_interpreted

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the triton package is missing")


def check(folder: Path, least: int, *arguments: str, timeout: float = 280) -> None:
    outcome = run_interpreted(folder, *arguments, timeout=timeout)
    assert not outcome.failed, "\n".join(outcome.failed)
    assert not outcome.skipped, "\n".join(outcome.skipped)
    assert outcome.passed >= least, outcome.output[-2000:]


@pytest.mark.parametrize(("part", "least"), [("is_right", 100), ("not is_right", 80)])
def test_every_path(tmp_path: Path, part: str, least: int) -> None:
    check(tmp_path, least, "tests/interpreter/paths.py", "-k", part)


@pytest.mark.parametrize(("part", "least"), [("chunks", 20), ("not chunks", 90)])
def test_every_path_of_attention(tmp_path: Path, part: str, least: int) -> None:
    packed = "test_the_gradients_of_a_packed_projection_are_slices_of_one_tensor[triton]"
    others = () if part == "chunks" else (f"tests/ops/test_attention_properties.py::{packed}",)
    check(tmp_path, least, "tests/interpreter/attention_paths.py", *others, "-k", part)


def test_every_path_of_the_norms_over_rows(tmp_path: Path) -> None:
    check(tmp_path, 240, "tests/interpreter/row_norm_paths.py")


def test_every_path_of_dropout(tmp_path: Path) -> None:
    check(tmp_path, 75, "tests/interpreter/dropout_paths.py")


@pytest.mark.parametrize(
    ("part", "least"),
    [
        ("is_right and products and not half", 30),
        ("is_right and not products and not flat and not half", 15),
        ("(is_right and flat and not half) or 64_bits", 30),
        pytest.param("half", 20, marks=pytest.mark.slow),
        pytest.param("every_stride or far_apart", 12, marks=pytest.mark.slow),
        ("statistics", 25),
        pytest.param(
            "not is_right and not 64_bits and not every_stride and not far_apart and not statistics",
            50,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_path_of_convolutions(tmp_path: Path, part: str, least: int) -> None:
    check(tmp_path, least, "tests/interpreter/convolution_paths.py", "-k", part)


@pytest.mark.parametrize(
    ("op", "least"),
    [
        ("group_norm", 100),
        ("batch_norm", 100),
        ("test_row_norms", 40),
        ("test_norm_act_conv", 12),
        ("test_attention", 40),
    ],
)
def test_parity(tmp_path: Path, op: str, least: int) -> None:
    check(tmp_path, least, "tests/interpreter/rows.py", "-k", op)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("file", "least"),
    [
        ("tests/ops/test_group_norm.py", 800),
        ("tests/ops/test_batch_norm.py", 1000),
        ("tests/ops/test_row_norms.py", 600),
        ("tests/ops/test_nonfinite.py", 100),
        ("tests/ops/test_attention.py", 400),
        ("tests/ops/test_attention_varlen.py", 30),
        ("tests/ops/test_attention_dropout.py", 2),
    ],
)
def test_whole_table(tmp_path: Path, file: str, least: int) -> None:
    check(tmp_path, least, file, "-k", "triton", "-m", "not slow", timeout=3500)
