"""What a run prints: the machine and its ceilings above, the tables, and what was not timed and why below."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fastdl.ops import dispatch

from . import drift, machine, results, table
from .cases import LAYOUT_LABELS, Benchmark
from .run import Outcome
from .summary import added_to_parts, call_overhead, summarise


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
    if run.tuned:
        lines.append("with what fastdl tune has stored on this machine (FASTDL_TUNED=0 measures what is shipped)")
    if run.not_installed:
        lines.append(f"not installed: {', '.join(run.not_installed)}")
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
    between = drift.sentence(outcome.records)
    if between:
        print(between)
    for added in added_to_parts(outcome.records):
        print(
            f"added to the {added.part} alone, {LAYOUT_LABELS[added.layout]} {added.dtype}, {added.pass_name}: "
            f"{added.contender} {added.median:+.1%} (most {added.most:+.1%})"
        )
    for record in outcome.records:
        for name, reason in record.rejected.items():
            print(f"not timed: {name} at {record.case.key}: {reason}")
        slowed = record.clocks.get("after", {}).get("slowed_by")
        if slowed:
            print(f"slowed down: the GPU at {record.case.key}: {', '.join(slowed)}")
    if outcome.stopped:
        print(f"Stopped early: {outcome.stopped}. The same command with --resume goes on from there.")
    if outcome.records:
        print(f"Results: {path}" + (' (under "unfinished")' if outcome.stopped else ""))
    sys.stdout.flush()
