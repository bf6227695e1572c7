"""Two results files beside each other: what has become slower or faster, and what lies within the spread.

A contender's time is known as a median and two quartiles. How far the true median may lie from the measured one is
taken from them, as a factor: on each side the distance from the median to that quartile, but no less than three
standard errors of the median, which for normally distributed times are 5.57 such distances over the root of the number
of rounds (1.2533 s / sqrt(n) for a deviation s, of which the quartiles are 0.6745 away). Independent factors combine as
the root of the sum of the squares of their logarithms. So two runs of one program, in seven rounds with a deviation of
5 %, are called different once in sixty times, and in thirty rounds once in seven hundred (2,000 simulated pairs).

That is so where nothing changes between the runs. What does is known from a run's own visits to its cases, minutes
apart: no time counts as better known than they reproduce the times of its op.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .drift import factor
from .records import CaseRecord, Measurement, is_ours
from .results import ResultsError, load_records
from .summary import geometric_mean
from .timing import Spread

REGRESSION, IMPROVEMENT, WITHIN = "regression", "improvement", "within the spread"
# Two runs of one program on an idle machine differ by this much, whatever the quartiles within a run say.
LEAST_CHANGE = 0.02
# Times of two files are compared as they are only where memory was copied at one speed, to within this share.
SAME_BANDWIDTH = 0.1
STANDARD_ERRORS = 3 * 1.2533 / 0.6745

Drifts = Mapping[tuple[str, bool], float]
"""By op, and whether fastdl or another contender: the factor between visits."""


@dataclass(frozen=True)
class Ratio:
    """A ratio and the bounds within which its spread leaves it."""

    value: float
    low: float
    high: float

    def __truediv__(self, other: Ratio) -> Ratio:
        """The ratio of two independent ones."""
        value = self.value / other.value
        below = math.hypot(math.log(self.value / self.low), math.log(other.high / other.value))
        above = math.hypot(math.log(self.high / self.value), math.log(other.value / other.low))
        return Ratio(value, value * math.exp(-below), value * math.exp(above))

    @property
    def verdict(self) -> str:
        """Of new over old: a regression where it is above 1 and stays there, by `LEAST_CHANGE` at least."""
        if self.low > 1 and self.value > 1 + LEAST_CHANGE:
            return REGRESSION
        if self.high < 1 and self.value < 1 / (1 + LEAST_CHANGE):
            return IMPROVEMENT
        return WITHIN


def measured(spread: Spread, between_visits: float = 1.0) -> Ratio:
    """A time in seconds with the bounds of its median.

    ``between_visits`` is the factor that medians of two visits to a case are within (`drift.factor`). Their difference
    has four times the variance of their mean, which is the median here: it is known to the square root of the factor.
    """
    widening = max(1.0, STANDARD_ERRORS / math.sqrt(spread.rounds))
    below = widening * math.log(spread.median / max(spread.lower_quartile, 1e-12))
    above = widening * math.log(max(spread.upper_quartile, 1e-12) / spread.median)
    least = math.log(between_visits) / 2
    return Ratio(
        spread.median, spread.median * math.exp(-max(least, below)), spread.median * math.exp(max(least, above))
    )


@dataclass(frozen=True)
class Place:
    """What was timed: an op's case, a pass, a state of the pool."""

    operator: str
    case: str
    pass_name: str
    pool: str | None


@dataclass(frozen=True)
class Row:
    """One contender at one place in both files.

    ``times`` is the new time over the old; ``to_eager`` the new (time / eager's time) over the old one, None for eager
    itself and where eager was not timed. ``verdict`` is by the one that the comparison goes by.
    """

    place: Place
    contender: str
    old: Spread
    new: Spread
    times: Ratio
    to_eager: Ratio | None
    verdict: str


@dataclass
class Comparison:
    """Everything that two files say of each other; ``broken`` tells of contenders that one file holds a refusal of."""

    relative: bool
    differences: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    only_old: list[str] = field(default_factory=list)
    only_new: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def regressions(self) -> list[Row]:
        """Those of fastdl itself: another contender that became slower is not fastdl's mistake."""
        return [row for row in self.rows if row.verdict == REGRESSION and is_ours(row.contender)]

    @property
    def failed(self) -> bool:
        return bool(self.regressions or self.broken)

    def means(self) -> dict[tuple[str, str, str], tuple[int, float, float | None]]:
        """For each op, pass and contender: rows, and the geometric means of times and of ratios to eager."""
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.place.operator, row.place.pass_name, row.contender), []).append(row)
        found: dict[tuple[str, str, str], tuple[int, float, float | None]] = {}
        for key, rows in groups.items():
            to_eager = [row.to_eager.value for row in rows if row.to_eager is not None]
            mean = geometric_mean(to_eager) if to_eager else None
            found[key] = len(rows), geometric_mean(row.times.value for row in rows), mean
        return found


def parts(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each op's part, the finished one where there are two."""
    return {**content["unfinished"], **content["operators"]}


def spreads(content: Mapping[str, Any], operators: list[str]) -> dict[Place, dict[str, Spread]]:
    """Every time in a file; whole training steps are an op of their own. Raises ResultsError for an unknown form."""
    found: dict[Place, dict[str, Spread]] = {}
    for name, part in parts(content).items():
        if operators and name not in operators:
            continue
        for record in load_records(part):
            for m in record.measurements:
                found[place_of(name, record, m)] = m.times
    if not operators or "training" in operators:
        for title, run in content.get("training", {}).items():
            times = {name: Spread(**spread) for name, spread in run["times"].items()}
            found[Place("training", title, "step", None)] = times
    return found


def place_of(operator: str, record: CaseRecord, measurement: Measurement) -> Place:
    return Place(operator, record.case.key, measurement.pass_name, measurement.pool)


def compare(old: Mapping[str, Any], new: Mapping[str, Any], operators: list[str] | None = None) -> Comparison:
    """Compares the contents of two results files, of all ops or of those that are named.

    Where the machines or their copy bandwidths differ, verdicts go by the ratios to eager torch, else by the times.
    Raises ResultsError where there is nothing in common.
    """
    chosen = operators or []
    before, after = spreads(old, chosen), spreads(new, chosen)
    drifts = _drifts(before), _drifts(after)
    different_machine = bool(old["machine"] != new["machine"])
    bandwidths = _different_bandwidths(old, new, chosen)
    comparison = Comparison(different_machine or bool(bandwidths), _differences(old, new, chosen) + bandwidths)
    if not before.keys() & after.keys():
        raise ResultsError("the two files have no case in common" + (f" of {', '.join(chosen)}" if chosen else ""))
    comparison.only_old = [_words(place) for place in before if place not in after]
    comparison.only_new = [_words(place) for place in after if place not in before]
    for place in before:
        if place in after:
            comparison.rows += _rows(place, before[place], after[place], drifts, relative=comparison.relative)
            for names, others, into in (
                (before[place], after[place], comparison.only_old), (after[place], before[place], comparison.only_new)
            ):  # fmt: skip
                into += [f"{_words(place)}: {name}" for name in names if name not in others]
    comparison.broken = list(_broken(old, new, chosen))
    return comparison


def _drifts(times: Mapping[Place, dict[str, Spread]]) -> Drifts:
    """How far one file's visits lie apart, for each op: those of fastdl, and those of the others."""
    found: dict[tuple[str, bool], list[Spread]] = {}
    for place, spreads in times.items():
        for name, spread in spreads.items():
            found.setdefault((place.operator, is_ours(name)), []).append(spread)
    return {key: factor(values) for key, values in found.items()}


def _rows(
    place: Place, old: dict[str, Spread], new: dict[str, Spread], drifts: tuple[Drifts, Drifts], *, relative: bool
) -> Iterator[Row]:
    shared = [name for name in old if name in new]
    # Contenders take turns within a round: what moves a visit moves them all, and is not in a ratio of two of them.
    in_the_same_rounds = {name: measured(new[name]) / measured(old[name]) for name in shared}
    eager = next((name for name in shared if name.startswith("eager")), None)
    for name in shared:
        place_and_whose = place.operator, is_ours(name)
        before, after = (
            measured(times[name], factors[place_and_whose]) for times, factors in zip((old, new), drifts, strict=True)
        )
        times = after / before
        to_eager = in_the_same_rounds[name] / in_the_same_rounds[eager] if eager is not None and name != eager else None
        if not relative:
            verdict = times.verdict
        else:
            verdict = to_eager.verdict if to_eager is not None else WITHIN
        yield Row(place, name, old[name], new[name], times, to_eager, verdict)


def _words(place: Place) -> str:
    return f"{place.operator} {place.case}, {place.pass_name}" + (f", {place.pool}" if place.pool else "")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], chosen: list[str]) -> list[str]:
    """What is not the same in the two files: machine, versions, commits, threads, selections."""
    found = [
        f"machine, {name}: {old['machine'].get(name)!r} and {new['machine'].get(name)!r}"
        for name in dict.fromkeys([*old["machine"], *new["machine"]])
        if old["machine"].get(name) != new["machine"].get(name)
    ]
    told: dict[str, list[str]] = {}
    for operator, before, after in _runs(old, new, chosen):
        for name in ("commit", "threads", "selection"):
            if before.get(name) != after.get(name):
                values = f"{name}: {_short(before.get(name))} and {_short(after.get(name))}"
                told.setdefault(values, []).append(operator)
        for name in dict.fromkeys([*before["versions"], *after["versions"]]):
            if before["versions"].get(name) != after["versions"].get(name):
                values = f"{name}: {before['versions'].get(name, 'none')} and {after['versions'].get(name, 'none')}"
                told.setdefault(values, []).append(operator)
    return found + [f"{values} ({', '.join(ops)})" for values, ops in told.items()]


def _short(value: Any) -> str:
    """A commit by its first twelve digits; a mark of changes behind it stays."""
    text = str(value)
    head, plus, rest = text.partition("+")
    return head[:12] + plus + rest if len(head) == 40 else text


def _runs(
    old: Mapping[str, Any], new: Mapping[str, Any], chosen: list[str]
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    before, after = parts(old), parts(new)
    for name in before:
        if name in after and (not chosen or name in chosen):
            yield name, before[name]["run"], after[name]["run"]


def _different_bandwidths(old: Mapping[str, Any], new: Mapping[str, Any], chosen: list[str]) -> list[str]:
    found = []
    for name, before, after in _runs(old, new, chosen):
        one, other = before["memory_copy_bandwidth"], after["memory_copy_bandwidth"]
        if max(one, other) > (1 + SAME_BANDWIDTH) * min(one, other):
            found.append(f"copying memory: {one / 1e9:.1f} and {other / 1e9:.1f} GB/s ({name})")
    return found


def _broken(old: Mapping[str, Any], new: Mapping[str, Any], chosen: list[str]) -> Iterator[str]:
    """Ours where it was timed in the old file and is refused in the new one: worse than any loss of speed."""
    before, after = parts(old), parts(new)
    for name in before:
        if name not in after or (chosen and name not in chosen):
            continue
        timed = {r.case.key for r in load_records(before[name]) if any("ours" in m.times for m in r.measurements)}
        for record in load_records(after[name]):
            if record.case.key in timed and "ours" in record.rejected:
                yield f"{name} {record.case.key}: ours is no longer timed: {record.rejected['ours']}"
