"""``python -m tests.aot``: compile everything that ships, write ``docs/kernels.md``, and say what goes past a limit.

``--check`` writes nothing and tells whether the document is up to date. A document that was made by other versions of
Triton or nvcc than those at hand can be neither confirmed nor refuted: that part is said to be unchecked.
Exit status: 0, 1 where a limit is not kept or the document is out of date, 2 where this machine lacks a compiler.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor

import fastdl  # noqa: F401  (finds kernels/ in a checkout)

from . import table
from .jobs import CUDA, TRITON, Job, Outcome, jobs, obstacle, run, versions


def measure_all(selected: Iterable[Job], workers: int) -> dict[Job, Outcome]:
    """Every job's outcome."""
    if workers == 1:
        return {job: run(job) for job in selected}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {job: pool.submit(run, job) for job in selected}
        return {job: future.result() for job, future in waiting.items()}


def assemble(outcomes: dict[Job, Outcome]) -> list[table.Section]:
    """The document's sections, from what was measured."""
    sections = []
    for language in (TRITON, CUDA):
        mine = {job: outcome for job, outcome in outcomes.items() if job.language == language}
        if not mine:
            continue
        subjects: dict[str, table.Cells] = {}
        for job in sorted(mine, key=lambda job: (job.subject, job.architecture)):
            rows = subjects.setdefault(job.subject, {})
            for name, cells in mine[job].cells.items():
                rows.setdefault(name, {})[job.architecture] = cells
        with_kernels = {subject: rows for subject, rows in subjects.items() if rows}
        sections.append(table.Section(language, versions(language), with_kernels))
    return sections


def check(outcomes: dict[Job, Outcome], language: str) -> list[str]:
    """What of this language's section is out of date, in words."""
    text = table.DOCUMENT.read_text(encoding="utf-8") if table.DOCUMENT.is_file() else ""
    written = table.parse(text).get(language)
    if written is not None and written.version != versions(language):
        print(f"{language}: unchecked, written with {written.version}, here is {versions(language)}")
        return []
    mine = {job: outcome for job, outcome in outcomes.items() if job.language == language}
    found = [
        sentence
        for job, outcome in mine.items()
        for sentence in table.differences(language, job.architecture, outcome.cells, text)
    ]
    if not found and written is not None and table.render([written]) != table.render(assemble(mine)):
        found.append(f"{language}: the rows are right, but there are others too, or in another order")
    if not found and not text.startswith(table.INTRODUCTION):
        found.append(f"{language}: the text before the tables is another")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.aot", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; tell whether the document is up to date")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many processes compile")
    options = parser.parse_args(arguments)

    everything = jobs()
    reasons = {language: reason for language in (TRITON, CUDA) if (reason := _reason(everything, language))}
    for language, reason in reasons.items():
        print(f"{language}: {reason}", file=sys.stderr)
    if reasons and not options.check:
        print("the document needs both: nothing was written", file=sys.stderr)
        return 2
    outcomes = measure_all([job for job in everything if job.language not in reasons], options.workers)

    wrong = [sentence for outcome in outcomes.values() for sentence in outcome.wrong]
    if options.check:
        wrong += [
            sentence for language in (TRITON, CUDA) if language not in reasons for sentence in check(outcomes, language)
        ]
    else:
        table.DOCUMENT.write_text(table.render(assemble(outcomes)), encoding="utf-8")
        print(f"wrote {table.DOCUMENT}")
    print("\n".join(wrong) if wrong else "every limit is kept")
    return 1 if wrong else 0


def _reason(everything: list[Job], language: str) -> str:
    mine = [job for job in everything if job.language == language]
    if not mine:
        return "there is nothing to compile, or Triton cannot be imported or runs its interpreter"
    return next((reason for job in mine if (reason := obstacle(job))), "")


if __name__ == "__main__":
    sys.exit(main())
