"""The commands beside ``fastdl experiment``: ``fastdl report`` and ``fastdl search``."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastdl.experiments import load_experiment

__all__ = ["ReportOptions", "SearchOptions", "report", "search"]


@dataclass(frozen=True)
class ReportOptions:
    """Write the report of an experiment again from its results.json, without a run."""

    output_dir: Path | None = None
    """Folder of the results; the newest under runs/EXPERIMENT if it is not given."""
    lang: Literal["en", "ko"] = "en"
    """Language of the report."""
    to: Path | None = None
    """Folder to write to; that of the results if it is not given."""


def report(words: list[str]) -> int:
    """``fastdl report NAME``: prints the files that it has written."""
    experiment = load_experiment(words[0])
    options = tyro.cli(ReportOptions, prog=f"fastdl report {experiment.name}", args=words[1:])
    folder = options.output_dir or _newest(experiment.name)
    from fastdl.experiments.reporting import write_report

    for path in write_report(experiment.definition, folder, options.lang, output=options.to):
        print(path)
    return 0


def _newest(name: str) -> Path:
    found = sorted((Path("runs") / name).glob("*/results.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"there are no results under runs/{name}; run fastdl experiment {name}, or give their folder with "
            "--output-dir"
        )
    return found[-1].parent


@dataclass(frozen=True)
class SearchOptions:
    """Search the learning rate of every arm by its validation accuracy; the test split is not looked at."""

    trials: int = 12
    """Learning rates that are tried for each arm; those that fall behind are given up early."""
    low: float = 0.01
    """Least learning rate."""
    high: float = 1.0
    """Greatest learning rate."""
    search_seed: int = 0
    """Of the search; its runs have seeds that no run of the experiment has."""
    experiment: Annotated[Any, tyro.conf.Suppress] = field(default=None)


def search(words: list[str]) -> int:
    """``fastdl search NAME``: the options of the experiment, and those of the search."""
    experiment = load_experiment(words[0])
    both = dataclasses.make_dataclass(
        "Options",
        [
            (part.name, hints[part.name], part)
            for cls in (SearchOptions, experiment.options)
            for hints in [_hints(cls)]
            for part in dataclasses.fields(cls)
            if part.name not in ("experiment", "learning_rates", "learning_rate", "seeds", "track", "lang")
        ],
        frozen=True,
    )
    given: Any = tyro.cli(
        both, prog=f"fastdl search {experiment.name}", args=words[1:], description=SearchOptions.__doc__
    )
    names = {part.name for part in dataclasses.fields(experiment.options)}
    values = {part.name: getattr(given, part.name) for part in dataclasses.fields(given)}
    folder = run_search(
        experiment.definition,
        experiment.options(**{name: value for name, value in values.items() if name in names}),
        SearchOptions(**{name: values[name] for name in ("trials", "low", "high", "search_seed")}),
    )
    print((folder / "search.md").read_text(encoding="utf-8"))
    print(f"Written to {folder}. Use it: fastdl experiment {experiment.name} --learning-rates {folder / 'best.json'}")
    return 0


def _hints(cls: type[Any]) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(cls, include_extras=True)


def run_search(definition: Any, options: Any, searched: SearchOptions) -> Path:
    """Search the learning rates of the arms of ``options``, complete or not; returns the folder with ``best.json``."""
    from fastdl.data import load_dataset
    from fastdl.experiments.conduct import default_folder
    from fastdl.experiments.options import complete
    from fastdl.experiments.search import search as search_arms

    if searched.trials < 1:
        raise ValueError(f"trials must be 1 or more, got {searched.trials}")
    if not 0 < searched.low < searched.high:
        raise ValueError(f"low and high must be above 0 and in this order, got {searched.low} and {searched.high}")
    deadline = None if options.time_limit is None else time.monotonic() + 60 * options.time_limit
    options = complete(options, definition)
    folder = options.output_dir or default_folder(definition, options).with_name(f"{options.protocol}-search")
    folder.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset(options.dataset, options.data_dir)
    search_arms(
        definition,
        options,
        dataset,
        folder,
        trials=searched.trials,
        low=searched.low,
        high=searched.high,
        seed=searched.search_seed,
        deadline=deadline,
    )
    return Path(folder)
