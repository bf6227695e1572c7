"""How far one run's visits to its cases lie apart: what a time is good for beyond its own minute.

The quartiles of a case tell how its rounds differ within seconds. What changes within minutes (clocks, neighbours on
the same processor, pages that are cheap or dear to get) moves all the rounds of a visit together. Two visits to one
case say little of it; those to all cases of an op say how far it goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .records import CaseRecord, is_ours
from .timing import Spread

# So large a share of the times lies no further apart than is told.
SHARE = 0.95


def factor(spreads: Iterable[Spread]) -> float:
    """The factor that `SHARE` of the medians of two visits to a case are within; 1 where nothing was visited twice."""
    found = sorted(spread.between_visits for spread in spreads if spread.between_visits is not None)
    return found[math.ceil(SHARE * len(found)) - 1] if found else 1.0


def of_records(records: Sequence[CaseRecord], *, ours: bool) -> float:
    """That of all times of fastdl in these records, or of all the others'."""
    return factor(
        spread
        for record in records
        for m in record.measurements
        for name, spread in m.times.items()
        if is_ours(name) == ours
    )


def sentence(records: Sequence[CaseRecord]) -> str:
    """What the reader is told of it, or nothing where no case was visited twice."""
    if all(record.visits < 2 for record in records):
        return ""
    ours, others = (of_records(records, ours=ours) - 1 for ours in (True, False))
    return (
        f"Between two visits to a case, minutes apart, {SHARE:.0%} of fastdl's times moved by at most {ours:.0%}, "
        f"of the others' by at most {others:.0%}."
    )
