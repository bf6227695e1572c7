"""Cases that are measured in several visits, minutes apart, so that the spread tells what the machine does meanwhile.

Rounds of one visit lie within seconds. On a virtual machine the speed of memory changes within minutes, which they do
not see: of two runs one after the other, a third of the times were further apart than the quartiles of either.
"""

from __future__ import annotations

import math
from dataclasses import replace

from .records import CaseRecord, Measurement
from .timing import Effort, Spread

VISITS = 2


def effort_of_one(effort: Effort, visits: int) -> Effort:
    """The effort of each of so many visits, which together take as long as one that makes all of it."""
    return replace(effort, seconds=effort.seconds / visits, least_rounds=math.ceil(effort.least_rounds / visits))


def merged(first: CaseRecord, second: CaseRecord) -> CaseRecord:
    """What two visits to a case say of it. A contender that either has rejected is not among the times."""
    rejected = {**first.rejected, **second.rejected}
    later = {(m.pass_name, m.pool): m for m in second.measurements}
    measurements = (
        _merged_measurement(m, later[m.pass_name, m.pool]) if (m.pass_name, m.pool) in later else m
        for m in first.measurements
    )
    return replace(
        second,
        visits=first.visits + second.visits,
        seconds=first.seconds + second.seconds,
        rejected=rejected,
        measurements=tuple(measurements),
        peak_bytes={
            name: max(first.peak_bytes.get(name, 0), second.peak_bytes.get(name, 0))
            for name in {**first.peak_bytes, **second.peak_bytes}
        },
    )


def merged_spread(first: Spread, second: Spread) -> Spread:
    """The middle of both medians, between the quartiles of both that are furthest apart."""
    rounds = first.rounds + second.rounds
    calls = (first.rounds * first.calls_per_round + second.rounds * second.calls_per_round) / rounds
    return Spread(
        math.sqrt(first.median * second.median),
        min(first.lower_quartile, second.lower_quartile),
        max(first.upper_quartile, second.upper_quartile),
        rounds,
        max(1, round(calls)),
        max(first.median, second.median) / min(first.median, second.median),
    )


def _merged_measurement(first: Measurement, second: Measurement) -> Measurement:
    return replace(
        first,
        times=_merged_times(first.times, second.times),
        parts=_merged_times(first.parts, second.parts),
        copy_bandwidth=math.sqrt(first.copy_bandwidth * second.copy_bandwidth),
        floor=math.sqrt(first.floor * second.floor),
    )


def _merged_times(first: dict[str, Spread], second: dict[str, Spread]) -> dict[str, Spread]:
    return {name: merged_spread(first[name], second[name]) for name in first if name in second}
