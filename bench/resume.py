"""``--resume``: what an earlier run has done already, and whether it may be taken as part of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from . import results
from .cases import Case
from .records import CaseRecord

# What must be the same for two halves to be one run.
CIRCUMSTANCES = ("commit", "versions", "threads", "selection")


@dataclass(frozen=True)
class Earlier:
    """What can be taken over of one op.

    ``finished``: nothing is left to do. Else ``records`` are the cases that are done, and ``run`` the circumstances
    under which they were. ``note`` is for the reader: what is taken over, or why nothing is.
    """

    finished: bool = False
    records: list[CaseRecord] = field(default_factory=list)
    run: results.Run | None = None
    note: str = ""


def earlier(content: Mapping[str, Any], run: results.Run, cases: Sequence[Case]) -> Earlier:
    """What a results file holds of this run: its finished part, or the cases of its unfinished one.

    Raises ResultsError for an unfinished part of an unknown form.
    """
    wanted = {case.key for case in cases}
    reasons = []
    for section in ("unfinished", "operators"):
        part = content[section].get(run.operator)
        if part is None:
            continue
        reason = difference(part["run"], run)
        records = [] if reason else [record for record in results.load_records(part) if record.case.key in wanted]
        whole = {record.case.key for record in records} == wanted
        if reason:
            reasons.append(reason)
        elif whole and section == "operators":
            return Earlier(True, records, None, f"{run.operator}: measured on {part['run']['date']}{doubt(run)}")
        elif section == "unfinished" and records:
            note = f"{run.operator}: {len(records)} of {len(cases)} cases were measured on {part['run']['date']}"
            return Earlier(False, records, continued(part["run"], run), note + doubt(run))
    return Earlier(note=f"{run.operator}: measured anew, since {reasons[0]}" if reasons else "")


def difference(before: Mapping[str, Any], run: results.Run) -> str:
    """What keeps an earlier run from being the same one, or nothing."""
    for name in CIRCUMSTANCES:
        if before.get(name) != getattr(run, name):
            return f"what there is has {name} {before.get(name)!r} and not {getattr(run, name)!r}"
    return ""


def doubt(run: results.Run) -> str:
    """A commit with changes on top of it, or none at all, does not tell whether the code is still the same."""
    return "; whether the code has changed since cannot be told" if not run.commit or "+" in run.commit else ""


def continued(before: Mapping[str, Any], run: results.Run) -> results.Run:
    """The earlier run with this one as its continuation: its date, seconds and rates stay."""
    names = {one.name for one in fields(results.Run)}
    old = results.Run(**{name: value for name, value in before.items() if name in names})
    told = {
        "date": run.date,
        "memory_copy_bandwidth": run.memory_copy_bandwidth,
        "load_average_before": run.load_average_before,
    }
    return replace(old, overhead_size=tuple(old.overhead_size), continued=[*old.continued, told])
