"""How long a run will take, from the committed results of earlier ones.

A case's time is that of its measurements, which follows from the rounds in the results, and the rest: the check of each
contender, and the compilations. Of a case that was never measured it is what the op's, or else all ops', cases take.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Case
from .records import CaseRecord
from .results import ResultsError, load_records, read

# Where nothing was ever measured.
UNKNOWN = 8.0


@dataclass(frozen=True)
class Known:
    """What earlier results tell of one op: seconds of measuring by case and state of the pool, and of the rest."""

    measuring: dict[str, dict[str | None, float]]
    rest: float

    def seconds(self, case: Case, pools: Sequence[str | None]) -> float:
        known = self.measuring.get(case.key)
        if known is None:
            typical = [self._of(times, pools) for times in self.measuring.values()]
            return self.rest + statistics.fmean(typical)
        return self.rest + self._of(known, pools)

    @staticmethod
    def _of(times: Mapping[str | None, float], pools: Sequence[str | None]) -> float:
        # Without a pool, where the results have one: as long as with it on.
        asked = ["on" if pool is None and None not in times else pool for pool in pools]
        return sum(times.get(pool, 0.0) for pool in asked)


def known(parts: Iterable[dict[str, Any]]) -> Known | None:
    """From an op's parts of results files, the first of which has the say. None where there is no case."""
    measuring: dict[str, dict[str | None, float]] = {}
    rests = []
    for part in parts:
        records = load_records(part)
        spent = 0.0
        for record in records:
            times = measuring_seconds(record)
            spent += sum(times.values())
            measuring.setdefault(record.case.key, times)
        if records:
            rests.append(max(0.0, part["run"].get("seconds", 0.0) - spent) / len(records))
    return Known(measuring, rests[0]) if measuring else None


def measuring_seconds(record: CaseRecord) -> dict[str | None, float]:
    """Seconds that the rounds of a record took, by the state of the pool."""
    found: dict[str | None, float] = {}
    for m in record.measurements:
        contenders = [*m.times.values(), *m.parts.values()]
        spent = sum(spread.median * spread.rounds * spread.calls_per_round for spread in contenders)
        found[m.pool] = found.get(m.pool, 0.0) + spent
    return found


def from_folder(folder: Path, slug: str, operators: Iterable[str]) -> dict[str, Known]:
    """What the folder's files tell of these ops: this machine's first, then any other's of the same kind of device."""
    gpu = not slug.endswith(("-core", "-cores"))
    contents = []
    for path in sorted(folder.glob("*.json"), key=lambda path: (not path.stem.startswith(slug), path.name)):
        try:
            content = read(path)
        except ResultsError:
            continue
        if (content["machine"].get("device") == "cuda") == gpu:
            contents.append(content)
    found = {}
    for name in operators:
        told = known(content["operators"][name] for content in contents if name in content["operators"])
        if told is not None:
            found[name] = told
    return found


def seconds_of(
    operator: str, cases: Sequence[Case], pools: Sequence[str | None], table: Mapping[str, Known], effort_share: float
) -> float:
    """Seconds that an op's cases will take. ``effort_share`` is this run's effort over that of the earlier ones.

    Only the measuring scales with the effort. An op of which nothing is known takes what the others take a case.
    """
    if operator in table:
        rest = table[operator].rest
        return sum(rest + effort_share * (table[operator].seconds(case, pools) - rest) for case in cases)
    if not table:
        return UNKNOWN * len(cases)
    typical = []
    for entry in table.values():
        times = [Known._of(spent, pools) for spent in entry.measuring.values()]
        typical.append(entry.rest + effort_share * statistics.fmean(times))
    return statistics.fmean(typical) * len(cases)
