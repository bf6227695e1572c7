"""Running a grid of training runs in a folder: resumable, one process at a time, each result kept as it comes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fastdl.data import ImageDataset
from fastdl.data.files import write_json
from fastdl.training import CheckpointPolicy, RunConfig, RunResult, load_result, train_classifier
from fastdl.training.config import differences
from fastdl.training.environment import describe_environment

__all__ = ["Outcome", "PlannedRun", "output_folder", "run_grid", "write_results"]


@dataclass(frozen=True)
class PlannedRun:
    """A run of the grid: its factors, as ``{"activation": "relu", "depth": 4, "seed": 0}``, and its configuration."""

    factors: Mapping[str, int | str]
    config: RunConfig

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
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is at work in {path}; wait for it, or choose another --output-dir") from None
    try:
        record = path / "config.json"
        if not resume and record.exists():
            aside = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
            path.rename(aside)
            print(f"The results so far are kept in {aside}", file=sys.stderr)
            path.mkdir()
            lock.release()
            lock = FileLock(path / ".lock")
            lock.acquire(timeout=0)
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


def run_grid(
    plans: Sequence[PlannedRun], dataset: ImageDataset, folder: Path, policy: CheckpointPolicy
) -> Iterator[list[Outcome]]:
    """Run what is not finished yet, and yield the outcomes so far after every run."""
    outcomes: list[Outcome] = []
    width = len(str(len(plans)))
    for number, plan in enumerate(plans, start=1):
        directory = folder / "runs" / plan.name
        label = f"[{number:{width}}/{len(plans)}] {plan.description}"
        known = load_result(directory)
        result = train_classifier(plan.config, dataset, directory, policy=policy, description=label)
        outcomes.append(Outcome(plan, result))
        if result.test_accuracy is None:
            text = f"diverged after {result.steps} steps"
        else:
            text = f"test accuracy {result.test_accuracy:.4f}"
        when = "finished before" if known is not None else f"{result.seconds:.1f} s"
        print(f"{label}: {text} ({when})", flush=True)
        yield list(outcomes)


def write_results(
    path: Path, experiment: str, settings: Mapping[str, Any], outcomes: Sequence[Outcome], planned: int, **more: Any
) -> None:
    """Write ``results.json``: settings, environment, every run with its curves, and what ``more`` holds."""
    content = {
        "experiment": experiment,
        "complete": len(outcomes) == planned,
        "settings": dict(settings),
        "environment": describe_environment(),
        **more,
        "runs": [
            {**outcome.plan.factors, "directory": f"runs/{outcome.plan.name}", **asdict(outcome.result)}
            for outcome in outcomes
        ],
    }
    write_json(path, content)
