"""`fastdl tune` where there is a GPU: a short run, what it stores, and that calls follow it and stay right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastdl
from fastdl import cli
from fastdl.bench import registry
from fastdl.bench.cases import select
from fastdl.bench.correctness import Judge
from fastdl.bench.operands import make_operands
from fastdl.kernels import tuned
from fastdl.ops import dispatch
from fastdl.tuning import command, store

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    if not dispatch.status("triton").available:
        pytest.skip(f"backend 'triton': {dispatch.status('triton').reason}")
    dispatch.status("cuda")  # loaded from the usual folder, and not built anew in the test's
    if store.gpu() is None:
        pytest.skip("GPUs of different kinds are visible")
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(store.SWITCH, raising=False)
    tuned.forget()
    dispatch.forget_choices()
    yield
    monkeypatch.undo()
    tuned.forget()
    dispatch.forget_choices()


def test_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "rms_norm", "--shapes", "default", "--dtype", "bfloat16", "--time-limit", "40"]
    assert cli.main(words) in (0, command.STOPPED)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not document["failed"]
    assert document["plans"]
    for plan in document["plans"]:
        assert plan["gain"] >= 1
        # Sizes that a plan could have chosen itself and that compute something else are a mistake in a kernel.
        assert "another answer" not in plan["refused"], plan
    table = store.sizes_of(store.gpu())
    assert {plan["plan"] for plan in document["plans"]} == set(table)
    benchmark = registry.load("rms_norm")
    case = select(benchmark.cases_on("cuda"), shapes="default", dtype="bfloat16")[0]
    operands = make_operands(benchmark, case, torch.device("cuda"), 1)
    with fastdl.use_backend("triton"):
        assert Judge(benchmark, case, operands).complaint(benchmark.ours(case)) is None
    assert tuned._table == table


def test_backends(capsys: pytest.CaptureFixture[str]) -> None:
    if not all(dispatch.status(name).available for name in ("triton", "cuda")):
        pytest.skip("needs both backends")
    words = ["tune", "rms_norm", "--backends", "--device", "cuda", "--shapes", "default", "--dtype", "bfloat16"]
    assert cli.main([*words, "--time-limit", "40"]) in (0, command.STOPPED)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["rows"]
    assert not document["rejected"]
    for row in document["rows"]:
        assert set(row["times_as_fast_as_usual"]) == {"triton", "cuda"}
        assert store.backends_of(store.gpu())["rms_norm"][row["row"]] == row["backend"]
