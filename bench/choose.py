"""The table of what ``auto`` takes on a GPU, written from results that hold the times of several of our backends."""

from __future__ import annotations

import argparse
import pprint
import sys
from collections.abc import Sequence
from pathlib import Path

from fastdl.ops import dispatch, measured, measured_choices

from . import registry, results
from .records import GRAPH, CaseRecord, Measurement, by_backend
from .summary import geometric_mean

TABLE = Path(measured_choices.__file__)
# A backend takes another one's place in the order of `dispatch.PREFERENCES` only where it is faster by more than this:
# two runs of one kernel differ by as much.
LEAST_GAIN = 1.02


def choices(op: str, capability: str, records: Sequence[CaseRecord]) -> dict[str, str]:
    """The backend with the least geometric mean of times for each dtype, layout and class of sizes that was measured.

    Forward, and forward with backward, count alike; both as calls, with the cost of their launches.
    """
    groups: dict[str, list[dict[str, float]]] = {}
    for record in records:
        case = record.case
        row = measured.key(capability, case.dtype, case.layout, measured.size_class(case.tensor_bytes))
        for measurement in record.measurements:
            times = seconds_by_backend(record, measurement)
            if measurement.pool != GRAPH and len(times) > 1:
                groups.setdefault(row, []).append(times)
    return {row: fastest(group) for row, group in sorted(groups.items())}


def seconds_by_backend(record: CaseRecord, measurement: Measurement) -> dict[str, float]:
    """Each of our backends with its time. What was looked up by measurement is one of them, timed on its own too."""
    times = by_backend(record, measurement)
    return {name: seconds for name, seconds in times.items() if name != dispatch.BY_MEASUREMENT}


def fastest(group: Sequence[dict[str, float]]) -> str:
    """The best of the backends that all of the group have; the usual one unless another gains more than a little."""
    order = (dispatch.VENDOR, *dispatch.PREFERENCES["cuda"])
    common = [name for name in order if all(name in times for times in group)]
    best = common[0]
    for name in common[1:]:
        if geometric_mean(times[best] / times[name] for times in group) > LEAST_GAIN:
            best = name
    return best


def operator_of(name: str) -> str | None:
    """The op whose rows a benchmark fills: its own, or the one that serves it where that has no benchmark itself."""
    if name not in registry.names():
        return name
    op = registry.load(name).serving_op
    return op if op == name or op not in registry.names() else None


def merged(
    table: dict[str, dict[str, str]], op: str, capability: str, found: dict[str, str]
) -> dict[str, dict[str, str]]:
    """The table with one op's rows of one compute capability replaced."""
    kept = {row: backend for row, backend in table.get(op, {}).items() if not row.startswith(f"{capability} ")}
    return {**table, op: {**kept, **found}}


def module_text(table: dict[str, dict[str, str]]) -> str:
    """`measured_choices.py` with this table."""
    head = TABLE.read_text(encoding="utf-8").partition("CHOICES:")[0]
    if not any(table.values()):
        return f"{head}CHOICES: dict[str, dict[str, str]] = {{}}\n"
    lines = [f"{head}CHOICES: dict[str, dict[str, str]] = {{"]
    for op, rows in sorted(table.items()):
        lines.append(f'    "{op}": {{')
        lines += [f'        "{row}": "{backend}",' for row, backend in sorted(rows.items())]
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def main(argv: list[str]) -> int:
    """``choose``: reads results files and writes the table; ``--print`` only shows it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench choose",
        description="Writes the table of what `auto` takes on a GPU, from the results of `make gpu-bench`.",
    )
    parser.add_argument("files", nargs="+", type=Path, help="results of a GPU")
    parser.add_argument("--print", action="store_true", dest="show", help="show the table and change nothing")
    options = parser.parse_args(argv)
    table = dict(measured_choices.CHOICES)
    try:
        for path in options.files:
            content = results.read(path)
            capability = content["machine"].get("capability")
            if capability is None:
                raise results.ResultsError(f"{path} holds no results of a GPU")
            for name, part in {**content["unfinished"], **content["operators"]}.items():
                op = operator_of(name)
                if op is not None:
                    table = merged(table, op, capability, choices(op, capability, results.load_records(part)))
    except results.ResultsError as error:
        print(f"bench choose: {error}", file=sys.stderr)
        return 1
    if options.show:
        pprint.pprint(table)
    else:
        results.write_text(TABLE, module_text(table))
        print(f"{sum(map(len, table.values()))} rows written to {TABLE}")
    return 0
