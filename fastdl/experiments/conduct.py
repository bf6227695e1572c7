"""An experiment from its definition and its options to its results and its report."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastdl
from fastdl.data import ImageDataset, load_dataset
from fastdl.experiments.claims import Arm, claim_to_dict
from fastdl.experiments.definition import ExperimentDefinition
from fastdl.experiments.options import CommonOptions, complete
from fastdl.experiments.runner import (
    PlannedRun,
    RunSettings,
    Sweep,
    output_folder,
    run_sweep,
    write_results,
)
from fastdl.training import CheckpointPolicy, RunConfig, TimeLimitReached
from fastdl.training.result import count_test_evaluations

__all__ = ["command_line", "conduct", "default_folder", "summarize"]


def default_folder(definition: ExperimentDefinition, options: CommonOptions) -> Path:
    """Where results go if nothing else is asked for; ``options`` are complete."""
    parts = [str(options.protocol)]
    if options.dataset != definition.protocols[str(options.protocol)].dataset:
        parts.append(str(options.dataset))
    if getattr(options, "schedule", "base") != "base":
        parts.append(str(options.schedule))  # type: ignore[attr-defined]
    if options.learning_rates is not None:
        parts.append("best_learning_rates")
    return Path("runs") / definition.name / "-".join(parts)


def conduct(definition: ExperimentDefinition, options: Any) -> Path:
    """Make the runs that are not finished yet, and write ``results.json`` after each, and the report at the end.

    Args:
        definition: of the experiment.
        options: an instance of ``definition.options``, complete or not.

    Returns:
        The folder with ``results.json``, ``report.md``, ``report.html`` and the figures.

    Raises:
        ValueError: an option does not fit, or the folder holds other results.
        DataError: the data is missing or damaged.
        TimeLimitReached: time was up; everything done so far is kept and reported.
        RuntimeError: runs failed; likewise, and the same command tries them again.
    """
    given, options = options, complete(options, definition)
    started = time.monotonic()
    arms = definition.arms(options)
    folder = options.output_dir or default_folder(definition, options)
    dataset = load_dataset(options.dataset, options.data_dir)
    configure = _configure(definition, options, dataset)
    settings = _common_settings(definition, options, configure(arms[0], options.seeds[0]))
    plans = [
        PlannedRun(
            {**definition.factors_of(arm), "seed": seed}, configure(arm, seed), measure_speed=seed == options.seeds[0]
        )
        for seed in options.seeds
        for arm in arms
    ]
    deadline = None if options.time_limit is None else started + 60 * options.time_limit
    run_settings = RunSettings(
        CheckpointPolicy(every_seconds=options.checkpoint_seconds, deadline=deadline),
        definition.evidence,
        options.track,
        definition.name,
    )
    record: dict[str, Any] = {
        "protocol": options.protocol,
        "planned": len(plans),
        "command": command_line(definition, given),
        "commit": _commit(),
        "classes": len(dataset.class_names),
        "arms": [list(arm) for arm in arms],
        "seeds": list(options.seeds),
        "claims": json.loads(json.dumps([claim_to_dict(claim) for claim in definition.claims(arms)])),
    }
    with output_folder(folder, definition.name, settings, resume=options.resume):
        _announce(definition, options, dataset, len(plans), folder)
        sweep = Sweep()
        if _earlier_claims(folder, record) is None:
            _write(folder, definition, settings, sweep, record)
        for sweep in run_sweep(plans, dataset, folder, run_settings, options.jobs):
            _write(folder, definition, settings, sweep, record)
        from fastdl.experiments.reporting import write_report

        write_report(definition, folder, options.lang)
    if sweep.failures:
        names = ", ".join(failure.plan.name for failure in sweep.failures)
        raise RuntimeError(f"{len(sweep.failures)} of {len(plans)} runs failed ({names}): {sweep.failures[-1].error}")
    if sweep.out_of_time:
        raise TimeLimitReached(f"time is up after {len(sweep.outcomes)} of {len(plans)} runs; results are in {folder}")
    return folder


def _earlier_claims(folder: Path, record: dict[str, Any]) -> list[Any] | None:
    """The claims about these arms that stand in the folder's results, None where there are none.

    Raises:
        ValueError: they are others, so that these would be made with the results known.
    """
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        claims, arms = content["claims"], content["arms"]
    except (OSError, ValueError, KeyError):
        return None
    if arms != record["arms"]:
        return None
    if claims != record["claims"]:
        raise ValueError(
            f"{folder} holds results that were made for other claims; claims stand before the runs. Choose another "
            "--output-dir, or start anew with --no-resume"
        )
    found: list[Any] = claims
    return found


def _configure(definition: ExperimentDefinition, options: Any, dataset: ImageDataset) -> Any:
    """A function of arm and seed that returns the configuration, with the arm's own learning rate if there is one."""
    rates: dict[Arm, float] = {}
    if options.learning_rates is not None:
        from fastdl.experiments.search import load_best

        rates = load_best(options.learning_rates, definition)

    def configure(arm: Arm, seed: int) -> RunConfig:
        config = definition.configure(options, dataset.fingerprint, arm, seed)
        if not rates:
            return config
        if arm not in rates:
            raise ValueError(
                f"learning_rates: {options.learning_rates} has none for {definition.describe(arm, 'en')}; "
                "search for it with the same options"
            )
        return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rates[arm]))

    return configure


def _common_settings(definition: ExperimentDefinition, options: Any, config: RunConfig) -> dict[str, Any]:
    """What all runs share: the configuration of any of them without its place in the grid."""
    settings = config.to_dict()
    varies = [*definition.varies, "seed"]
    if options.learning_rates is not None:
        varies.append("optimizer.learning_rate")
        settings["learning_rates"] = "the best of each arm"
    if "optimizer.learning_rate" in definition.varies:
        settings["learning_rate"] = options.learning_rate
    for path in varies:
        *parents, name = path.split(".")
        part = settings
        for parent in parents:
            part = part[parent]
        part.pop(name, None)
    return settings


def summarize(definition: ExperimentDefinition, arms: Sequence[Arm], sweep: Sweep) -> list[dict[str, Any]]:
    """For each arm the estimate of its test accuracy over the seeds; a diverged run is counted, and enters no mean."""
    from fastdl.experiments.statistics import estimate

    names = [factor.name for factor in definition.factors]
    rows = []
    for arm in arms:
        results = [
            outcome.result
            for outcome in sweep.outcomes
            if tuple(outcome.plan.factors[name] for name in names) == tuple(arm)
        ]
        accuracies = [result.test_accuracy for result in results if result.test_accuracy is not None]
        rows.append(
            {
                "arm": list(arm),
                "accuracy": dataclasses.asdict(estimate(accuracies)),
                "diverged": sum(result.status == "diverged" for result in results),
            }
        )
    return rows


def _write(
    folder: Path, definition: ExperimentDefinition, settings: dict[str, Any], sweep: Sweep, record: dict[str, Any]
) -> None:
    touches = {
        outcome.plan.name: count_test_evaluations(folder / "runs" / outcome.plan.name) for outcome in sweep.outcomes
    }
    write_results(
        folder / "results.json",
        definition.name,
        settings,
        sweep.outcomes,
        record["planned"],
        **{name: value for name, value in record.items() if name != "planned"},
        test_evaluations=touches,
        failed=[{"run": failure.plan.name, "error": failure.error} for failure in sweep.failures],
        summary=summarize(definition, [tuple(arm) for arm in record["arms"]], sweep),
    )


def command_line(definition: ExperimentDefinition, options: CommonOptions) -> str:
    """The command that gives these results: all options that decide them, and not where data and results lie."""
    words = ["fastdl", "experiment", definition.name]
    elsewhere = {"output_dir", "resume", "time_limit", "jobs", "checkpoint_seconds", "track", "lang"}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name in elsewhere or value == default:
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if field.name in ("data_dir", "learning_rates"):
            words.append({"data_dir": "DIR", "learning_rates": "best.json"}[field.name])
        elif isinstance(value, tuple) and all(isinstance(part, int) for part in value):
            words.append(",".join(map(str, value)) + ("," if len(value) == 1 else ""))
        elif isinstance(value, tuple):
            words += map(str, value)
        else:
            words.append(str(value))
    return " ".join(words)


def _commit() -> str | None:
    """The commit of the checkout that the package is run from, None for an installed one."""
    root = Path(fastdl.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _announce(
    definition: ExperimentDefinition, options: CommonOptions, dataset: ImageDataset, runs: int, folder: Path
) -> None:
    assert options.seeds is not None
    print(
        f"{definition.name} on {dataset.name}, protocol {options.protocol}: {runs} runs, seeds "
        f"{','.join(map(str, options.seeds))}, {options.epochs} epochs each, {options.jobs} at a time, "
        f"device {options.device}, backend {options.backend}, results in {folder}",
        file=sys.stderr,
        flush=True,
    )
