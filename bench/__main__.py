"""The command: ``python -m bench group_norm``, ``fastdl bench``, ``python -m bench report``."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import fastdl
from fastdl.ops import dispatch

from . import ceilings, choose, machine, neighbours, registry, report, results, table, training
from .cases import LAYOUT_LABELS, Benchmark, Case, select
from .gpu import GPU, GPU_QUICK, TIME_LIMIT
from .harness import Settings
from .run import Outcome, Progress, run_cases
from .summary import added_to_parts, call_overhead, summarise
from .timing import FULL, QUICK, Effort, timer_for

POOLS = {"on": ("on",), "off": ("off",), "both": ("on", "off")}
INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times fastdl's ops beside eager torch, torch.compile and other packages, and beside the machine's "
        "own limit. Results are printed, and kept as JSON.",
        epilog="`python -m bench training` times whole steps of a network, `python -m bench neighbours` what fusing an "
        "op's neighbours could bring. `python -m bench report` writes the "
        "measured tables into the texts, `python -m bench choose` the table of what `auto` takes on a GPU (see their "
        "`--help`).",
    )
    parser.add_argument(
        "operators",
        nargs="*",
        metavar="OP",
        help=f"{', '.join(registry.names())}, or norms for the four norms; all if none is named",
    )
    parser.add_argument(
        "--shapes", choices=("full", "quick"), default="full", help="every shape, or a few that take a minute"
    )
    parser.add_argument(
        "--layout", choices=(*LAYOUT_LABELS, "both"), default="both",
        help="memory layout: nchw or channels_last for images, separate or packed for attention",
    )  # fmt: skip
    parser.add_argument("--dtype", default="all", help="float32, bfloat16, ... or all (default)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given")
    parser.add_argument(
        "--pool", choices=tuple(POOLS), default="both", help="the CPU output pool; both: large cases with and without"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out, which takes most of the time"
    )
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS",
        help=f"start no case that would end after this; {TIME_LIMIT:.0f} on a GPU if not given",
    )  # fmt: skip
    parser.add_argument("--output-dir", type=Path, default=None, help="where the JSON goes; bench/results if not given")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0; 1 where ours gave a wrong answer or a results file cannot be used; 2 for a wrong option; 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["report"]:
        return report.main(arguments[1:])
    if arguments[:1] == ["training"]:
        return training.main(arguments[1:])
    if arguments[:1] == ["neighbours"]:
        return neighbours.main(arguments[1:])
    if arguments[:1] == ["choose"]:
        return choose.main(arguments[1:])
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        benchmarks = [registry.load(name) for name in registry.expanded(options.operators)]
        device = checked_device(options.device)
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
    except ValueError as error:
        parser.error(str(error))
    try:
        with threads(options.threads):
            return _run_all(options, device, chosen)
    except results.ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


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
    settings = Settings(
        device=device,
        effort=effort_for(device, quick=options.shapes == "quick"),
        compile=not options.no_compile,
        pools=pools,
        matrix_rates=rates,
    )
    status = 0
    limit = time_limit_of(options, device)
    for number, (benchmark, cases) in enumerate(chosen):
        share = None if limit is None else share_of_time(limit - (time.monotonic() - began), len(chosen) - number)
        pool = fastdl.cpu_pool()
        run = results.Run(
            operator=benchmark.name,
            title=benchmark.title,
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            commit=machine.commit(),
            versions=machine.versions(),
            threads=torch.get_num_threads(),
            selection={name: getattr(options, name) for name in ("shapes", "layout", "dtype", "pool")},
            memory_copy_bandwidth=bandwidth,
            matrix_rates=rates,
            overhead_size=benchmark.overhead_size,
            load_average_before=load,
            cpu_pool_limit_bytes=pool.limit if pools != (None,) else None,
        )
        print(heading(benchmark, device, run, pools))
        outcome = run_cases(
            benchmark, cases, settings, run,
            path=path, machine=machine.describe(device), time_limit=share, progress=Progress(len(cases)),
        )  # fmt: skip
        show(outcome, path)
        if any("ours" in record.rejected for record in outcome.records):
            status = 1
        if outcome.interrupted:
            return INTERRUPTED
    return status


def effort_for(device: torch.device, *, quick: bool) -> Effort:
    if device.type == "cuda":
        return GPU_QUICK if quick else GPU
    return QUICK if quick else FULL


def time_limit_of(options: argparse.Namespace, device: torch.device) -> float | None:
    """Seconds for the whole command, or None where there is no limit."""
    if options.time_limit is not None:
        return float(options.time_limit)
    return TIME_LIMIT if device.type == "cuda" else None


def share_of_time(remaining: float, ops: int) -> float:
    """What the next of so many ops may take: what one leaves over is the others'."""
    return max(0.0, remaining) / ops


def checked_device(name: str) -> torch.device:
    """The device; raises ValueError for one that is unknown or not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu, cuda or cuda:N; got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def pool_states(option: str, device: torch.device) -> tuple[str | None, ...]:
    """The states of the CPU output pool to measure; (None,) on a GPU and without the native library: no pool there."""
    if device.type != "cpu" or dispatch.choose("group_norm", dispatch.requested(), "cpu", torch.float32) != "cpu":
        return (None,)
    return POOLS[option]


def default_output_dir() -> Path:
    """``bench/results`` of the checkout, or of the current folder where the package is installed."""
    in_checkout = (machine.CHECKOUT / "pyproject.toml").is_file()
    return (machine.BENCH if in_checkout else Path("bench")) / "results"


def suffix(options: argparse.Namespace, device: torch.device) -> str:
    """What tells this run's file from that of a full run: a narrower one must not take a full one's place."""
    parts = []
    if options.shapes != "full":
        parts.append(options.shapes)
    if options.layout != "both":
        parts.append(options.layout.replace("_", "-"))
    if options.dtype != "all":
        parts.append(options.dtype)
    if options.pool != "both" and device.type == "cpu":
        parts.append(f"pool-{options.pool}")
    if options.no_compile:
        parts.append("no-compile")
    if options.threads is not None:
        parts.append(f"{options.threads}-thread{'' if options.threads == 1 else 's'}")
    if dispatch.requested() != "auto":
        parts.append(dispatch.requested())
    return "".join(f"-{part}" for part in parts)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """That many CPU threads in a block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def heading(benchmark: Benchmark, device: torch.device, run: results.Run, pools: tuple[str | None, ...]) -> str:
    """What stands above the table: machine, software, ceilings."""
    request = dispatch.requested()
    backend = dispatch.choose(benchmark.serving_op, request, device.type, torch.float32)
    described = machine.describe(device)
    place = str(described["name"])
    if device.type == "cpu":
        place += f", {run.threads} thread{'' if run.threads == 1 else 's'}, {described['instructions']}"
    rates = ", ".join(f"{name} products {rate / 1e9:.0f} GFLOP/s" for name, rate in run.matrix_rates.items())
    lines = [
        f"\n{benchmark.title}: {place}; torch {run.versions['torch']}; ours on backend {backend!r}",
        f"measured here: copying memory {run.memory_copy_bandwidth / 1e9:.1f} GB/s, {rates}",
    ]
    if pools == (None,) and device.type == "cpu":
        lines.append(
            f"no output pool: ours runs on {backend!r} ({dispatch.status('cpu').reason or 'asked for by name'})"
        )
    return "\n".join(lines)


def show(outcome: Outcome, path: Path) -> None:
    """Prints the table, what was left out and why, the means, and where the JSON lies."""
    rows = [row for record in outcome.records for row in table.case_rows(record)]
    if rows:
        table.print_table(table.HEADER, rows, sys.stdout)
        print("other: the fastest of the rest; floor: least bytes at the speed of a copy in the same rounds; "
              "saved: bytes kept\nfor backward, ours to eager; ±: interquartile range of ours.\n")  # fmt: skip
        table.print_table(table.SUMMARY_HEADER, table.summary_rows(summarise(outcome.records)), sys.stdout)
    by_backend = table.backend_rows(outcome.records)
    if by_backend:
        print("Ours, by backend:")
        table.print_table(table.BACKEND_HEADER, by_backend, sys.stdout)
    for record, measurement, taken in call_overhead(outcome.records, outcome.run.overhead_size):
        print(
            f"call overhead at {record.case.label} {LAYOUT_LABELS[record.case.layout]}, {measurement.pass_name}: "
            f"{taken * 1e6:+.1f} microseconds over eager"
        )
    for added in added_to_parts(outcome.records):
        print(
            f"added to the {added.part} alone, {LAYOUT_LABELS[added.layout]} {added.dtype}, {added.pass_name}: "
            f"{added.contender} {added.median:+.1%} (most {added.most:+.1%})"
        )
    for record in outcome.records:
        for name, reason in record.rejected.items():
            print(f"not timed: {name} at {record.case.key}: {reason}")
    if outcome.stopped:
        print(f"Stopped early: {outcome.stopped}.")
    if outcome.records:
        print(f"Results: {path}" + (' (under "unfinished")' if outcome.stopped else ""))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
