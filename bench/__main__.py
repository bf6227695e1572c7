"""The command: ``python -m bench group_norm``, ``fastdl bench``, ``python -m bench report``."""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import fastdl

from . import ceilings, choose, compare, estimate, machine, neighbours, peers, registry, report, results, training
from .cases import Benchmark, Case, select
from .gpu import GPU, GPU_QUICK
from .harness import Settings
from .options import (
    checked_device,
    completed,
    default_output_dir,
    make_parser,
    pool_states,
    selection,
    share_of_time,
    suffix,
    time_limit_of,
)
from .printing import heading, show
from .records import GRAPH, CaseRecord
from .resume import Earlier, earlier
from .run import Outcome, Progress, run_cases
from .timing import FULL, QUICK, Effort, timer_for
from .visits import VISITS, effort_of_one

INTERRUPTED = 130


def pictures_main(argv: list[str]) -> int:
    """Imported where it is asked for: it needs matplotlib."""
    from . import pictures

    return pictures.main(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "report": report.main,
    "pictures": pictures_main,
    "training": training.main,
    "neighbours": neighbours.main,
    "choose": choose.main,
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0; 1 where ours gave a wrong answer, became slower (``--compare``), or a results file cannot be used; 2 for a wrong
    option; 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.compare is not None:
        return compare.main(options.compare, options.operators)
    try:
        benchmarks = [registry.load(name) for name in registry.expanded(options.operators)]
        device = checked_device(options.device)
        completed(options, device)
        chosen = [
            (
                benchmark,
                select(
                    benchmark.cases_on(device.type), shapes=options.shapes, layout=options.layout, dtype=options.dtype
                ),
            )
            for benchmark in benchmarks
        ]
        if options.threads is not None and options.threads < 1:
            raise ValueError(f"--threads must be at least 1; got {options.threads}")
        if options.max_autotune and options.no_compile:
            raise ValueError("--max-autotune and --no-compile exclude each other; got both")
    except ValueError as error:
        parser.error(str(error))
    try:
        with threads(options.threads):
            return _run_all(options, device, chosen)
    except results.ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True)
class Planned:
    """An op that is to be measured: its cases, its circumstances, what is done, the seconds left of each visit."""

    benchmark: Benchmark
    cases: Sequence[Case]
    run: results.Run
    earlier: Earlier
    seconds: Sequence[float]


def _run_all(
    options: argparse.Namespace, device: torch.device, chosen: Sequence[tuple[Benchmark, Sequence[Case]]]
) -> int:
    began = time.monotonic()
    timer = timer_for(device)
    path = (options.output_dir or default_output_dir()) / f"{machine.slug(device)}{suffix(options, device)}.json"
    results.read(path)
    pools = pool_states(options.pool, device)
    load = machine.load_average()
    if load is not None and load > machine.cores() / 2:
        print(f"bench: the load average is {load:.1f} on {machine.cores()} cores: others' work will disturb the times.",
              file=sys.stderr)  # fmt: skip
    print(f"Measuring the ceilings of {machine.describe(device)['name']} ...", file=sys.stderr, flush=True)
    bandwidth = ceilings.memory_copy_bandwidth(device, timer)
    dtypes = dict.fromkeys(case.dtype for _, cases in chosen for case in cases)
    rates = {name: ceilings.matrix_rate(device, getattr(torch, name), timer) for name in dtypes}
    plans = _plans(options, device, chosen, path, pools, bandwidth, rates, load)
    limit = time_limit_of(options, device)
    _announce(plans, limit, visits_of(options, device))
    return _visit_all(options, device, plans, path, pools, limit, began)


def _visit_all(
    options: argparse.Namespace,
    device: torch.device,
    plans: Sequence[Planned],
    path: Path,
    pools: tuple[str | None, ...],
    limit: float | None,
    began: float,
) -> int:
    """Every op's first visits, then every op's second ones, so that as much time as there is lies between them."""
    status = 0
    visits = visits_of(options, device)
    effort = effort_of_one(effort_for(device, quick=options.shapes == "quick"), visits)
    outcomes = [Outcome(plan.earlier.run or plan.run, plan.earlier.records) for plan in plans]
    for visit, number in itertools.product(range(1, visits + 1), range(len(plans))):
        plan, before, last = plans[number], outcomes[number], visit == visits
        remaining = None if limit is None else limit - (time.monotonic() - began)
        expected = [rest.seconds[visit - 1] for rest in plans[number:]]
        expected += [seconds for rest in plans for seconds in rest.seconds[visit:]]
        # A run that is taken up again keeps the rates by which its first cases' floors were reckoned.
        settings = Settings(
            device=device,
            effort=effort,
            compile=not options.no_compile,
            autotune=options.max_autotune,
            pools=pools,
            matrix_rates={**plan.run.matrix_rates, **before.run.matrix_rates},
        )
        if last:
            print(heading(plan.benchmark, device, before.run, pools))
        else:
            print(f"{plan.benchmark.name}, visit {visit} of {visits}", file=sys.stderr)
        outcomes[number] = run_cases(
            plan.benchmark, plan.cases, settings, before.run, path=path, machine=machine.describe(device),
            time_limit=None if remaining is None else share_of_time(remaining, expected),
            progress=Progress(len(plan.cases)), earlier=before.records, visits=visit, last=last,
        )  # fmt: skip
        if last or outcomes[number].interrupted:
            show(outcomes[number], path)
        if _ours_is_wrong(outcomes[number].records):
            status = 1
        if outcomes[number].interrupted:
            return INTERRUPTED
    return status


def visits_of(options: argparse.Namespace, device: torch.device) -> int:
    """How many times each case is measured, minutes apart."""
    return VISITS if device.type == "cpu" and options.shapes != "quick" else 1


def _ours_is_wrong(records: Sequence[CaseRecord]) -> bool:
    return any("ours" in record.rejected for record in records)


def _plans(
    options: argparse.Namespace,
    device: torch.device,
    chosen: Sequence[tuple[Benchmark, Sequence[Case]]],
    path: Path,
    pools: tuple[str | None, ...],
    bandwidth: float,
    rates: dict[str, float],
    load: float | None,
) -> list[Planned]:
    """The ops that are still to be measured, each with what an interrupted run has left of it."""
    content = results.read(path)
    effort = effort_for(device, quick=options.shapes == "quick")
    effort_share = effort.seconds / effort_for(device, quick=False).seconds
    committed = machine.BENCH / "results"
    table = estimate.from_folder(committed, machine.slug(device), [benchmark.name for benchmark, _ in chosen])
    states = (*pools, GRAPH) if device.type == "cuda" else pools
    pool = fastdl.cpu_pool()
    plans = []
    for benchmark, cases in chosen:
        run = results.Run(
            operator=benchmark.name,
            title=benchmark.title,
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            commit=machine.commit(),
            versions=machine.versions(),
            threads=torch.get_num_threads(),
            selection=selection(options),
            memory_copy_bandwidth=bandwidth,
            matrix_rates=rates,
            overhead_size=benchmark.overhead_size,
            load_average_before=load,
            cpu_pool_limit_bytes=pool.limit if pools != (None,) else None,
            not_installed=peers.not_installed(benchmark.peers, device.type),
            tuned=machine.is_tuned(device),
        )
        found = earlier(content, run, cases) if options.resume else Earlier()
        if found.note:
            print(f"bench: {found.note}", file=sys.stderr)
        if found.finished:
            continue
        done = {record.case.key: record.visits for record in found.records}
        visits = visits_of(options, device)
        left = [[case for case in cases if done.get(case.key, 0) < visit] for visit in range(1, visits + 1)]
        seconds = [estimate.seconds_of(benchmark.name, one, states, table, effort_share) / visits for one in left]
        plans.append(Planned(benchmark, cases, run, found, seconds))
    return plans


def _announce(plans: Sequence[Planned], limit: float | None, visits: int) -> None:
    """How long it will take, before it does."""
    if not plans:
        print("bench: nothing is left to measure.", file=sys.stderr)
        return
    count = sum(len(plan.cases) - sum(record.visits >= visits for record in plan.earlier.records) for plan in plans)
    text = f"bench: {count} cases, about {minutes(sum(sum(plan.seconds) for plan in plans))} by earlier results"
    text += f"; ends within {minutes(limit)}" if limit is not None else ""
    print(
        text + ": " + ", ".join(f"{plan.benchmark.name} {minutes(sum(plan.seconds))}" for plan in plans),
        file=sys.stderr,
    )


def minutes(seconds: float) -> str:
    """``45 s``, ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def effort_for(device: torch.device, *, quick: bool) -> Effort:
    if device.type == "cuda":
        return GPU_QUICK if quick else GPU
    return QUICK if quick else FULL


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """That many CPU threads in a block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    sys.exit(main())
