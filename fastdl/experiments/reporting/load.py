"""The results of an experiment, read from ``results.json`` and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastdl.experiments.claims import Arm, Claim, claim_from_dict
from fastdl.experiments.definition import ExperimentDefinition
from fastdl.experiments.statistics import Estimate, estimate
from fastdl.experiments.verdicts import Verdict, judge

__all__ = ["Results", "Run", "accuracy", "load_results"]

Run = Mapping[str, Any]
"""A run as it stands in ``results.json``."""


@dataclass(frozen=True)
class Results:
    """What ``results.json`` holds, beside the definition of its experiment.

    Attributes:
        definition: of the experiment.
        content: of the file.
        arms: in the order in which they are shown.
        claims: that were written down before the runs.
        runs: of each arm by seed, finished or diverged.
    """

    definition: ExperimentDefinition
    content: Mapping[str, Any]
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    runs: Mapping[Arm, Mapping[int, Run]]

    @property
    def all_runs(self) -> list[Run]:
        """Every run, arm by arm."""
        return [run for arm in self.arms for run in self.runs[arm].values()]

    @property
    def planned(self) -> int:
        """How many runs the experiment has."""
        return int(self.content.get("planned", len(self.all_runs)))

    @property
    def complete(self) -> bool:
        """Whether all planned runs are there."""
        return bool(self.content.get("complete", True)) and len(self.all_runs) >= self.planned

    @property
    def seeds(self) -> tuple[int, ...]:
        """That were planned, and that are there."""
        return tuple(sorted({*self.content.get("seeds", ()), *(run["seed"] for run in self.all_runs)}))

    @property
    def diverged(self) -> list[Run]:
        """The runs whose loss became infinite or not a number."""
        return [run for run in self.all_runs if run["status"] == "diverged"]

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing, a fraction; None where the number of classes is not known."""
        classes = self.content.get("classes")
        return 1 / classes if classes else None

    @property
    def test_evaluations(self) -> Mapping[str, int]:
        """How often the test split was evaluated, by run."""
        return dict(self.content.get("test_evaluations") or {})

    @property
    def touched_again(self) -> dict[str, int]:
        """The runs in which the test split was evaluated more than once, and how often."""
        return {name: count for name, count in self.test_evaluations.items() if count > 1}

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """On each claim, judged anew."""
        return judge(
            self.claims, {arm: {seed: accuracy(run) for seed, run in self.runs[arm].items()} for arm in self.arms}
        )

    def accuracies(self, arm: Arm) -> list[float]:
        """Test accuracies of the runs that did not diverge, as fractions, in the order of their seeds."""
        found = [accuracy(run) for _, run in sorted(self.runs.get(arm, {}).items())]
        return [value for value in found if value is not None]

    def accuracy(self, arm: Arm) -> Estimate:
        """The test accuracy of an arm over its seeds, a fraction; a diverged run does not enter it."""
        return estimate(self.accuracies(arm))

    def count_diverged(self, arm: Arm) -> int:
        """How many runs of an arm diverged."""
        return sum(run["status"] == "diverged" for run in self.runs.get(arm, {}).values())


def accuracy(run: Run) -> float | None:
    """Test accuracy of a run, None of one that diverged."""
    return run["test_accuracy"] if run["status"] != "diverged" else None


def load_results(definition: ExperimentDefinition, folder: Path) -> Results:
    """Read ``results.json`` in ``folder``.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, is of another experiment, or lacks what a report needs.
    """
    path = folder / "results.json"
    remedy = f"make it with: fastdl experiment {definition.name} --output-dir {folder}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold the results of an experiment; {remedy}")
    if content.get("experiment") != definition.name:
        raise ValueError(
            f"{path} holds results of {content.get('experiment')!r}, not of {definition.name!r}; "
            f"choose its folder, or {remedy}"
        )
    try:
        return _results(definition, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {remedy}") from error


def _results(definition: ExperimentDefinition, content: Mapping[str, Any]) -> Results:
    arms = tuple(tuple(arm) for arm in content["arms"])
    for arm in arms:
        if len(arm) != len(definition.factors):
            raise ValueError(f"arm {arm} has {len(arm)} levels for {len(definition.factors)} factors")
    claims = tuple(claim_from_dict(claim) for claim in content["claims"])
    runs: dict[Arm, dict[int, Run]] = {arm: {} for arm in arms}
    for run in content["runs"]:
        arm = _arm(definition, run)
        if arm not in runs:
            raise ValueError(f"a run of {arm}, which is none of the arms")
        if accuracy(run) is None and run["status"] != "diverged":
            raise ValueError(f"run {run.get('directory')} is {run['status']} and has no test accuracy")
        runs[arm][int(run["seed"])] = run
    return Results(definition, content, arms, claims, {arm: dict(sorted(found.items())) for arm, found in runs.items()})


def _arm(definition: ExperimentDefinition, run: Run) -> Arm:
    return tuple(run[factor.name] for factor in definition.factors)
