"""Running a grid of training runs in a folder: resumable, held by one sweep at a time, each result kept as it comes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastdl.data import ImageDataset
from fastdl.data.files import write_json
from fastdl.experiments.folder_lock import hold
from fastdl.training import CheckpointPolicy, RunConfig, RunResult, TimeLimitReached, load_result, train_classifier
from fastdl.training.config import differences
from fastdl.training.environment import describe_environment

__all__ = [
    "Failure",
    "Outcome",
    "PlannedRun",
    "RunSettings",
    "Sweep",
    "attempt",
    "output_folder",
    "run_grid",
    "run_sweep",
    "write_results",
]


@dataclass(frozen=True)
class PlannedRun:
    """A run of the grid: its factors, as ``{"activation": "relu", "depth": 4, "seed": 0}``, and its configuration.

    ``measure_speed``: whether to find out how much of a step is spent in fused ops.
    """

    factors: Mapping[str, int | float | str]
    config: RunConfig
    measure_speed: bool = False

    @property
    def name(self) -> str:
        """Name of the folder, as ``relu_depth-4_seed-0``."""
        return "_".join(value if isinstance(value, str) else f"{key}-{value}" for key, value in self.factors.items())

    @property
    def description(self) -> str:
        """Name on the screen, as ``relu, depth 4, seed 0``."""
        return ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in self.factors.items())


@dataclass(frozen=True)
class Outcome:
    """A planned run with its result."""

    plan: PlannedRun
    result: RunResult


@contextmanager
def output_folder(path: Path, experiment: str, settings: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
    """Hold a folder for one experiment with fixed settings while the block runs.

    Args:
        path: the folder; made if it is missing.
        experiment: name of the experiment.
        settings: all that the runs have in common and that their results depend on.
        resume: continue what the folder holds. Otherwise a folder that is not empty is renamed, and a new one made.

    Raises:
        ValueError: another process works in the folder, or it holds another experiment or other settings.
    """
    lock = hold(path, "another --output-dir")
    try:
        record = path / "config.json"
        if not resume and record.exists():
            aside = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
            path.rename(aside)
            print(f"The results so far are kept in {aside}", file=sys.stderr)
            lock.release()
            lock = hold(path, "another --output-dir")
        wanted = {"experiment": experiment, "settings": json.loads(json.dumps(settings))}
        try:
            present = json.loads(record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            write_json(record, wanted)
            present = wanted
        except ValueError as error:
            raise ValueError(f"{record} cannot be read ({error}); --no-resume moves the folder aside") from error
        if changed := differences(present, wanted):
            raise ValueError(
                f"{path} holds results with other settings ({'; '.join(changed).replace('settings.', '')}). "
                "Choose another --output-dir, or start anew with --no-resume, which moves that folder aside"
            )
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class RunSettings:
    """How runs are made, without influence on what comes out of them.

    Attributes:
        policy: when checkpoints are written, and when time is up.
        evidence: what is measured beside the accuracy, of `fastdl.training.evidence.EVIDENCE`.
        trackers: where else to log, of `fastdl.training.tracking.TRACKERS`.
        group: what trackers group the runs under.
    """

    policy: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    evidence: tuple[str, ...] = ()
    trackers: tuple[str, ...] = ("tensorboard",)
    group: str = "fastdl"


@dataclass(frozen=True)
class Failure:
    """A planned run that ended with an error; it is tried again the next time."""

    plan: PlannedRun
    error: str


@dataclass
class Sweep:
    """How far a sweep is: outcomes and failures so far, in the order of the plans, and whether time was up."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    out_of_time: bool = False


def run_one(plan: PlannedRun, dataset: ImageDataset, folder: Path, settings: RunSettings, label: str) -> RunResult:
    """Make one planned run in its place in the folder, or return its result if it is finished."""
    return train_classifier(
        plan.config,
        dataset,
        folder / "runs" / plan.name,
        policy=settings.policy,
        description=label,
        evidence=settings.evidence,
        measure_speed=plan.measure_speed,
        trackers=settings.trackers,
        group=settings.group,
    )


def run_grid(
    plans: Sequence[PlannedRun], dataset: ImageDataset, folder: Path, policy: CheckpointPolicy
) -> Iterator[list[Outcome]]:
    """Run what is not finished yet, one after the other, and yield the outcomes so far after every run."""
    for sweep in run_sweep(plans, dataset, folder, RunSettings(policy)):
        if sweep.failures:
            raise RuntimeError(sweep.failures[-1].error)
        yield list(sweep.outcomes)


def run_sweep(
    plans: Sequence[PlannedRun], dataset: ImageDataset, folder: Path, settings: RunSettings, jobs: int = 1
) -> Iterator[Sweep]:
    """Run what is not finished yet, and yield how far the sweep is after every run.

    What goes wrong in a run for want of memory, disk or the like is noted, and the others go on. A mistake in a
    configuration (ValueError) ends the sweep, since every run would make it.

    Args:
        plans: in the order in which they are begun.
        dataset: of all of them.
        folder: of the sweep; each run has a folder under ``runs``.
        settings: of every run.
        jobs: runs at the same time; more than one are made in processes of their own.
    """
    labels = _labels(plans)
    sweep = Sweep()
    results: dict[int, RunResult] = {}
    waiting = []
    for index, plan in enumerate(plans):
        if (known := load_result(folder / "runs" / plan.name)) is None:
            waiting.append(index)
        else:
            # Also compares the configuration with the one of the finished run.
            results[index] = run_one(plan, dataset, folder, settings, labels[index])
            print(f"{labels[index]}: {_describe(known)} (finished before)", flush=True)
    # Once for all of them: an interruption must not leave fewer in the results than there were.
    sweep.outcomes = [Outcome(plans[place], results[place]) for place in sorted(results)]
    if results:
        yield sweep
    began, done = time.monotonic(), 0
    if jobs == 1 or len(waiting) < 2:
        reports = _one_by_one(plans, waiting, dataset, folder, settings, labels)
    else:
        from fastdl.experiments.parallel import side_by_side

        reports = side_by_side(plans, waiting, dataset, folder, settings, labels, min(jobs, len(waiting)))
    for index, report in reports:
        if isinstance(report, TimeLimitReached):
            sweep.out_of_time = True
            continue
        done += 1
        if isinstance(report, RunResult):
            results[index] = report
            sweep.outcomes = [Outcome(plans[place], results[place]) for place in sorted(results)]
            left = (time.monotonic() - began) / done * (len(waiting) - done)
            print(f"{labels[index]}: {_describe(report)} ({_speed(report)}{_duration(left)} left)", flush=True)
        else:
            sweep.failures.append(Failure(plans[index], report))
            print(f"{labels[index]}: failed: {report}", file=sys.stderr, flush=True)
        yield sweep
    if sweep.out_of_time:
        yield sweep


Report = RunResult | TimeLimitReached | str
"""What came of an attempt: a result, no more time, or what went wrong."""


def _one_by_one(
    plans: Sequence[PlannedRun],
    waiting: Sequence[int],
    dataset: ImageDataset,
    folder: Path,
    settings: RunSettings,
    labels: Sequence[str],
) -> Iterator[tuple[int, Report]]:
    for index in waiting:
        report = attempt(plans[index], dataset, folder, settings, labels[index])
        yield index, report
        if isinstance(report, TimeLimitReached):
            return


def attempt(plan: PlannedRun, dataset: ImageDataset, folder: Path, settings: RunSettings, label: str) -> Report:
    """Make one run, and tell what came of it."""
    deadline = settings.policy.deadline
    if deadline is not None and time.monotonic() >= deadline:
        return TimeLimitReached()
    try:
        return run_one(plan, dataset, folder, settings, label)
    except TimeLimitReached as limit:
        return limit
    except (OSError, RuntimeError, MemoryError) as error:  # torch's lack of memory is a RuntimeError
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _labels(plans: Sequence[PlannedRun]) -> list[str]:
    width = len(str(len(plans)))
    return [f"[{number:{width}}/{len(plans)}] {plan.description}" for number, plan in enumerate(plans, start=1)]


def _describe(result: RunResult) -> str:
    if result.status == "diverged":
        return f"diverged after {result.steps} steps"
    return f"test accuracy {result.test_accuracy:.4f}"


def _speed(result: RunResult) -> str:
    text = f"{result.seconds:.1f} s, "
    if images := result.speed.get("images_per_second"):
        text += f"{images:,.0f} images/s, "
    if (share := result.speed.get("fused_share")) is not None:
        text += f"{100 * share:.0f} % of a step in fused ops, "
    return text


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def write_results(
    path: Path, experiment: str, settings: Mapping[str, Any], outcomes: Sequence[Outcome], planned: int, **more: Any
) -> None:
    """Write ``results.json``: settings, environment, every run with its curves, and what ``more`` holds."""
    content = {
        "experiment": experiment,
        "complete": len(outcomes) == planned,
        "planned": planned,
        "settings": dict(settings),
        "environment": describe_environment(),
        **more,
        "runs": [
            {**outcome.plan.factors, "directory": f"runs/{outcome.plan.name}", **asdict(outcome.result)}
            for outcome in outcomes
        ],
    }
    write_json(path, content)
