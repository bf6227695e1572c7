"""Choices between backends on the CPU: by times that a test makes up, and once for real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdl.bench import registry
from fastdl.bench.cases import Case, select
from fastdl.bench.operands import make_operands
from fastdl.bench.timing import Call, CpuTimer, Effort, Spread
from fastdl.ops import dispatch, measured
from fastdl.tuning import backends, store
from tests.support.backends import BACKENDS_UNDER_TEST

DEVICE = store.Device("a processor", "cpu")
ONCE = Effort(seconds=0.0, warm_up=0.0, batch=0.0, least_rounds=3)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    BACKENDS_UNDER_TEST["cpu"].device()


@pytest.fixture(autouse=True)
def folder(kernels: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The store in a folder of the test's; the library is loaded already, from the usual one."""
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(store.SWITCH, raising=False)
    monkeypatch.setattr(store, "processor", lambda: DEVICE)
    dispatch.forget_choices()
    yield
    monkeypatch.undo()
    dispatch.forget_choices()


class FakeTimer:
    """Tells seconds by the backend that ``auto`` takes while it is asked; every call is made."""

    def __init__(self, op: str, seconds: dict[str, float]) -> None:
        self.op, self.seconds = op, seconds

    def time(self, call: Call, start: int, count: int) -> float:
        for index in range(start, start + count):
            call(index)
        chosen = dispatch.choose(self.op, "auto", "cpu", torch.float32)
        return count * self.seconds["reference" if chosen == dispatch.BY_MEASUREMENT_ON_CPU else chosen]


def small_cases(op: str) -> tuple[Any, tuple[Case, ...]]:
    benchmark = registry.load(op)
    cases = select(benchmark.cases, shapes="quick", dtype="float32")
    return benchmark, tuple(case for case in cases if case.elements < 20000)


def run(op: str, timer: Any, **options: Any) -> backends.Outcome:
    def operands(benchmark: Any, case: Case) -> Any:
        return make_operands(benchmark, case, torch.device("cpu"), 1)

    work = backends.Work(DEVICE, timer, ONCE, operands, lambda text: None, **options)
    return backends.tune([small_cases(op)], work)


@pytest.mark.parametrize(("seconds", "backend"), [(0.9, "reference"), (0.99, "cpu"), (1.5, "cpu")])
def test_another_backend_is_taken_where_it_gains_over_two_percent(seconds: float, backend: str) -> None:
    outcome = run("group_norm", FakeTimer("group_norm", {"cpu": 1.0, "reference": seconds}))
    assert {choice.row for choice in outcome.choices} == {
        "cpu float32 nchw small",
        "cpu float32 channels_last small",
    }
    for choice in outcome.choices:
        assert (choice.usual, choice.backend) == ("cpu", backend)
        assert choice.ratios == pytest.approx({"cpu": 1.0, "reference": 1 / seconds})
    assert set(store.backends_of(DEVICE)["group_norm"].values()) == {backend}
    # What is stored is what `auto` follows, once it is read.
    dispatch.forget_choices()
    taken = dispatch.choose("group_norm", "auto", "cpu", torch.float32)
    assert taken == (dispatch.BY_MEASUREMENT_ON_CPU if backend == "reference" else "cpu")
    assert dispatch.choose("group_norm", "auto", "cpu", torch.bfloat16) == "cpu"


def test_the_switch_turns_choices_off(monkeypatch: pytest.MonkeyPatch) -> None:
    run("group_norm", FakeTimer("group_norm", {"cpu": 1.0, "reference": 0.5}))
    monkeypatch.setenv(store.SWITCH, "0")
    dispatch.forget_choices()
    assert dispatch.choose("group_norm", "auto", "cpu", torch.float32) == "cpu"


def test_what_is_stored_is_skipped_and_an_interrupt_keeps_it() -> None:
    class Interrupting(FakeTimer):
        left = 30

        def time(self, call: Call, start: int, count: int) -> float:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return super().time(call, start, count)

    seconds = {"cpu": 1.0, "reference": 2.0}
    first = run("group_norm", Interrupting("group_norm", seconds))
    assert first.interrupted
    assert len(first.choices) == 1
    second = run("group_norm", FakeTimer("group_norm", seconds))
    assert (second.skipped, len(second.choices)) == (1, 1)
    third = run("group_norm", FakeTimer("group_norm", seconds), again=True)
    assert (third.skipped, len(third.choices)) == (0, 2)
    limited = run("group_norm", FakeTimer("group_norm", seconds), again=True, time_limit=0.0)
    assert limited.stopped == "the time limit leaves 2 of 2 rows"
    assert not measured._trial


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    operator: Any = __import__("fastdl.ops", fromlist=["OPERATORS"]).OPERATORS["group_norm"]
    right = operator.reference

    def wrong(*arguments: Any) -> Any:
        output, statistics = right(*arguments)
        return output * 1.5, statistics

    monkeypatch.setattr(operator, "reference", wrong)
    outcome = run("group_norm", FakeTimer("group_norm", {"cpu": 1.0, "reference": 0.1}))
    assert not outcome.choices
    assert outcome.rejected
    assert all(reason.startswith("wrong answer") for reason in outcome.rejected.values())
    assert store.backends_of(DEVICE) == {}


def spread(seconds: float, noise: float) -> Spread:
    return Spread(seconds, seconds * (1 - noise), seconds * (1 + noise), 5, 1)


@pytest.mark.parametrize(("noise", "backend"), [(0.0, "triton"), (0.2, "vendor")])
def test_the_gain_must_be_more_than_the_spread(noise: float, backend: str) -> None:
    times = [{"vendor": spread(1.1, noise), "triton": spread(1.0, noise), "cuda": spread(1.2, noise)}]
    choice = backends.choose("norm_act_conv", "row", ["vendor", "triton", "cuda"], times, 1)
    assert choice is not None
    assert (choice.usual, choice.backend) == ("vendor", backend)
    assert choice.ratios == pytest.approx({"vendor": 1.0, "triton": 1.1, "cuda": 1.1 / 1.2})


def test_only_backends_that_were_timed_throughout_are_compared() -> None:
    one, other = spread(1.0, 0.0), spread(2.0, 0.0)
    assert backends.choose("op", "row", ["triton", "cuda"], [], 0) is None
    assert backends.choose("op", "row", ["triton", "cuda"], [{"triton": one}, {"triton": one, "cuda": one}], 2) is None
    choice = backends.choose("op", "row", ["triton", "cuda"], [{"triton": other, "cuda": one}], 1)
    assert choice is not None
    assert choice.backend == "cuda"


def test_for_real_in_quick_form() -> None:
    outcome = run("rms_norm", CpuTimer())
    assert outcome.choices
    for choice in outcome.choices:
        assert choice.row.startswith("cpu float32 rows ")
        assert choice.ratios["reference"] > 0
        assert store.backends_of(DEVICE)["rms_norm"][choice.row] == choice.backend
