"""``fastdl tune``: measures here which sizes of kernels and which backends are the fastest, and stores it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from fastdl.bench import machine, registry
from fastdl.bench.cases import DTYPES, Benchmark, Case, select
from fastdl.bench.gpu import GPU, GPU_QUICK
from fastdl.bench.operands import Operands, count_sets, make_operands
from fastdl.bench.timing import FULL, QUICK, timer_for
from fastdl.ops import dispatch

from . import backends, report, sizes, store
from .subjects import imagined_gpu, imagined_operands, plans_of

STOPPED, NO_GPU, INTERRUPTED = 1, 3, 130
TIME_LIMIT = 600.0
Chosen = list[tuple[Benchmark, tuple[Case, ...]]]


def main(words: Sequence[str]) -> int:
    """Runs the command and returns its status.

    0; 1 where it was stopped before its end, or something could not be measured; 3 where there is no GPU for what needs
    one; 130 if interrupted. Raises ValueError for a wrong option, an op without a benchmark, or a file that is in use
    by nothing.
    """
    parser = make_parser()
    options = parser.parse_args(list(words))
    if options.show or options.clear:
        kinds = [options.device] if options.device else [store.CPU, "cuda"]
        devices = [device for device in map(store.device_of, kinds) if device is not None]
        return (report.show if options.show else _clear)(devices)
    kind = options.device or ("cpu" if options.backends and not torch.cuda.is_available() else "cuda")
    if kind == store.CPU and not options.backends:
        raise ValueError("the sizes of kernels are tuned on a GPU; --device cpu takes --backends")
    if options.time_limit <= 0:
        raise ValueError(f"--time-limit must be more than 0 seconds; got {options.time_limit:g}")
    chosen = chosen_cases(options.op, kind, options.shapes, options.dtype)
    if options.dry_run:
        return _dry_run(chosen, kind, options.backends)
    device = store.device_of(kind)
    if device is None:
        print(_no_gpu(), file=sys.stderr)
        return NO_GPU
    if not store.is_on():
        say(f"{store.SWITCH}=0 is set: what is stored now will not be used until it is taken away")
    load = machine.load_average()
    if load is not None and load > machine.cores() / 2:
        say(f"the load average is {load:.1f} on {machine.cores()} cores: others' work will disturb the times")
    tune = _tune_backends if options.backends else _tune_sizes
    return tune(chosen, device, kind, options)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdl tune",
        description="Measures on this machine which sizes of the Triton kernels, or which backends, are the fastest, "
        "and stores what gains more than 2 %. Nothing is tuned by itself.",
        epilog="docs/tuning.md tells how it works and what is stored.",
    )
    parser.add_argument(
        "op", nargs="*", metavar="OP", help=f"{', '.join(registry.in_order())}, or norms (default: all)"
    )
    parser.add_argument("--backends", action="store_true", help="which backend `auto` takes, instead of kernels' sizes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda; cpu takes --backends")
    parser.add_argument(
        "--shapes", choices=("quick", "default", "full"), default="default", help="the benchmark's cases"
    )
    parser.add_argument("--dtype", choices=("all", *DTYPES), default="all", help="only cases of this dtype")
    parser.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT, metavar="S", help=f"seconds in all (default: {TIME_LIMIT:.0f})"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what is stored already")
    parser.add_argument("--dry-run", action="store_true", help="list what would be tried, and measure nothing")
    parser.add_argument("--show", action="store_true", help="print what is stored, and measure nothing")
    parser.add_argument("--clear", action="store_true", help="remove what is stored (of --device, or of all)")
    return parser


def say(text: str) -> None:
    print(f"tune: {text}", file=sys.stderr, flush=True)


def chosen_cases(ops: list[str], kind: str, shapes: str, dtype: str) -> Chosen:
    """The cases of each benchmark; raises ValueError where no op has a case of these shapes and dtype."""
    chosen: Chosen = []
    complaint: ValueError | None = None
    for name in registry.expanded(ops):
        benchmark = registry.load(name)
        try:
            cases = select(benchmark.cases_on(kind), shapes=shapes, dtype=dtype)
        except ValueError as error:
            complaint = ValueError(f"{name}: {error}")
            continue
        # Triton's kernels serve no float64.
        served = tuple(case for case in cases if kind == store.CPU or case.dtype != "float64")
        chosen += [(benchmark, served)] if served else []
    if not chosen:
        raise complaint or ValueError("no case is left")
    return chosen


def _no_gpu() -> str:
    if torch.cuda.is_available():
        return (
            "fastdl tune: GPUs of different kinds are visible, and sizes are stored for one kind: choose one with "
            "CUDA_VISIBLE_DEVICES"
        )
    return (
        "fastdl tune: torch sees no CUDA GPU here, and kernels are timed on one. `--dry-run` lists what would be "
        "tried; `--backends --device cpu` measures the CPU's backends."
    )


def _real(kind: str, sets: int | None = None) -> Callable[[Benchmark, Case], Operands]:
    device = torch.device(kind)

    def operands(benchmark: Benchmark, case: Case) -> Operands:
        number = sets or count_sets(case.tensor_bytes, device, torch.get_num_threads())
        return make_operands(benchmark, case, device, number)

    return operands


def _tune_sizes(chosen: Chosen, device: store.Device, kind: str, options: argparse.Namespace) -> int:
    status = dispatch.status("triton")
    if not status.available:
        raise ValueError(f"the sizes of Triton's kernels are tuned, and {status.reason}")
    from fastdl.kernels import tuned

    work = sizes.Work(
        device, timer_for(torch.device(kind)), _real(kind), say, options.time_limit, options.again
    )  # fmt: skip
    outcome = sizes.tune(chosen, work)
    tuned.forget()
    report.print_sizes(outcome)
    _print_json({"device": device.label, "file": _path(device), **report.sizes_document(outcome)})
    return _status(outcome.interrupted, outcome.stopped or " ".join(outcome.failed))


def _tune_backends(chosen: Chosen, device: store.Device, kind: str, options: argparse.Namespace) -> int:
    quick = options.shapes == "quick"
    effort = (GPU_QUICK if quick else GPU) if kind == "cuda" else (QUICK if quick else FULL)
    work = backends.Work(
        device, timer_for(torch.device(kind)), effort, _real(kind), say, options.time_limit, options.again
    )  # fmt: skip
    outcome = backends.tune(chosen, work)
    dispatch.forget_choices()
    report.print_backends(outcome)
    _print_json({"device": device.label, "file": _path(device), **report.backends_document(outcome)})
    return _status(outcome.interrupted, outcome.stopped)


def _path(device: store.Device) -> str | None:
    path = store.load(device).path
    return None if path is None else str(path)


def _status(interrupted: bool, stopped: str) -> int:
    return INTERRUPTED if interrupted else STOPPED if stopped else 0


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document))


def _clear(devices: Sequence[store.Device]) -> int:
    for device in devices:
        path = store.clear(device)
        print(f"{device.label}: {'nothing is stored' if path is None else f'removed {path}'}")
    return 0


def _dry_run(chosen: Chosen, kind: str, of_backends: bool) -> int:
    if of_backends:
        document = report.print_rows(chosen, store.device_of(kind) or store.Device("an H100, imagined", "9.0"), kind)
        _print_json({"rows": document})
        return 0
    if importlib.util.find_spec("triton") is None:
        raise ValueError("the kernels are listed with the triton package, which is not installed: pip install triton")
    here = torch.cuda.is_available()
    if not here:
        say("no CUDA GPU is visible: plans are listed as on an H100")
    found = []
    seen: set[tuple[str, str]] = set()
    with nullcontext() if here else imagined_gpu():
        operands = _real(kind, 1) if here else imagined_operands
        for benchmark, cases in chosen:
            for case in cases:
                for plan in plans_of(benchmark, case, operands(benchmark, case)):
                    if (plan.name, plan.key) not in seen:
                        seen.add((plan.name, plan.key))
                        found.append((benchmark.name, case.key, plan))
    report.print_plans(found)
    _print_json({"plans": report.plans_document(found)})
    return 0
