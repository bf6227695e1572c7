"""What the pictures of docs/performance.md show, as data: no drawing, and no library but Python's own.

A picture is known by its data, not by its bytes, which change with the drawing library's version: each file carries the
fingerprint of its data, so that whether a picture is up to date can be told where nothing can be drawn.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import machine, registry
from .cases import DTYPES, LAYOUT_LABELS
from .records import GRAPH, CaseRecord, Measurement
from .sections import Section
from .summary import FORWARD, FORWARD_BACKWARD, geometric_mean, speedup

# Raised with every change of how the same data is drawn, so that the pictures are drawn anew.
STYLE = 4
FORMATS = ("png", "svg")
ROOFLINE, RATIOS, CASES = "roofline", "ratios", "cases"
BASELINES = ("eager", "compile")


@dataclass(frozen=True)
class Figure:
    """A picture: the beginning of its files' names, its kind, its title, and everything that is drawn."""

    name: str
    kind: str
    title: str
    data: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        content = json.dumps({"style": STYLE, **_rounded(asdict(self))}, sort_keys=True)
        return f"fastdl-data-{hashlib.sha256(content.encode()).hexdigest()[:32]}"

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{ending}" for ending in FORMATS)


def _rounded(value: Any) -> Any:
    """Numbers to six digits: the last ones of a logarithm differ between machines, and nobody can see them."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Point:
    """A case on the roofline: operations a byte, and operations/s of ``ours`` and of eager torch."""

    operator: str
    dtype: str
    intensity: float
    ours: float
    eager: float


def make_figures(sections: Sequence[Section]) -> list[Figure]:
    """For each machine its roofline and its ratios, and for each op the ratios of its cases."""
    figures = []
    for group in by_machine([section for section in sections if section.records]):
        described = group[0].machine
        stem, name = f"performance-{machine.slug_of(described)}", described["name"]
        points = [point for section in group for point in points_of(section)]
        if points:
            figures.append(Figure(f"{stem}-{ROOFLINE}", ROOFLINE, f"Roofline: {name}", _roofline(group, points)))
        figures.append(Figure(f"{stem}-{RATIOS}", RATIOS, f"fastdl beside torch: {name}", _ratios(group)))
        figures += [
            Figure(f"{stem}-{section.run['operator']}", CASES, f"{section.run['title']}: {name}", _cases(section))
            for section in group
        ]
    return figures


def by_machine(sections: Sequence[Section]) -> list[list[Section]]:
    groups: dict[str, list[Section]] = {}
    for section in sections:
        groups.setdefault(machine.slug_of(section.machine), []).append(section)
    return list(groups.values())


def main_measurement(record: CaseRecord, pass_name: str) -> Measurement | None:
    """The pass as it is met in use: called, and on a CPU with the output pool on."""
    for m in record.measurements:
        if m.pass_name == pass_name and m.pool not in ("off", GRAPH) and "ours" in m.times:
            return m
    return None


def points_of(section: Section) -> list[Point]:
    """The cases of which eager was timed too: forward and backward, or where there is no backward, forward.

    The operations are those that the benchmark counts today; an op that it counts none for has no place here.
    """
    name = section.run["operator"]
    if name not in registry.names():
        return []
    benchmark = registry.load(name)
    points = []
    for record in section.records:
        m = main_measurement(record, FORWARD_BACKWARD) or main_measurement(record, FORWARD)
        if m is None or "eager" not in m.times:
            continue
        work = benchmark.forward_work(record.case)
        if m.pass_name == FORWARD_BACKWARD:
            work = work + benchmark.backward_work(record.case)
        if work.operations:
            ours, eager = (work.operations / m.times[who].median for who in ("ours", "eager"))
            points.append(Point(name, record.case.dtype, work.operations / work.bytes, ours, eager))
    return points


def _roofline(group: Sequence[Section], points: Sequence[Point]) -> dict[str, Any]:
    bandwidths = [section.run["memory_copy_bandwidth"] for section in group]
    rates: dict[str, float] = {}
    for section in group:
        for dtype, rate in section.run["matrix_rates"].items():
            rates[dtype] = max(rate, rates.get(dtype, 0.0))
    return {
        "bandwidths": [min(bandwidths), max(bandwidths)],
        "matrix_rates": {dtype: rates[dtype] for dtype in DTYPES if dtype in rates},
        "points": [asdict(point) for point in points],
        "dtypes": [dtype for dtype in DTYPES if any(point.dtype == dtype for point in points)],
    }


def _ratios(group: Sequence[Section]) -> dict[str, Any]:
    """For each pass and op, and for each of torch's two ways, its time over ours: all cases, and their mean."""
    passes: dict[str, list[dict[str, Any]]] = {}
    for pass_name in (FORWARD_BACKWARD, FORWARD):
        for section in group:
            values = {}
            for baseline in BASELINES:
                found = ratios_of(section, pass_name, baseline)
                if found:
                    values[baseline] = {"mean": geometric_mean(found), "cases": found}
            if values:
                passes.setdefault(pass_name, []).append({"operator": section.run["operator"], **values})
    return {"passes": passes}


def ratios_of(section: Section, pass_name: str, baseline: str) -> list[float]:
    found = [main_measurement(record, pass_name) for record in section.records]
    ratios = [speedup(m, baseline) for m in found if m is not None]
    return [ratio for ratio in ratios if ratio is not None]


def _cases(section: Section) -> dict[str, Any]:
    rows = []
    for record in section.records:
        case = record.case
        row: dict[str, Any] = {"label": f"{case.label} {LAYOUT_LABELS[case.layout]} {case.dtype}".replace("x", "×")}
        for pass_name in (FORWARD, FORWARD_BACKWARD):
            m = main_measurement(record, pass_name)
            if m is not None:
                row[pass_name] = {b: ratio for b in BASELINES if (ratio := speedup(m, b)) is not None}
        if len(row) > 1:
            rows.append(row)
    return {"rows": rows}


def stale(figures: Sequence[Figure], folder: Path) -> list[Figure]:
    """The pictures that a file is missing of, or whose file shows other data."""
    return [f for f in figures if any(fingerprint_of(folder / name) != f.fingerprint for name in f.files)]


def leftovers(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Pictures in the folder that nothing is known of any more."""
    wanted = {name for figure in figures for name in figure.files}
    found = sorted(folder.glob("performance-*"))
    return [path for path in found if path.suffix.lstrip(".") in FORMATS and path.name not in wanted]


def fingerprint_of(path: Path) -> str:
    """What a picture's file says of its data; empty where there is no such file or it says nothing."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    text = _png_texts(content) if path.suffix == ".png" else content.decode("utf-8", errors="replace")
    found = re.search(r"fastdl-data-[0-9a-f]{32}", text)
    return found[0] if found else ""


def _png_texts(content: bytes) -> str:
    """The text chunks of a PNG file, in a row."""
    texts, position = [], 8
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"tEXt":
            texts.append(content[position + 8 : position + 8 + length].decode("latin-1"))
        position += 12 + length
    return "\n".join(texts)
