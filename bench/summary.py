"""Ratios and means: from measured times to the few numbers that are quoted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .records import GRAPH, CaseRecord, Measurement, is_ours

FORWARD = "forward"
FORWARD_BACKWARD = "forward+backward"
PASSES = (FORWARD, FORWARD_BACKWARD)


def geometric_mean(values: Iterable[float]) -> float:
    """exp(mean(log(values))): the mean under which a ratio and its inverse stay inverse. Raises ValueError for none."""
    logarithms = [math.log(value) for value in values]
    if not logarithms:
        raise ValueError("the geometric mean of no values is not defined")
    return math.exp(sum(logarithms) / len(logarithms))


def speedup(measurement: Measurement, other: str) -> float | None:
    """``other``'s median over ours: above 1 where ours is faster; None where either was not measured."""
    times = measurement.times
    if other not in times or "ours" not in times:
        return None
    return times[other].median / times["ours"].median


def best_other(measurement: Measurement) -> str | None:
    """The fastest of all that are not ours, on whichever backend."""
    others = {name: spread.median for name, spread in measurement.times.items() if not is_ours(name)}
    return min(others, key=others.__getitem__) if others else None


def best_peer(measurement: Measurement) -> str | None:
    """The fastest besides ours, eager and compile."""
    peers = {n: s.median for n, s in measurement.times.items() if n not in ("eager", "compile") and not is_ours(n)}
    return min(peers, key=peers.__getitem__) if peers else None


def share_of_floor(measurement: Measurement) -> float:
    """floor / ours: 1 where ours moves no byte more than it must, as fast as a copy does."""
    return measurement.floor / measurement.times["ours"].median


@dataclass(frozen=True)
class Summary:
    """Geometric means over cases of one dtype, pass and state of the pool; ``*_least`` is the worst single case."""

    dtype: str
    pass_name: str
    pool: str | None
    cases: int
    over_eager: float
    over_compile: float | None
    over_compile_least: float | None
    over_best: float
    floor_share: float


def summarise(records: Sequence[CaseRecord]) -> list[Summary]:
    """One summary for each dtype, pass and state of the pool that was measured, in that order."""
    rows = [(record, m) for record in records for m in record.measurements if "ours" in m.times and "eager" in m.times]
    kinds = dict.fromkeys((record.case.dtype, m.pass_name, m.pool) for record, m in rows)
    summaries = []
    for dtype, pass_name, pool in sorted(kinds, key=lambda kind: (kind[2] == "off", list(kinds).index(kind))):
        group = [m for record, m in rows if (record.case.dtype, m.pass_name, m.pool) == (dtype, pass_name, pool)]
        compiled = [ratio for m in group if (ratio := speedup(m, "compile")) is not None]
        summaries.append(
            Summary(
                dtype,
                pass_name,
                pool,
                len(group),
                over_eager=geometric_mean(_known(speedup(m, "eager") for m in group)),
                over_compile=geometric_mean(compiled) if compiled else None,
                over_compile_least=min(compiled, default=None),
                over_best=geometric_mean(_known(speedup(m, best_other(m) or "eager") for m in group)),
                floor_share=geometric_mean(share_of_floor(m) for m in group),
            )
        )
    return summaries


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


@dataclass(frozen=True)
class Added:
    """What a contender takes beyond a part of the work, as shares of the part's time: the median case and the worst."""

    part: str
    contender: str
    pass_name: str
    layout: str
    dtype: str
    median: float
    most: float


def added_to_parts(records: Sequence[CaseRecord], contenders: Sequence[str] = ("ours", "eager")) -> list[Added]:
    """For each part, contender, pass, layout and dtype that was measured, with the pool on where there is one."""
    shares: dict[tuple[str, str, str, str, str], list[float]] = {}
    for record in records:
        for m in record.measurements:
            for part, spread in m.parts.items():
                for name in contenders:
                    if name in m.times and m.pool != "off":
                        key = (part, name, _pass_of(record, m), record.case.layout, record.case.dtype)
                        shares.setdefault(key, []).append(m.times[name].median / spread.median - 1)
    return [Added(*key, statistics.median(found), max(found)) for key, found in shares.items()]


def _pass_of(record: CaseRecord, measurement: Measurement) -> str:
    return " ".join(filter(None, (record.case.variant, measurement.pass_name)))


def saved_ratio(records: Sequence[CaseRecord]) -> float | None:
    """The largest of ours / eager in bytes kept for backward: the promise that holds for every case."""
    ratios = [_saved(record.saved_bytes) for record in records]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def _saved(saved: Mapping[str, int]) -> float | None:
    return saved["ours"] / saved["eager"] if {"ours", "eager"} <= saved.keys() and saved["eager"] else None


def call_overhead(records: Sequence[CaseRecord], size: Sequence[int]) -> list[tuple[CaseRecord, Measurement, float]]:
    """Seconds a call of ours takes beyond eager at the small size, where the call and not the work is what costs."""
    return [
        (record, m, m.times["ours"].median - m.times["eager"].median)
        for record in records
        if tuple(record.case.size) == tuple(size)
        for m in record.measurements
        if {"ours", "eager"} <= m.times.keys() and m.pool != GRAPH
    ]
