"""What came of a run, as it is kept in its folder, and how often the test split was looked at for it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["RunResult", "count_test_evaluations", "load_result", "record_test_evaluation"]

_TOUCHES = "test-evaluations.jsonl"


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        status: "finished", or "diverged" if the loss became infinite or not a number.
        config: the whole configuration.
        steps: optimizer steps taken.
        parameters: number of trained parameters.
        history: one row per finished epoch: losses, accuracies, learning rate.
        validation_accuracy: at the end, None for a diverged run; as is each of the following.
        test_accuracy, test_loss: of the final weights, evaluated once; a loss that is not finite is None. Both are None
            where no evaluation was asked for.
        seconds: time spent in training, over all attempts.
        environment: versions and machine of the attempt that finished.
        evidence: what was measured beside the accuracy, by the names of `fastdl.training.evidence.EVIDENCE`.
        speed: ``images_per_second`` of training, validation and checkpoints included, and ``fused_share``, the share of
            a training step's time that is spent in fused ops, None where it was not measured.
    """

    status: str
    config: dict[str, Any]
    steps: int
    parameters: int
    history: list[dict[str, float | int]]
    validation_accuracy: float | None
    test_accuracy: float | None
    test_loss: float | None
    seconds: float
    environment: dict[str, Any]
    evidence: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, float | None] = field(default_factory=dict)


def load_result(directory: Path) -> RunResult | None:
    """Return the result of a finished run, None where there is none or it cannot be read."""
    try:
        content = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        # Results of earlier releases lack the fields that have joined since, which have defaults.
        names = [part.name for part in fields(RunResult) if part.name in content or part.default_factory is MISSING]
        return RunResult(**{name: content[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record_test_evaluation(directory: Path, steps: int) -> None:
    """Note in the folder of a run, before it happens, that the test split is evaluated."""
    with (directory / _TOUCHES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "steps": steps}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def count_test_evaluations(directory: Path) -> int:
    """How often the test split was evaluated for a run: once, unless the run was killed in the midst of it."""
    try:
        return len((directory / _TOUCHES).read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return 0
