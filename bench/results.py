"""Results on disk: one JSON file a machine, in it one part an op, written whole or not at all.

A run's part lies under ``unfinished`` while it grows, case by case, and takes its op's place under ``operators`` when
its last case is done. So an interrupted run keeps what it has measured and costs nothing that was there before.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastdl.native.files import atomic_write

from .records import CaseRecord, from_json, to_json
from .summary import call_overhead, saved_ratio, summarise

FORMAT = 1


class ResultsError(RuntimeError):
    """A results file that cannot be read as one."""


@dataclass(frozen=True)
class Run:
    """The circumstances of one run of one op.

    ``not_installed`` are the peers that were not there, each with the package it needs. ``continued`` tells of each
    time that an interrupted run was taken up again: when, at what load, and how fast memory was copied by then.
    ``tuned`` tells whether what `fastdl tune` has stored on the machine was in use, rather than what is shipped.
    """

    operator: str
    title: str
    date: str
    commit: str | None
    versions: dict[str, str]
    threads: int
    selection: dict[str, str]
    memory_copy_bandwidth: float
    matrix_rates: dict[str, float]
    overhead_size: tuple[int, ...] = (2, 64, 8, 8)
    cpu_pool_limit_bytes: int | None = None
    load_average_before: float | None = None
    cases_selected: int = 0
    seconds: float = 0.0
    not_installed: dict[str, str] = field(default_factory=dict)
    continued: list[dict[str, Any]] = field(default_factory=list)
    tuned: bool = False


def read(path: Path) -> dict[str, Any]:
    """The file's content, or an empty one where there is no file. Raises ResultsError for any other file."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"format": FORMAT, "machine": {}, "operators": {}, "unfinished": {}}
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"{path} is not a results file and is left as it is: {error}. Move it away to start a new one."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ResultsError(
            f"{path} is left as it is: expected results of format {FORMAT}, found {found!r}. "
            "Move it away to start a new one."
        )
    return {"machine": {}, "operators": {}, "unfinished": {}, **content}


def write(path: Path, content: dict[str, Any]) -> None:
    """Replaces a results file at once."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader, or a kill at any moment, finds the old content or the new."""
    with atomic_write(path) as file:
        file.write(text.encode())


def part(run: Run, records: list[CaseRecord]) -> dict[str, Any]:
    """One op's part of the file."""
    overhead = [
        {
            "layout": record.case.layout,
            "dtype": record.case.dtype,
            "pass_name": measurement.pass_name,
            "pool": measurement.pool,
            "microseconds_over_eager": seconds * 1e6,
        }
        for record, measurement, seconds in call_overhead(records, run.overhead_size)
    ]
    return {
        "run": {**asdict(run), "overhead_size": list(run.overhead_size)},
        "summary": [asdict(summary) for summary in summarise(records)],
        "saved_bytes_ours_over_eager_most": saved_ratio(records),
        "call_overhead": overhead,
        "cases": [to_json(record) for record in records],
    }


def save(path: Path, machine: dict[str, Any], run: Run, records: list[CaseRecord], *, finished: bool) -> None:
    """Puts the op's part into the file and leaves every other op's as it is."""
    content = read(path)
    content["machine"] = machine
    section = "operators" if finished else "unfinished"
    content[section] = {**content[section], run.operator: part(run, records)}
    if finished:
        content["unfinished"] = {name: rest for name, rest in content["unfinished"].items() if name != run.operator}
    write(path, content)


def load_records(section: dict[str, Any]) -> list[CaseRecord]:
    """The cases of an op's part. Raises ResultsError where it has another form."""
    try:
        return [from_json(case) for case in section["cases"]]
    except (KeyError, TypeError) as error:
        raise ResultsError(f"the results hold a case of an unknown form: {error!r}") from error
