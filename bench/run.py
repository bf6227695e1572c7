"""One op's run: its cases one after the other, each written to disk when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from . import results
from .cases import LAYOUT_LABELS, Benchmark, Case
from .harness import Settings, measure
from .records import GRAPH, CaseRecord
from .summary import FORWARD, speedup
from .table import ratio
from .visits import merged

Measure = Callable[[Benchmark, Case, Settings, Callable[[str], None]], CaseRecord]
"""What measures one case; the last argument is told what is going on."""


@dataclass
class Outcome:
    """What a run came to: ``stopped`` says why it ended before its last case, or is empty."""

    run: results.Run
    records: list[CaseRecord] = field(default_factory=list)
    stopped: str = ""
    interrupted: bool = False


class Progress:
    """One line a case on ``stream``; on a terminal also what is going on within the case."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()

    def step(self, number: int, visit: int, case: Case, text: str) -> None:
        if self.live:
            self.stream.write(f"\r\x1b[K{self._head(number, visit, case)}: {text} ...")
            self.stream.flush()

    def done(self, number: int, visit: int, record: CaseRecord, taken: float) -> None:
        parts = [
            f"{'fwd' if m.pass_name == FORWARD else 'fwd+bwd'}{state_text(m.pool)} {ratio(speedup(m, 'eager'))} eager"
            for m in record.measurements
            if speedup(m, "eager") is not None
        ]
        parts += [f"{name} rejected" for name in record.rejected]
        start = "\r\x1b[K" if self.live else ""
        self.stream.write(f"{start}{self._head(number, visit, record.case)}: {', '.join(parts)} [{taken:.0f} s]\n")
        self.stream.flush()

    def _head(self, number: int, visit: int, case: Case) -> str:
        again = f", visit {visit}" if visit > 1 else ""
        return f"[{number}/{self.total}{again}] {case.label} {LAYOUT_LABELS[case.layout]} {case.dtype}"


def state_text(pool: str | None) -> str:
    """`` (pool on)``, `` (graph)``, or nothing."""
    return "" if pool is None else f" ({pool})" if pool == GRAPH else f" (pool {pool})"


def run_cases(
    benchmark: Benchmark,
    cases: Sequence[Case],
    settings: Settings,
    run: results.Run,
    *,
    path: Path,
    machine: dict[str, Any],
    time_limit: float | None = None,
    progress: Progress | None = None,
    earlier: Sequence[CaseRecord] = (),
    visits: int = 1,
    last: bool = True,
    measure: Measure = measure,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measures the cases in order, in so many visits, and keeps the file up to date; Ctrl-C or the time limit ends it.

    After these visits, unless they are the ``last``, the run stays unfinished in the file.

    Cases that ``earlier`` holds, of the same run before it was interrupted, are taken from there, with the visits they
    had. Nothing is started that the slowest case so far would carry past ``time_limit`` seconds.
    """
    progress = progress or Progress(len(cases))
    outcome = Outcome(replace(run, cases_selected=len(cases)))
    begin, longest = clock(), 0.0
    done = {record.case.key: record for record in earlier}
    results.read(path)  # a file that is not ours must stop the run before it has cost anything
    steps = [(visit, number, case) for visit in range(1, visits + 1) for number, case in enumerate(cases, 1)]
    missing = [step for step in steps if step[2].key not in done or done[step[2].key].visits < step[0]]

    def save(finished: bool) -> None:
        outcome.records = [done[case.key] for case in cases if case.key in done]
        results.save(path, machine, outcome.run, outcome.records, finished=finished)

    if not missing:  # what was interrupted between its last case and its end
        save(finished=last)
    for place, (visit, number, case) in enumerate(missing):
        started = clock()
        if time_limit is not None and started - begin + longest > time_limit:
            state = "unmeasured" if visit == 1 else f"with {visit - 1} of {visits} visits"
            count = sum(step[0] == visit for step in missing[place:])
            outcome.stopped = f"the time limit of {time_limit:.0f} s leaves {count} cases {state}"
            if visit > 1:
                save(finished=last)
            break
        try:
            record = measure(benchmark, case, settings, partial(progress.step, number, visit, case))
        except KeyboardInterrupt:
            what = "cases" if visits == 1 else "visits"
            outcome.stopped = f"interrupted after {len(steps) - len(missing) + place} of {len(steps)} {what}"
            outcome.interrupted = True
            break
        taken = clock() - started
        longest = max(longest, taken)
        record = replace(record, seconds=taken)
        done[case.key] = merged(done[case.key], record) if case.key in done else record
        outcome.run = replace(outcome.run, seconds=run.seconds + clock() - begin)
        progress.done(number, visit, record, taken)
        save(finished=last and place == len(missing) - 1)
    outcome.records = [done[case.key] for case in cases if case.key in done]
    return outcome
