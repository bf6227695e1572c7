"""A profile for people, as a table that fits a terminal, and for programs."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

import fastdl
from fastdl.profile.limits import Limits
from fastdl.profile.records import Accounts, Other, Record, Row
from fastdl.profile.sensors import Range, Readings

WIDTH = 120
ABSENT = "-"
NOT_REPORTED = "not reported"
FORMAT = 1


def report(
    accounts: Accounts,
    rows: Sequence[Row],
    limits: Limits | None,
    readings: Readings | None,
    steps: int,
    *,
    most_others: int,
) -> str:
    """The whole text; times, calls and bytes are those of one step."""
    parts = [_heading(accounts, steps)]
    parts.append(_table(accounts, rows, most_others, steps))
    if limits is not None:
        parts.append(_limits(limits))
    if readings is not None:
        parts.append(sensor_lines(readings, steps))
    return "\n".join(parts)


def _heading(accounts: Accounts, steps: int) -> str:
    whole = milliseconds(accounts.wall_seconds / steps)
    of = f"a step, the mean of {steps}" if steps > 1 else "in all"
    clock = "the GPU's time" if accounts.device == "cuda" else "wall-clock time of the calls"
    return f"{whole} ms {of}, with the profiler; the times below are {clock}" + (" in one step" if steps > 1 else "")


def _table(accounts: Accounts, rows: Sequence[Row], most_others: int, steps: int) -> str:
    on_gpu = accounts.device == "cuda"
    watched = any(row.allocated is not None for row in rows)
    header = ["op", "pass", "backend", "calls", "ms", "self ms", "share", "GB/s", "GFLOP/s", "roofline"]
    header += ["launches"] if on_gpu else []
    header += ["kept MB"] if watched else []

    def line(name: str, calls: str, seconds: float, launches: int | None = None, **cells: str) -> list[str]:
        found = {"op": name, "calls": calls, "ms": milliseconds(seconds / steps), **cells}
        found["share"] = share(seconds, accounts.whole)
        if launches is not None:
            found["launches"] = count(launches, steps)
        return [found.get(title, "") for title in header]

    lines: list[list[str] | None] = []
    for row in rows:
        cells = {
            "pass": row.direction,
            "backend": row.backend,
            "self ms": milliseconds(row.self_seconds / steps),
            "GB/s": rate(row.bandwidth),
            "GFLOP/s": rate(row.operation_rate),
            "roofline": ABSENT if row.of_roofline is None else f"{100 * row.of_roofline:.0f}%",
            "kept MB": ABSENT if row.allocated is None else f"{row.allocated / steps / 1e6:.1f}",
        }
        name = row.operator + (f" {shapes(row.shapes)}" if row.shapes else "")
        lines.append(line(name, count(row.calls, steps), row.seconds, row.launches, **cells))
    ours = accounts.seconds_of_ops
    lines += [line("fastdl's ops together", "", ours), None] if rows else []
    for other in shortened(accounts.others, most_others):
        lines.append(line(other.name, count(other.calls, steps), other.seconds, other.launches))
    lines.append(None)
    lines.append(line("idle" if on_gpu else "Python, waiting, profiler", "", accounts.rest))
    lines.append(line("all", "", accounts.whole))
    return layout(header, lines)


def shortened(others: Sequence[Other], most: int) -> list[Other]:
    """The first ones, and the sum of all behind them."""
    behind = others[most:]
    if len(behind) < 2:
        return list(others)
    summed = Other(
        f"{len(behind)} other operators",
        sum(other.calls for other in behind),
        sum(other.seconds for other in behind),
        sum(other.launches for other in behind),
    )
    return [*others[:most], summed]


def layout(header: Sequence[str], lines: Sequence[Sequence[str] | None]) -> str:
    """Columns padded with spaces, numbers to the right; None is a rule. The first column gives way to `WIDTH`."""
    texts = ("op", "pass", "backend")
    columns = range(1, len(header))
    widths = [max(len(line[column]) for line in [header, *filter(None, lines)]) for column in columns]
    room = WIDTH - sum(widths) - 2 * len(widths)
    first = min(room, max(len(line[0]) for line in [header, *filter(None, lines)]))

    def padded(cells: Sequence[str]) -> str:
        name = cells[0] if len(cells[0]) <= first else cells[0][: first - 1] + "…"
        found = [name.ljust(first)]
        for cell, width, title in zip(cells[1:], widths, header[1:], strict=True):
            found.append(cell.ljust(width) if title in texts else cell.rjust(width))
        return "  ".join(found).rstrip()

    rule = "-" * (first + sum(widths) + 2 * len(widths))
    return "\n".join([padded(header), rule, *(rule if line is None else padded(line) for line in lines)])


def shapes(named: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """Of the tensors with more than one dimension, each once."""
    return " ".join(dict.fromkeys("x".join(map(str, shape)) for _, shape in named if len(shape) > 1))


def milliseconds(seconds: float) -> str:
    """With at least three digits: 0.0123, 1.23, 123."""
    value = seconds * 1e3
    return (
        f"{value:.4f}"
        if value < 0.1
        else f"{value:.3f}"
        if value < 1
        else f"{value:.2f}"
        if value < 100
        else f"{value:.0f}"
    )


def share(seconds: float, whole: float) -> str:
    return f"{100 * seconds / whole:.1f}%" if whole else ABSENT


def rate(value: float | None) -> str:
    """In 10^9 a second."""
    if value is None:
        return ABSENT
    value /= 1e9
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def count(number: int, steps: int) -> str:
    return str(number // steps) if number % steps == 0 else f"{number / steps:.1f}"


def _limits(limits: Limits) -> str:
    rates = "".join(f", {name} products {value / 1e9:.0f} GFLOP/s" for name, value in limits.matrix_rates.items())
    return f"roofline, measured just now: copying memory {limits.bandwidth / 1e9:.1f} GB/s{rates}"


def sensor_lines(readings: Readings, steps: int) -> str:
    """What the GPU's sensors said, one line."""
    if readings.missing:
        return f"GPU sensors: {NOT_REPORTED} ({readings.missing})"
    energy = (
        NOT_REPORTED
        if readings.energy is None
        else f"{readings.energy / steps:.3g} J" + (" a step" if steps > 1 else "")
    )
    if readings.reasons is None:
        held_back = NOT_REPORTED
    else:
        held_back = "; ".join(readings.reasons) or "nothing"
    sm_clock, memory_clock = _range(readings.sm_clock, "MHz"), _range(readings.memory_clock, "MHz")
    return "\n".join(
        [
            f"{readings.name or 'GPU'}: SM clock {sm_clock}, memory clock {memory_clock}",
            f"power {_range(readings.power, 'W')}, temperature {_range(readings.temperature, '°C')}, energy {energy}",
            f"clocks held back by: {held_back}",
        ]
    )


def _range(values: Range | None, unit: str) -> str:
    if values is None:
        return NOT_REPORTED
    if round(values.least) == round(values.most):
        return f"{values.mean:.0f} {unit}"
    return f"{values.mean:.0f} {unit} ({values.least:.0f} to {values.most:.0f})"


def as_json(
    accounts: Accounts, rows: Sequence[Row], limits: Limits | None, readings: Readings | None, steps: int
) -> dict[str, Any]:
    """Everything, in seconds and bytes, over all steps together."""
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "fastdl": fastdl.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "device": accounts.device,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "wall_seconds": accounts.wall_seconds,
        "seconds_of_ops": accounts.seconds_of_ops,
        "seconds_of_others": accounts.seconds_of_others,
        "seconds_of_the_rest": accounts.rest,
        "limits": None if limits is None else asdict(limits),
        "rows": [_row_as_json(row) for row in rows],
        "records": [_record_as_json(record) for record in accounts.records],
        "others": [asdict(other) for other in accounts.others],
        "sensors": None if readings is None else asdict(readings),
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    derived = {
        "bytes_per_second": row.bandwidth,
        "operations_per_second": row.operation_rate,
        "of_roofline": row.of_roofline,
    }
    return {**asdict(row), "shapes": dict(row.shapes), **derived}


def _record_as_json(record: Record) -> dict[str, Any]:
    call = record.call
    return {
        "name": call.name,
        "shapes": call.shapes,
        "dtypes": call.dtypes,
        "least_bytes": None if call.cost is None else call.cost.bytes,
        "operations": None if call.cost is None else call.cost.operations,
        "seconds": record.seconds,
        "self_seconds": record.self_seconds,
        "cpu_seconds": record.cpu_seconds,
        "launches": record.launches,
        "allocated": record.allocated,
        "nested": record.nested,
    }
