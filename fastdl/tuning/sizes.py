"""Tuning the sizes of kernels: case by case and plan by plan, each result stored when it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fastdl.bench.cases import Benchmark, Case
from fastdl.bench.operands import Operands
from fastdl.bench.timing import Timer

from . import store
from .candidates import neighbours
from .measuring import DeviceLostError, Trials
from .search import Found, descend
from .subjects import Plan, plans_of

Chosen = Sequence[tuple[Benchmark, Sequence[Case]]]


@dataclass(frozen=True)
class Result:
    """A plan that has been tuned in a case of an op; ``rejected`` counts what was not timed, by the reason."""

    op: str
    case: str
    plan: Plan
    found: Found
    rejected: dict[str, int]


@dataclass
class Outcome:
    """What a run came to: ``stopped`` says why it ended before its last plan, or is empty.

    ``failed``: the plans that could not be measured, each with the reason.
    """

    results: list[Result] = field(default_factory=list)
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    interrupted: bool = False


@dataclass(frozen=True)
class Work:
    """How a run is done, apart from what is tuned.

    ``operands(benchmark, case)`` makes a case's tensors, ``trials`` measures (`Trials`, or a test's own).
    """

    device: store.Device
    timer: Timer
    operands: Callable[[Benchmark, Case], Operands]
    say: Callable[[str], None]
    time_limit: float = float("inf")
    again: bool = False
    trials: Callable[[Benchmark, Case, Plan, Operands, Timer], Trials] = Trials
    clock: Callable[[], float] = time.monotonic


def tune(chosen: Chosen, work: Work) -> Outcome:
    """Tunes every plan of the cases, and keeps what is found when Ctrl-C, the time limit or a lost GPU ends it."""
    outcome = Outcome()
    try:
        _tune(chosen, work, outcome)
    except KeyboardInterrupt:
        outcome.stopped, outcome.interrupted = "interrupted", True
    except DeviceLostError as error:
        outcome.stopped = f"{error}; run the command again to go on"
    return outcome


def _tune(chosen: Chosen, work: Work, outcome: Outcome) -> None:
    deadline = work.clock() + work.time_limit
    stored = set() if work.again else finished(work.device)
    seen: set[tuple[str, str]] = set()
    cases = [(benchmark, case) for benchmark, cases in chosen for case in cases]
    for number, (benchmark, case) in enumerate(cases, 1):
        if work.clock() >= deadline:
            outcome.stopped = f"the time limit leaves {len(cases) - number + 1} of {len(cases)} cases"
            return
        head = f"[{number}/{len(cases)}] {benchmark.name} {case.key}"
        work.say(f"{head}: looking for plans")
        operands = work.operands(benchmark, case)
        for plan in plans_of(benchmark, case, operands):
            bucket = (plan.name, plan.key)
            if bucket in stored and bucket not in seen:
                outcome.skipped += 1
                seen.add(bucket)
            if bucket in seen:
                continue
            if work.clock() >= deadline:
                outcome.stopped = f"the time limit ended it within case {number} of {len(cases)}"
                return
            seen.add(bucket)
            try:
                outcome.results.append(_tune_plan(benchmark, case, plan, operands, work, deadline))
                work.say(f"{head}: {sentence(outcome.results[-1])}")
            except DeviceLostError:
                raise
            except (
                RuntimeError
            ) as error:  # the plan's own sizes do not run: memory is short, or the driver is not right
                reason = str(error).strip().partition("\n")[0][:160]
                outcome.failed[f"{plan.name} {plan.key}"] = f"{type(error).__name__}: {reason}"
                work.say(f"{head}: {plan.name} cannot be measured: {reason}")
        del operands
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _tune_plan(benchmark: Benchmark, case: Case, plan: Plan, operands: Operands, work: Work, deadline: float) -> Result:
    trials = work.trials(benchmark, case, plan, operands, work.timer)
    found = descend(
        plan.default,
        lambda sizes, index: neighbours(plan.name, sizes, index, plan.default),
        trials.evaluate,
        lambda: work.clock() < deadline,
    )
    reasons: dict[str, int] = {}
    for reason in trials.rejected.values():
        kind = reason.partition(":")[0]
        reasons[kind] = reasons.get(kind, 0) + 1
    entry = {
        "sizes": list(found.best),
        "default": list(found.default),
        "gain": round(found.gain, 4),
        "microseconds": round(found.best_seconds * 1e6, 3),
        "case": f"{benchmark.name} {case.key}, {plan.pass_name}",
        "tried": found.tried,
        "complete": found.complete,
    }
    store.update(work.device, sizes={plan.name: {plan.key: entry}})
    return Result(benchmark.name, case.key, plan, found, reasons)


def finished(device: store.Device) -> set[tuple[str, str]]:
    """The buckets that are stored and were tuned to the end."""
    content = store.load(device).content or {}
    return set(_finished(content.get("sizes", {})))


def _finished(sizes: dict[str, dict[str, dict[str, object]]]) -> Iterator[tuple[str, str]]:
    for name, buckets in sizes.items():
        for key, entry in buckets.items():
            if entry.get("complete", True):
                yield name, key


def sentence(result: Result) -> str:
    """One result in a line."""
    found = result.found
    if found.best == found.default:
        text = f"{result.plan.name} {found.default} stays, {found.tried} tried"
    else:
        text = (
            f"{result.plan.name} {found.default} -> {found.best}: {found.gain:.2f} times as fast, {found.tried} tried"
        )
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(result.rejected.items()))
    return text + (f" ({rejected})" if rejected else "") + ("" if found.complete else ", not to the end")
