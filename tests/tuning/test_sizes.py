"""A run over cases: each plan once, stored when it is there, taken up again, and ended early without a loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the triton package is missing")

from fastdl.bench import registry
from fastdl.bench.timing import Spread
from fastdl.kernels import tuned
from fastdl.kernels.tuned import Sizes
from fastdl.tuning import sizes, store, subjects
from fastdl.tuning.measuring import DeviceLostError
from fastdl.tuning.subjects import Plan

DEVICE = store.Device("NVIDIA H100", "9.0")


@pytest.fixture(autouse=True)
def imagined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(store.SWITCH, raising=False)
    with subjects.imagined_gpu():
        yield
    tuned.forget()


class Trials:
    """Times that fall with every doubling of the first size, and what happens at a plan of a name."""

    happening: dict[str, BaseException]
    timed: list[tuple[str, str]]

    def __init__(self, benchmark: Any, case: Any, plan: Plan, operands: Any, timer: Any) -> None:
        self.plan = plan
        self.rejected: dict[Sizes, str] = {}
        self.timed.append((plan.name, plan.key))

    def evaluate(self, sizes: Sequence[Sizes], confirm: bool = False) -> dict[Sizes, Spread]:
        if self.plan.name in self.happening:
            raise self.happening[self.plan.name]
        self.rejected[9, 9] = "another answer: far off"
        return {one: Spread(seconds := 1e-3 / one[0], seconds, seconds, 5, 1) for one in sizes}


def run(happening: dict[str, BaseException] | None = None, **options: Any) -> tuple[sizes.Outcome, Any]:
    class Here(Trials):
        pass

    Here.happening, Here.timed = happening or {}, []
    benchmark = registry.load("layer_norm")
    cases = benchmark.cases_on("cuda")[:3]
    said: list[str] = []
    trials: Any = Here
    timer: Any = None
    work = sizes.Work(DEVICE, timer, subjects.imagined_operands, said.append, trials=trials, **options)
    return sizes.tune([(benchmark, cases)], work), Here


def test_each_plan_is_tuned_once_and_stored() -> None:
    outcome, trials = run()
    assert len(trials.timed) == len(set(trials.timed)) == len(outcome.results) >= 4
    table = store.sizes_of(DEVICE)
    for result in outcome.results:
        assert table[result.plan.name][result.plan.key] == result.found.best
        assert result.found.best[0] > result.plan.default[0]
        assert result.found.gain > 1
        assert result.rejected == {"another answer": 1}
        assert "times as fast" in sizes.sentence(result)
    entry = json.loads(store.load(DEVICE).path.read_text())["sizes"]["row_norm_forward"]  # type: ignore[union-attr]
    assert all(one["complete"] and one["case"].startswith("layer_norm ") for one in entry.values())


def test_what_is_stored_is_skipped_unless_it_is_asked_for_again() -> None:
    first, _ = run()
    second, trials = run()
    assert not second.results
    assert not trials.timed
    assert second.skipped == len(first.results)
    third, _ = run(again=True)
    assert len(third.results) == len(first.results)


def test_an_interrupt_keeps_what_was_found() -> None:
    outcome, _ = run({"row_norm_backward": KeyboardInterrupt()})
    assert outcome.interrupted
    assert outcome.stopped == "interrupted"
    assert [result.plan.name for result in outcome.results] == ["row_norm_forward"]
    assert set(store.sizes_of(DEVICE)) == {"row_norm_forward"}
    rest, _ = run()
    assert rest.skipped == 1
    assert set(store.sizes_of(DEVICE)) == {"row_norm_forward", "row_norm_backward"}


def test_a_lost_gpu_ends_it_and_a_plan_that_cannot_run_does_not() -> None:
    outcome, _ = run({"row_norm_backward": DeviceLostError("a trial has stopped the GPU")})
    assert "stopped the GPU" in outcome.stopped
    assert not outcome.interrupted
    assert len(outcome.results) == 1
    outcome, trials = run({"row_norm_backward": RuntimeError("CUDA out of memory\nmore")}, again=True)
    assert not outcome.stopped
    assert {name.split()[0] for name in outcome.failed} == {"row_norm_backward"}
    assert set(outcome.failed.values()) == {"RuntimeError: CUDA out of memory"}
    assert len(outcome.results) + len(outcome.failed) == len(trials.timed)
    assert not tuned._trials


def clock(step: float) -> Callable[[], float]:
    now = [0.0]

    def read() -> float:
        now[0] += step
        return now[0]

    return read


def test_the_time_limit_ends_it_and_what_was_not_finished_is_measured_again() -> None:
    outcome, _ = run(time_limit=3.5, clock=clock(1.0))
    assert "time limit" in outcome.stopped
    assert len(outcome.results) == 1
    assert not outcome.results[0].found.complete
    assert store.sizes_of(DEVICE)
    assert not sizes.finished(DEVICE)
    again, _ = run()
    assert again.skipped == 0
    assert all(result.found.complete for result in again.results)
    outcome, _ = run(time_limit=0.5, clock=clock(1.0), again=True)
    assert outcome.stopped == "the time limit leaves 3 of 3 cases"


def test_another_version_is_tuned_anew() -> None:
    run()
    path = store.load(DEVICE).path
    assert path is not None
    content = json.loads(path.read_text())
    content["versions"]["kernels"] = "older"
    path.write_text(json.dumps(content))
    outcome, _ = run()
    assert outcome.skipped == 0
    assert outcome.results
