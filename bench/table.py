"""The printed comparison, at most 120 columns wide: by rich where it is installed, else in plain text."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import TextIO

from .cases import LAYOUT_LABELS
from .records import CaseRecord, Measurement, by_backend
from .summary import FORWARD, Summary, best_other, best_peer, share_of_floor, speedup

WIDTH = 120
ABSENT = "-"
DTYPE_LABELS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}
HEADER = (
    "shape/groups", "layout", "", "pass", "pool", "ours", "±", "eager", "compile", "other", "floor",
    "eager/ours", "comp./ours", "best/ours", "floor/ours", "saved",
)  # fmt: skip
LEFT = frozenset({"shape/groups", "case", "contender", "layout", "", "pass", "pool", "geometric means"})
BEHIND = re.compile(r"0\.\d+x")


def seconds(value: float | None) -> str:
    """Three digits with the unit that fits: ``830us``, ``12.4ms``, ``1.25s``."""
    if value is None:
        return ABSENT
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= scale * 0.9995:
            return f"{_three_digits(value / scale)}{unit}"
    return f"{_three_digits(value / 1e-6)}us"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    return f"{value:.2f}" if magnitude < 9.995 else f"{value:.1f}" if magnitude < 99.95 else f"{value:.0f}"


def ratio(value: float | None) -> str:
    return ABSENT if value is None else f"{_three_digits(value)}x"


def percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.0f}%"


def case_rows(record: CaseRecord) -> list[list[str]]:
    """One row for each pass and state of the pool; nothing for a case in which ours was rejected."""
    rows = [_row(record, measurement) for measurement in record.measurements if "ours" in measurement.times]
    return [*rows[:1], *(["", "", "", *row[3:]] for row in rows[1:])]


def _row(record: CaseRecord, m: Measurement) -> list[str]:
    def median(name: str | None) -> float | None:
        return m.times[name].median if name in m.times else None

    saved = record.saved_bytes
    backward = m.pass_name != FORWARD
    kept = saved["ours"] / saved["eager"] if backward and saved.get("eager") and "ours" in saved else None
    best = best_other(m)
    return [
        record.case.label,
        LAYOUT_LABELS[record.case.layout],
        DTYPE_LABELS[record.case.dtype],
        "fwd+bwd" if backward else "fwd",
        m.pool or ABSENT,
        seconds(median("ours")),
        percent(m.times["ours"].relative),
        seconds(median("eager")),
        seconds(median("compile")),
        seconds(median(best_peer(m))),
        seconds(m.floor),
        ratio(speedup(m, "eager")),
        ratio(speedup(m, "compile")),
        ratio(speedup(m, best) if best else None),
        percent(share_of_floor(m)),
        percent(kept),
    ]


BACKEND_HEADER = ("shape/groups", "layout", "", "pass", "pool", "triton", "cuda", "triton/cuda")


def backend_rows(records: Sequence[CaseRecord]) -> list[list[str]]:
    """The times of our own backends beside each other, where a GPU ran more than one."""
    rows = []
    for record in records:
        for m in record.measurements:
            times = by_backend(record, m)
            if len(times) < 2:
                continue
            triton, cuda = times.get("triton"), times.get("cuda")
            row = [record.case.label, LAYOUT_LABELS[record.case.layout], DTYPE_LABELS[record.case.dtype]]
            row += ["fwd" if m.pass_name == FORWARD else "fwd+bwd", m.pool or ABSENT, seconds(triton), seconds(cuda)]
            rows.append([*row, ratio(triton / cuda if triton and cuda else None)])
    return rows


SUMMARY_HEADER = (
    "geometric means", "pass", "pool", "cases", "eager/ours", "compile/ours", "(least)", "best other/ours",
    "floor/ours",
)  # fmt: skip


def summary_rows(summaries: Sequence[Summary]) -> list[list[str]]:
    return [
        [
            s.dtype, s.pass_name, s.pool or ABSENT, str(s.cases), ratio(s.over_eager), ratio(s.over_compile),
            ratio(s.over_compile_least), ratio(s.over_best), percent(s.floor_share),
        ]
        for s in summaries
    ]  # fmt: skip


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], file: TextIO, *, plain: bool | None = None
) -> None:
    """Prints the rows under their header; ``plain`` overrules the choice between rich and text."""
    if plain is None:
        plain = importlib.util.find_spec("rich") is None
    if plain:
        file.write(plain_table(header, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for title in header:
        table.add_column(title.replace("/ours", "\n/ours"), justify="left" if title in LEFT else "right", no_wrap=True)
    for row in rows:
        # Where something else is faster is what a reader looks for.
        table.add_row(*(Text(cell, style="red" if BEHIND.fullmatch(cell) else "") for cell in row))
    Console(file=file, width=WIDTH, highlight=False).print(table)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with spaces, the header over two lines where a ratio needs them."""
    upper = [title.removesuffix("/ours") for title in header]
    lower = ["/ours" if title.endswith("/ours") else "" for title in header]
    lines = [upper, lower, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def format_line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if title in LEFT else cell.rjust(width)
            for cell, width, title in zip(cells, widths, header, strict=True)
        ]
        return " ".join(padded).rstrip()

    rule = "-" * (sum(widths) + len(widths) - 1)
    return "\n".join([format_line(upper), format_line(lower), rule, *map(format_line, rows)]) + "\n"
