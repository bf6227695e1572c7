"""The command: what it lists without a GPU, its statuses, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the triton package is missing")

from fastdl import cli
from fastdl.bench import registry
from fastdl.kernels import tuned
from fastdl.kernels.attention_plan import Problem
from fastdl.ops import dispatch
from fastdl.tuning import command, sizes, store, subjects
from fastdl.tuning.search import Found
from fastdl.tuning.subjects import Plan

H100 = store.Device("NVIDIA H100", "9.0")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    dispatch.status("cpu")  # loaded from the usual folder, and not built anew in the test's
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(store.SWITCH, raising=False)
    yield tmp_path
    monkeypatch.undo()
    dispatch.forget_choices()
    tuned.forget()


def no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")


@pytest.mark.parametrize("op", registry.names())
def test_a_dry_run_lists_plans_kernels_and_candidates(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    no_gpu()
    status, choose = dispatch.status("triton"), dispatch.BACKENDS["triton"]
    assert cli.main(["tune", op, "--dry-run", "--shapes", "default"]) == 0
    printed = capsys.readouterr()
    assert "no CUDA GPU is visible" in printed.err
    document = json.loads(printed.out.splitlines()[-1])
    plans = document["plans"]
    assert plans
    for plan in plans:
        assert tuple(plan["fields"]) == tuned.FIELDS[plan["plan"]]
        assert plan["kernels"]
        assert plan["candidates"]
        assert plan["default"] not in plan["candidates"]
        assert f"{plan['plan']} ({plan['bucket']})" in printed.out
    assert len({(plan["plan"], plan["bucket"]) for plan in plans}) == len(plans)
    assert {plan["pass"] for plan in plans} == {"forward", "forward+backward"} or op == "conv_norm_act_chain"
    # The imagined GPU is gone, and nothing was stored.
    assert dispatch.status("triton") == status
    assert dispatch.BACKENDS["triton"] == choose
    assert store.load(store.processor()) == store.Stored(None)


def test_the_names_of_all_ops_together_are_all_that_can_be_tuned() -> None:
    """No plan's sizes are out of reach, but those that no case of a benchmark has."""
    found = set()
    with subjects.imagined_gpu():
        for name in registry.names():
            benchmark = registry.load(name)
            for case in benchmark.cases_on("cuda"):
                operands = subjects.imagined_operands(benchmark, case)
                found |= {plan.name for plan in subjects.plans_of(benchmark, case, operands)}
    elsewhere = {"row_norm_wide", "row_norm_columns"}  # rows wider than any network's at hand
    assert found >= set(tuned.FIELDS) - elsewhere - {name for name in tuned.FIELDS if name.startswith("direct")}


def test_kernels_are_those_whose_launches_change() -> None:
    benchmark = registry.load("group_norm")
    case = next(case for case in benchmark.cases_on("cuda") if case.size == (8, 512, 128, 128))
    with subjects.imagined_gpu():
        operands = subjects.imagined_operands(benchmark, case)
        plans = {plan.name: plan for plan in subjects.plans_of(benchmark, case, operands)}
    assert plans["norm_moments"].kernels[0] == "partial_moments"
    assert plans["norm_moments"].pass_name == "forward"
    assert plans["norm_sums"].kernels[0] == "partial_sums"
    assert plans["norm_sums"].pass_name == "forward+backward"
    assert plans["norm_apply_backward"].kernels == ("apply_backward",)


def test_without_a_gpu_it_says_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    no_gpu()
    for words in (["tune"], ["tune", "group_norm", "--device", "cuda"], ["tune", "--backends", "--device", "cuda"]):
        assert cli.main(words) == command.NO_GPU == 3
        printed = capsys.readouterr()
        assert "no CUDA GPU" in printed.err
        assert "--dry-run" in printed.err
        assert not printed.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--device", "cpu"], "--device cpu takes --backends"),
        (["nothing"], "there is no benchmark of 'nothing'"),
        (["group_norm", "--dtype", "float64"], "group_norm: no case has"),
        (["--time-limit", "0", "--backends"], "--time-limit must be more than 0 seconds; got 0"),
    ],
)
def test_a_mistake_is_told_in_a_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("fastdl: ")
    assert text in printed.err


def test_show_and_clear(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "gpu", lambda: H100)
    entry = {"sizes": [4, 8], "default": [2, 8], "gain": 1.25}
    path = store.update(
        H100,
        sizes={"row_norm_forward": {"width=64": entry}},
        backends={"layer_norm": {"9.0 float32 rows small": {"backend": "cuda"}}},
    )
    assert cli.main(["tune", "--show"]) == 0
    printed = capsys.readouterr().out
    assert "NVIDIA H100 (9.0): 1 sizes of kernels, 1 choices of backends" in printed
    assert "row_norm_forward (width=64): 4 x 8; the plan's own: 2 x 8, 1.25 times as fast" in printed
    assert "layer_norm 9.0 float32 rows small: cuda" in printed
    assert cli.main(["tune", "--clear", "--device", "cpu"]) == 0
    assert path.exists()
    assert cli.main(["tune", "--clear"]) == 0
    assert f"removed {path}" in capsys.readouterr().out
    assert not path.exists()


PLAN = Plan("row_norm_forward", "width=64", (2, 8), "forward", ("row_norm_forward",), ((4, 8),))


@pytest.mark.parametrize(
    ("stopped", "interrupted", "status"), [("", False, 0), ("the time limit", False, 1), ("interrupted", True, 130)]
)
def test_the_table_and_the_json_of_a_run(
    stopped: str,
    interrupted: bool,
    status: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Found((2, 8), (4, 8), 2e-3, 1e-3, 5, True)
    result = sizes.Result("layer_norm", "a case", PLAN, found, {"another answer": 2})
    outcome = sizes.Outcome([result], 3, {}, stopped, interrupted)
    given: list[Any] = []

    def tune(chosen: Any, work: sizes.Work) -> sizes.Outcome:
        given.append((chosen, work))
        return outcome

    monkeypatch.setattr(store, "gpu", lambda: H100)
    monkeypatch.setattr(sizes, "tune", tune)
    monkeypatch.setattr(command.dispatch, "status", lambda name: dispatch.BackendStatus(True))
    monkeypatch.setenv(store.SWITCH, "0")
    words = ["tune", "layer_norm", "--shapes", "quick", "--time-limit", "77", "--again"]
    assert cli.main(words) == status
    printed = capsys.readouterr()
    assert "FASTDL_TUNED=0 is set" in printed.err
    (line,) = [line for line in printed.out.splitlines() if "width=64" in line and not line.startswith("{")]
    sizes_and_numbers = ["2", "x", "8", "4", "x", "8", "2.00", "5", "2"]
    assert line.split() == ["layer_norm", "row_norm_forward", "width=64", *sizes_and_numbers]
    assert "1 plans measured; 3 were stored already" in printed.out
    assert ("Stopped early" in printed.out) == bool(stopped)
    document = json.loads(printed.out.splitlines()[-1])
    assert document["plans"][0]["gain"] == 2.0
    ((chosen, work),) = given
    assert [benchmark.name for benchmark, _ in chosen] == ["layer_norm"]
    assert all(case.quick for case in chosen[0][1])
    assert (work.time_limit, work.again, work.device) == (77.0, True, H100)


def test_rows_of_backends_are_listed_without_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "group_norm", "--backends", "--device", "cpu", "--dry-run", "--shapes", "quick"]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(printed.splitlines()[-1])["rows"]
    assert {row["op"] for row in rows} == {"group_norm"}
    assert "cpu float32 nchw small" in {row["row"] for row in rows}
    if dispatch.status("cpu").available:
        assert all(row["backends"] == ["cpu", "reference"] for row in rows)


def test_attention_on_meta_tensors_is_planned_as_on_hopper() -> None:
    benchmark = registry.load("attention")
    case = benchmark.cases_on("cuda")[0]
    with subjects.imagined_gpu():
        plans = subjects.plans_of(benchmark, case, subjects.imagined_operands(benchmark, case))
    assert plans
    assert "architecture" in Problem._fields
    assert not any("architecture" in plan.key for plan in plans)  # a file is of one GPU


def test_sizes_that_change_no_launch_are_left_out() -> None:
    """Where one launch has all gradients, its warps and stages are those of the keys' tile."""
    benchmark = registry.load("attention")
    case = next(case for case in benchmark.cases_on("cuda") if case.size[2] == 512 and case.size[3] == 64)
    with subjects.imagined_gpu():
        plans = subjects.plans_of(benchmark, case, subjects.imagined_operands(benchmark, case))
    found = {plan.name: plan for plan in plans}
    of_queries, of_keys = found["attention_backward_queries"], found["attention_backward_keys"]
    assert of_queries.kernels == ("attend_backward",)
    assert {one[2:] for one in of_queries.candidates} == {of_queries.default[2:]}
    assert len({one[2:] for one in of_keys.candidates}) > 1
