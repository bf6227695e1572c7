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

    def step(self, number: int, case: Case, text: str) -> None:
        if self.live:
            self.stream.write(f"\r\x1b[K{self._head(number, case)}: {text} ...")
            self.stream.flush()

    def done(self, number: int, record: CaseRecord, taken: float) -> None:
        parts = [
            f"{'fwd' if m.pass_name == FORWARD else 'fwd+bwd'}{state_text(m.pool)} {ratio(speedup(m, 'eager'))} eager"
            for m in record.measurements
            if speedup(m, "eager") is not None
        ]
        parts += [f"{name} rejected" for name in record.rejected]
        start = "\r\x1b[K" if self.live else ""
        self.stream.write(f"{start}{self._head(number, record.case)}: {', '.join(parts)} [{taken:.0f} s]\n")
        self.stream.flush()

    def _head(self, number: int, case: Case) -> str:
        return f"[{number}/{self.total}] {case.label} {LAYOUT_LABELS[case.layout]} {case.dtype}"


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
    measure: Measure = measure,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measures the cases in order and keeps the file up to date; Ctrl-C or the time limit ends it early.

    Cases that ``earlier`` holds, of the same run before it was interrupted, are taken from there. No case is started
    that the slowest one so far would carry past ``time_limit`` seconds.
    """
    progress = progress or Progress(len(cases))
    outcome = Outcome(replace(run, cases_selected=len(cases)))
    begin, longest = clock(), 0.0
    known = {record.case.key: record for record in earlier}
    results.read(path)  # a file that is not ours must stop the run before it has cost anything
    for number, case in enumerate(cases, 1):
        if case.key in known:
            outcome.records.append(known[case.key])
            if number == len(cases):  # what was interrupted between its last case and its end
                results.save(path, machine, outcome.run, outcome.records, finished=True)
            continue
        started = clock()
        if time_limit is not None and started - begin + longest > time_limit:
            outcome.stopped = f"the time limit of {time_limit:.0f} s leaves {len(cases) - number + 1} cases unmeasured"
            break
        try:
            record = measure(benchmark, case, settings, partial(progress.step, number, case))
        except KeyboardInterrupt:
            outcome.stopped = f"interrupted after {number - 1} of {len(cases)} cases"
            outcome.interrupted = True
            break
        taken = clock() - started
        longest = max(longest, taken)
        record = replace(record, seconds=taken)
        outcome.records.append(record)
        outcome.run = replace(outcome.run, seconds=run.seconds + clock() - begin)
        progress.done(number, record, taken)
        results.save(path, machine, outcome.run, outcome.records, finished=number == len(cases))
    return outcome
