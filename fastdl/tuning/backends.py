"""Which of our own backends ``auto`` should take on this machine, by dtype, layout and class of sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from fastdl.bench.cases import DTYPES, Benchmark, Case
from fastdl.bench.correctness import Judge
from fastdl.bench.harness import forward_backward_call, forward_call
from fastdl.bench.operands import Operands
from fastdl.bench.summary import FORWARD, geometric_mean
from fastdl.bench.timing import Effort, Spread, Timer, interleave
from fastdl.ops import dispatch, measured

from . import store
from .search import LEAST_GAIN
from .subjects import passes

Chosen = Sequence[tuple[Benchmark, Sequence[Case]]]


@dataclass(frozen=True)
class Choice:
    """A row of the table: the backend that is taken, and how many times as fast as the usual one each backend was."""

    op: str
    row: str
    usual: str
    backend: str
    ratios: dict[str, float]
    cases: int


@dataclass
class Outcome:
    """What a run came to. ``rejected`` says of contenders that were not timed why."""

    choices: list[Choice] = field(default_factory=list)
    skipped: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    interrupted: bool = False


@dataclass(frozen=True)
class Work:
    """How a run is done, apart from what is measured."""

    device: store.Device
    timer: Timer
    effort: Effort
    operands: Callable[[Benchmark, Case], Operands]
    say: Callable[[str], None]
    time_limit: float = float("inf")
    again: bool = False
    clock: Callable[[], float] = time.monotonic

    @property
    def kind(self) -> str:
        return store.CPU if self.device.capability == store.CPU else "cuda"


def contenders(op: str, kind: str, dtype: str) -> list[str]:
    """The backends that may serve an op, the usual one of ``auto`` first."""
    if kind == store.CPU:
        return ["cpu", "reference"] if dispatch.status("cpu").available else []
    there = [
        name
        for name in dispatch.PREFERENCES["cuda"]
        if DTYPES[dtype] in dispatch.BACKENDS[name].dtypes and dispatch.status(name).available
    ]
    return [dispatch.VENDOR, *there] if there and op in dispatch.COMPOSED else there


def row_of(benchmark: Benchmark, case: Case, device: store.Device) -> tuple[str, str]:
    """The op that serves a case, and the row of the table that the case speaks for."""
    size = measured.size_class(case.tensor_bytes)
    return benchmark.serving_op, measured.key(device.capability, case.dtype, case.layout, size)


def tune(chosen: Chosen, work: Work) -> Outcome:
    """Measures row by row and stores each when it is there; Ctrl-C or the time limit ends it early."""
    outcome = Outcome()
    try:
        _tune(chosen, work, outcome)
    except KeyboardInterrupt:
        outcome.stopped, outcome.interrupted = "interrupted", True
    return outcome


def _tune(chosen: Chosen, work: Work, outcome: Outcome) -> None:
    deadline = work.clock() + work.time_limit
    groups: dict[tuple[str, str], list[tuple[Benchmark, Case]]] = {}
    for benchmark, cases in chosen:
        for case in cases:
            groups.setdefault(row_of(benchmark, case, work.device), []).append((benchmark, case))
    stored = (store.load(work.device).content or {}).get("backends", {})
    for number, ((op, row), members) in enumerate(groups.items(), 1):
        if not work.again and row in stored.get(op, {}):
            outcome.skipped += 1
            continue
        if work.clock() >= deadline:
            outcome.stopped = f"the time limit leaves {len(groups) - number + 1} of {len(groups)} rows"
            return
        names = contenders(op, work.kind, members[0][1].dtype)
        if len(names) < 2:
            continue
        times: list[dict[str, Spread]] = []
        for benchmark, case in members:
            work.say(f"[{number}/{len(groups)}] {op} {row}: {case.key}")
            times += _times(benchmark, case, row, names, work, outcome.rejected)
        choice = choose(op, row, names, times, len(members))
        if choice is None:
            continue
        outcome.choices.append(choice)
        entry = {
            "backend": choice.backend,
            "usual": choice.usual,
            "times_as_fast_as_usual": {name: round(ratio, 4) for name, ratio in choice.ratios.items()},
            "cases": choice.cases,
        }
        store.update(work.device, backends={op: {row: entry}})


def _times(
    benchmark: Benchmark, case: Case, row: str, names: Sequence[str], work: Work, rejected: dict[str, str]
) -> list[dict[str, Spread]]:
    """Times of each backend whose answer is right, pass by pass."""

    def on(name: str) -> AbstractContextManager[None]:
        return dispatch.assuming_choices(work.kind, {benchmark.serving_op: {row: name}})

    operands = work.operands(benchmark, case)
    judge = (benchmark.judge or Judge)(benchmark, case, operands)
    right = []
    only_forward = benchmark.only_forward(case)
    for name in names:
        try:
            with on(name):
                complaint = judge.complaint(benchmark.ours(case), only_forward=only_forward)
        except Exception as error:  # a backend that cannot run is reported, and the others are measured
            complaint = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"
        if complaint is None:
            right.append(name)
        else:
            rejected[f"{name}: {benchmark.name} {case.key}"] = complaint
    if len(right) < 2:
        return []
    found = []
    for pass_name in passes(benchmark, case):
        forward = pass_name == FORWARD
        make = forward_call if forward else forward_backward_call
        calls = {name: make(benchmark.ours(case), operands) for name in right}
        with torch.set_grad_enabled(not forward):
            found.append(interleave(calls, work.timer, work.effort, on))
    return found


def choose(op: str, row: str, names: Sequence[str], times: Sequence[Mapping[str, Spread]], cases: int) -> Choice | None:
    """The fastest in the geometric mean over cases and passes; the usual one, the first, unless another gains enough.

    That is more than 2 % in the medians, and something still where the usual one is taken by its lower quartile and the
    other by its upper one. None where fewer than two backends were timed throughout.
    """
    common = [name for name in names if times and all(name in one for one in times)]
    if len(common) < 2:
        return None
    usual = common[0]
    ratios = {name: geometric_mean(one[usual].median / one[name].median for one in times) for name in common}

    def gains(name: str) -> bool:
        least = geometric_mean(one[usual].lower_quartile / one[name].upper_quartile for one in times)
        return ratios[name] > LEAST_GAIN and least > 1

    best = max(filter(gains, common[1:]), key=lambda name: ratios[name], default=usual)
    return Choice(op, row, usual, best, ratios, cases)
