"""Jobs: processes that run beside each other until their time is over, and what came of each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu import record

# How long after its deadline a process may take to end by itself, its current test included.
GRACE = 15.0
POLL = 0.1
MOST_FAILURES_TOLD = 20


@dataclass(frozen=True)
class Job:
    """``command`` with ``{record}`` and ``{deadline}`` to be filled in; ``seconds`` bounds it, with the run's own end.

    ``after`` names the jobs that must have ended before. A job's outcomes are what it writes into its record; one
    that writes none is judged by its exit status, with ``statuses`` for the words of those that are no failure.
    """

    name: str
    command: tuple[str, ...]
    seconds: float = 1e9
    after: tuple[str, ...] = ()
    statuses: tuple[tuple[int, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass
class Result:
    """What came of a job. ``state``: ``passed``, ``failed``, ``unfinished`` (its time was over), or ``skipped``."""

    name: str
    state: str
    seconds: float
    status: int | None = None
    collected: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    skips: dict[str, int] = field(default_factory=dict)
    note: str = ""


def result_of(job: Job, status: int | None, killed: bool, seconds: float, path: Path, log: Path) -> Result:
    """A job's result, from its record, its exit status and whether it had to be ended."""
    result = Result(job.name, "passed", round(seconds, 1), status)
    lines = record.read(path)
    result.collected = sum(int(line["seconds"]) for line in lines if line["outcome"] == "collected")
    tests = [line for line in lines if line["outcome"] != "collected"]
    result.outcomes = dict(Counter(line["outcome"] for line in tests))
    result.skips = dict(Counter(line["message"] for line in tests if line["outcome"] == "skipped"))
    failures = [line for line in tests if line["outcome"] in ("failed", "error")]
    result.failures = [{"test": line["test"], "message": line["message"]} for line in failures]
    known = dict(job.statuses)
    ran = len({line["test"] for line in tests})
    if failures:
        result.state = "failed"
    elif killed or ran < result.collected or "the time is over" in result.skips:
        result.state, result.note = "unfinished", f"its time was over after {ran} of {result.collected} tests"
    elif status in known:
        result.state, result.note = "skipped", known[status]
    elif status != 0:
        result.state, result.note = "failed", tail(log)
    return result


def tail(path: Path, lines: int = 12) -> str:
    """The end of a log."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class Runner:
    """Runs jobs, ``workers`` at a time, in order; each that has ended is in ``summary.json`` at once."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        seconds: float,
        facts: dict[str, Any],
        say: Callable[[str], None] = print,
        grace: float = GRACE,
    ) -> None:
        self.folder, self.workers, self.facts, self.say, self.grace = folder, workers, facts, say, grace
        self.end = time.time() + seconds
        self.results: list[Result] = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Every job's result, in the order in which they ended; processes that are left are ended with this one."""
        waiting = list(jobs)
        running: list[_Process] = []
        try:
            while waiting or running:
                ended = {result.name for result in self.results}
                for job in list(waiting):
                    open_names = {other.name for other in (*waiting, *(process.job for process in running))}
                    if len(running) < self.workers and not open_names & set(job.after) - ended:
                        waiting.remove(job)
                        self._start(job, running)
                for process in list(running):
                    if process.ended():
                        running.remove(process)
                        self._keep(process.result())
                time.sleep(POLL)
        finally:
            for process in running:
                process.kill()
                self._keep(process.result())
        return self.results

    def _start(self, job: Job, running: list[_Process]) -> None:
        if time.time() > self.end:
            self._keep(Result(job.name, "unfinished", 0.0, note="not begun: the time was over"))
            return
        running.append(_Process(job, self.folder, min(self.end, time.time() + job.seconds), self.grace))

    def _keep(self, result: Result) -> None:
        self.results.append(result)
        counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(result.outcomes.items()))
        note = f": {result.note.splitlines()[-1]}" if result.note else ""
        self.say(f"{result.state:10} {result.name} [{result.seconds:.0f} s] {counts}{note}")
        for failure in result.failures[:MOST_FAILURES_TOLD]:
            self.say(f"           {failure['test']}\n             {failure['message'][:300]}")
        self.write()

    def write(self) -> None:
        """Puts the summary in its place, whole."""
        content = {**self.facts, "jobs": [asdict(result) for result in self.results]}
        temporary = self.folder / ".summary.json"
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.folder / "summary.json")


class _Process:
    def __init__(self, job: Job, folder: Path, deadline: float, grace: float) -> None:
        self.job, self.deadline, self.grace = job, deadline, grace
        self.record, self.log = folder / f"{job.name}.jsonl", folder / f"{job.name}.log"
        self.record.unlink(missing_ok=True)
        fill = {"record": str(self.record), "deadline": f"{deadline:.1f}", "junit": str(folder / f"{job.name}.xml")}
        self.began, self.killed = time.time(), False
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [word.format(**fill) for word in job.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **dict(job.environment)},
                start_new_session=True,
            )

    def ended(self) -> bool:
        if self.process.poll() is None and time.time() > self.deadline + self.grace:
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        """End the process and all that it has started."""
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def result(self) -> Result:
        seconds = time.time() - self.began
        return result_of(self.job, self.process.returncode, self.killed, seconds, self.record, self.log)
