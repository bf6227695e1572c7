"""Sizes other than the plans' own in the kernels themselves, and a whole run, under the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdl
from fastdl.bench import registry
from fastdl.bench.cases import Case
from fastdl.bench.operands import Operands, make_operands
from fastdl.bench.timing import Call, Effort
from fastdl.kernels import configs, normalize, tuned
from fastdl.kernels.tuned import Sizes
from fastdl.tuning import sizes, store
from fastdl.tuning.measuring import Trials
from tests.interpreter import attention_paths, convolution_cases, paths, row_norm_paths
from tests.support import dropout, group_norm
from tests.support.problems import check_parity

GROUP_NORM = group_norm.row("tuned", (2, 12, 5, 7), 4, residual="contiguous")
LAST = group_norm.row("tuned_last", (2, 12, 5, 7), 4, layout="channels_last", grad_layout="channels_last")


@pytest.fixture
def asked() -> Iterator[list[tuned.Asked]]:
    with tuned.asking() as found:
        yield found


@pytest.mark.parametrize("case", [GROUP_NORM, LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 3, 64])
def test_groups_on_chip(case: Any, groups: int, asked: list[tuned.Asked]) -> None:
    with tuned.trying("norm_forward", (groups, 2)), tuned.trying("norm_backward", (groups, 8)):
        check_parity(group_norm.OPERATOR, case, torch.float32, "triton")
    assert {"norm_forward", "norm_backward"} <= {one.name for one in asked}


@pytest.mark.parametrize("case", [GROUP_NORM, LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("tile", [(4, 16), (64, 1)])
def test_tiles_of_split_groups(
    case: Any, tile: tuple[int, int], asked: list[tuned.Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass with tiles of its own."""
    monkeypatch.setattr(configs, "LIMITS", paths.PATHS["split"])
    rows, columns = tile
    with (
        tuned.trying("norm_moments", (rows, columns, 4)),
        tuned.trying("norm_sums", (columns, rows, 1)),
        tuned.trying("norm_apply_forward", (rows * 2, columns, 2)),
        tuned.trying("norm_apply_backward", (rows, columns * 2, 8)),
    ):
        check_parity(group_norm.OPERATOR, case, torch.float32, "triton")
    names = {"norm_moments", "norm_sums", "norm_apply_forward", "norm_apply_backward"}
    assert names <= {one.name for one in asked}


@pytest.mark.parametrize("operator", [row_norm_paths.LAYER_NORM, row_norm_paths.RMS_NORM], ids=["layer", "rms"])
@pytest.mark.parametrize("rows", [2, 16])
def test_rows_on_chip(operator: Any, rows: int, asked: list[tuned.Asked]) -> None:
    for case in row_norm_paths.CASES[:2]:
        with tuned.trying("row_norm_forward", (rows, 8)), tuned.trying("row_norm_backward", (rows, 2, 3)):
            check_parity(operator, case, torch.float32, "triton")
    assert {"row_norm_forward", "row_norm_backward"} <= {one.name for one in asked}


@pytest.mark.parametrize("path", ["wide", "wide_in_parts"])
def test_steps_along_wide_rows(path: str, asked: list[tuned.Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    limits, processors = row_norm_paths.PATHS[path]
    monkeypatch.setattr(row_norm_paths.plan, "LIMITS", limits)
    monkeypatch.setattr(row_norm_paths.plan, "processors", lambda device: processors)
    with tuned.trying("row_norm_wide", (16, 2)), tuned.trying("row_norm_columns", (8, 16, 1)):
        check_parity(row_norm_paths.LAYER_NORM, row_norm_paths.CASES[1], torch.float32, "triton")
    assert {"row_norm_wide", "row_norm_columns"} <= {one.name for one in asked}


ATTENTION = {
    case.name: case
    for case in (
        attention_paths.Case("tuned", (1, 2, 37, 8)),
        attention_paths.Case("tuned_causal", (1, 2, 37, 8), is_causal=True),
    )
}


@pytest.mark.parametrize("path", ["short", "one_launch", "general", "described"])
@pytest.mark.parametrize("name", ATTENTION)
def test_tiles_of_attention(name: str, path: str, asked: list[tuned.Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns of each kernel of their own, and the plans' own rest of each."""
    monkeypatch.setattr(attention_paths.attention_plan, "LIMITS", attention_paths.PATHS[path])
    backward = {"attention_backward_keys", "attention_backward_queries"}
    with (
        fastdl.use_backend("triton"),
        tuned.trying("attention_forward", (16, 32, 2, 1)),
        tuned.trying("attention_backward_short", (16, 2)),
        tuned.trying("attention_backward_keys", (32, 16, 8, 3)),
        tuned.trying("attention_backward_queries", (16, 64, 8, 1)),
    ):
        # Descriptors are for half precision.
        attention_paths.check(ATTENTION[name], torch.float16 if path == "described" else torch.float32)
    names = {one.name for one in asked}
    assert names >= {"attention_forward", *(backward if path != "short" else {"attention_backward_short"})}


CONVOLUTIONS = {case.name: case for case in convolution_cases.CASES}


@pytest.mark.parametrize("name", ["batch", "group", "down", "first_layer", "depthwise"])
def test_tiles_of_convolutions(name: str, asked: list[tuned.Asked]) -> None:
    with (
        tuned.trying("convolution_forward", (32, 16, 16, 2, 1)),
        tuned.trying("convolution_data", (16, 32, 16, 8, 2)),
        tuned.trying("convolution_weight", (16, 16, 32, 1, 4)),
        tuned.trying("direct_convolution_forward", (8, 4, 1)),
        tuned.trying("direct_convolution_data", (4, 16, 2)),
        tuned.trying("direct_convolution_weight", (16, 8, 2)),
    ):
        convolution_cases.check(CONVOLUTIONS[name], torch.float32)
    assert {one.name.removeprefix("direct_") for one in asked} >= {
        "convolution_forward", "convolution_data", "convolution_weight"
    }  # fmt: skip


@pytest.mark.parametrize("calls", [1, 32, 512])
def test_calls_of_dropout(calls: int, asked: list[tuned.Asked]) -> None:
    with tuned.trying("dropout", (calls, 2)):
        dropout.check_parity(dropout.CASES[0], torch.float32, "triton")
    assert {one.name for one in asked} == {"dropout"}


# -- a whole run -------------------------------------------------------------------------------------------------------

DEVICE = store.Device("no GPU, but the interpreter", "0.0")
LEFT_OUT = 8  # warps with which a launch of the test's leaves everything as it was: another answer
TOO_MANY = 1  # warps with which it does not compile


class FakeTimer:
    """Tells seconds by what was launched last: the fewer programs the quicker, and 4 warps quicker than others."""

    def __init__(self) -> None:
        self.latest: tuple[int, int] = (1, 1)

    def time(self, call: Call, start: int, count: int) -> float:
        for index in range(start, start + count):
            call(index)
        programs, warps = self.latest
        if warps in (LEFT_OUT, TOO_MANY):
            return count * 1e-6
        return count * (programs + (0.0 if warps == 4 else 1.0)) * 1e-3


def test_a_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The winner by the fake clock is stored, and neither of the traps, which would be far quicker."""
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(store.SWITCH, raising=False)
    timer = FakeTimer()

    def launch(kernel: Any, programs: int, *arguments: Any, warps: int, **constants: Any) -> None:
        if not kernel.__name__.startswith("on_chip"):
            return launched(kernel, programs, *arguments, warps=warps, **constants)
        timer.latest = (programs, warps)
        if warps == TOO_MANY:
            raise RuntimeError("out of resource: registers")
        if warps == LEFT_OUT:
            return None
        return launched(kernel, programs, *arguments, warps=warps, **constants)

    launched = normalize.launch
    benchmark = registry.load("group_norm")
    case = Case((1, 32, 8, 8), "nchw", "float32", "silu", "a test", 16)

    def operands(benchmark: Any, case: Case) -> Operands:
        return make_operands(benchmark, case, torch.device("cpu"), 1)

    def trials(benchmark: Any, case: Case, plan: Any, given: Operands, clock: Any) -> Trials:
        effort = Effort(seconds=0.0, warm_up=0.0, batch=0.0, least_rounds=2)
        return Trials(benchmark, case, plan, given, clock, quick=effort, thorough=effort, capture=None)

    # The plan starts from 2 warps, whose neighbours are a trap, 1, and 4, behind which lies the other trap.
    plans = sizes.plans_of

    def plans_of(*arguments: Any) -> Any:
        found = plans(*arguments)  # launches are taken down here, which the test's launch must not disturb
        monkeypatch.setattr(normalize, "launch", launch)
        return found

    monkeypatch.setattr(sizes, "plans_of", plans_of)
    said: list[str] = []
    work = sizes.Work(DEVICE, timer, operands, said.append, trials=trials)
    outcome = sizes.tune([(benchmark, [case])], work)
    assert not outcome.stopped, outcome
    assert not outcome.failed, outcome
    found = {result.plan.name: result for result in outcome.results}
    assert set(found) == {"norm_forward", "norm_backward"}
    for name, result in found.items():
        best: Sizes = result.found.best
        assert result.plan.default == (8, 2)
        assert best == (16, 4), name
        assert result.found.gain == pytest.approx(2 + 1)
        assert result.rejected["RuntimeError"] >= 1
        assert result.rejected.get("another answer", 0) >= 1
    assert store.sizes_of(DEVICE)["norm_forward"][found["norm_forward"].plan.key] == (16, 4)
    assert any("3.00 times as fast" in text for text in said)
