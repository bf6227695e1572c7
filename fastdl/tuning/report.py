"""What the command prints: tables for people, and the same as JSON's types."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from fastdl.bench.cases import Benchmark, Case
from fastdl.bench.table import print_table
from fastdl.kernels.tuned import FIELDS

from . import backends, sizes, store
from .subjects import Plan

Listed = Sequence[tuple[str, str, Plan]]


def print_sizes(outcome: sizes.Outcome) -> None:
    """What was gained and where nothing was, and what came in between."""
    rows = [
        [
            result.op,
            result.plan.name,
            result.plan.key,
            _text(result.found.default),
            _text(result.found.best),
            f"{result.found.gain:.2f}",
            str(result.found.tried),
            str(sum(result.rejected.values())),
        ]
        for result in outcome.results
    ]
    if rows:
        header = ["op", "plan", "bucket", "default", "fastest", "times as fast", "tried", "refused"]
        print_table(header, rows, sys.stdout, plain=True)
    _print_end(len(outcome.results), "plans", outcome.skipped, outcome.stopped)
    for name, reason in outcome.failed.items():
        print(f"not measured: {name}: {reason}")


def sizes_document(outcome: sizes.Outcome) -> dict[str, Any]:
    return {
        "plans": [
            {
                "op": result.op,
                "case": result.case,
                "plan": result.plan.name,
                "bucket": result.plan.key,
                "pass": result.plan.pass_name,
                "kernels": list(result.plan.kernels),
                "fields": list(FIELDS[result.plan.name]),
                "default": list(result.found.default),
                "fastest": list(result.found.best),
                "gain": result.found.gain,
                "tried": result.found.tried,
                "refused": result.rejected,
                "complete": result.found.complete,
            }
            for result in outcome.results
        ],
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "stopped": outcome.stopped,
    }


def print_backends(outcome: backends.Outcome) -> None:
    """Each row of the table with how many times as fast as the usual backend the others were."""
    rows = [
        [
            choice.op,
            choice.row,
            choice.backend,
            choice.usual,
            ", ".join(f"{name} {ratio:.2f}" for name, ratio in choice.ratios.items() if name != choice.usual),
            str(choice.cases),
        ]
        for choice in outcome.choices
    ]
    if rows:
        header = ["op", "row", "taken", "usual", "times as fast as the usual", "cases"]
        print_table(header, rows, sys.stdout, plain=True)
    _print_end(len(outcome.choices), "rows", outcome.skipped, outcome.stopped)
    for name, reason in outcome.rejected.items():
        print(f"not timed: {name}: {reason}")


def backends_document(outcome: backends.Outcome) -> dict[str, Any]:
    return {
        "rows": [
            {
                "op": choice.op,
                "row": choice.row,
                "backend": choice.backend,
                "usual": choice.usual,
                "times_as_fast_as_usual": choice.ratios,
                "cases": choice.cases,
            }
            for choice in outcome.choices
        ],
        "skipped": outcome.skipped,
        "rejected": outcome.rejected,
        "stopped": outcome.stopped,
    }


def _print_end(done: int, noun: str, skipped: int, stopped: str) -> None:
    known = f"; {skipped} were stored already (--again measures them anew)" if skipped else ""
    print(f"{done} {noun} measured{known}.")
    if stopped:
        print(f"Stopped early: {stopped}. What is done is stored; the same command goes on from there.")


def print_plans(found: Listed) -> None:
    """Each plan with its bucket, its kernels and the first sizes that would be tried."""
    for op, case, plan in found:
        print(f"{op} {case}, {plan.pass_name}: {plan.name} ({plan.key})")
        print(f"  kernels: {', '.join(plan.kernels)}")
        print(f"  {', '.join(FIELDS[plan.name])}: {_text(plan.default)}")
        print(f"  tried first: {'; '.join(map(_text, plan.candidates))}")
    print(f"{len(found)} plans, {sum(len(plan.candidates) for _, _, plan in found)} first candidates.")


def plans_document(found: Listed) -> list[dict[str, Any]]:
    return [
        {
            "op": op,
            "case": case,
            "pass": plan.pass_name,
            "plan": plan.name,
            "bucket": plan.key,
            "kernels": list(plan.kernels),
            "fields": list(FIELDS[plan.name]),
            "default": list(plan.default),
            "candidates": [list(one) for one in plan.candidates],
        }
        for op, case, plan in found
    ]


def print_rows(
    chosen: Sequence[tuple[Benchmark, Sequence[Case]]], device: store.Device, kind: str
) -> list[dict[str, Any]]:
    """The rows of the table of backends that would be measured, with their contenders and cases."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for benchmark, cases in chosen:
        for case in cases:
            op, row = backends.row_of(benchmark, case, device)
            entry = rows.setdefault((op, row), {"op": op, "row": row, "backends": [], "cases": []})
            entry["backends"] = backends.contenders(op, kind, case.dtype)
            entry["cases"].append(f"{benchmark.name} {case.key}")
    for entry in rows.values():
        there = ", ".join(entry["backends"]) or "no backend is there"
        print(f"{entry['op']} {entry['row']}: {there}; {len(entry['cases'])} cases")
    return list(rows.values())


def show(devices: Sequence[store.Device]) -> int:
    """What is stored for each device, and whether it counts."""
    for device in devices:
        stored = store.load(device)
        print(f"{device.label}: {store.state(stored)}")
        content = stored.content or {}
        for name, buckets in sorted(content.get("sizes", {}).items()):
            for key, entry in sorted(buckets.items()):
                default = _text(entry["default"]) if isinstance(entry.get("default"), list) else "unknown"
                gain = entry.get("gain")
                told = f", {gain:.2f} times as fast" if isinstance(gain, (int, float)) else ""
                print(f"  {name} ({key}): {_text(entry['sizes'])}; the plan's own: {default}{told}")
        for op, rows in sorted(content.get("backends", {}).items()):
            for row, entry in sorted(rows.items()):
                print(f"  {op} {row}: {entry['backend']}")
    return 0


def _text(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
