"""The options of ``python -m bench``, and what follows from them."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastdl.ops import dispatch

from . import machine, registry
from .cases import LAYOUT_LABELS
from .gpu import TIME_LIMIT

POOLS = {"on": ("on",), "off": ("off",), "both": ("on", "off")}
# What `python -m bench` with nothing else ends within on a CPU; it is made for two cores.
DEFAULT_TIME_LIMIT = 14.5 * 60


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times fastdl's ops beside eager torch, torch.compile and other packages, and beside the machine's "
        "own limit. Results are printed, and kept as JSON.",
        epilog="`python -m bench training` times whole steps of a network, `python -m bench neighbours` what fusing an "
        "op's neighbours could bring. `python -m bench report` writes the measured tables, docs/performance.md and its "
        "pictures, `python -m bench pictures` the pictures alone, `python -m bench choose` the table of what `auto` "
        "takes on a GPU (see their `--help`).",
    )
    parser.add_argument(
        "operators",
        nargs="*",
        metavar="OP",
        help=f"{', '.join(registry.names())}, or norms for the four norms; all if none is named",
    )
    parser.add_argument(
        "--shapes", choices=("default", "full", "quick"), default=None,
        help="default: the shapes that a quarter of an hour on two cores has room for; full: every shape; "
        "quick: a few that take a minute. If not given, default, and on a GPU full",
    )  # fmt: skip
    parser.add_argument(
        "--layout", choices=(*LAYOUT_LABELS, "both"), default="both",
        help="memory layout: nchw or channels_last for images, separate or packed for attention",
    )  # fmt: skip
    parser.add_argument("--dtype", default="all", help="float32, bfloat16, ... or all (default)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given")
    parser.add_argument(
        "--pool", choices=tuple(POOLS), default=None,
        help="the CPU output pool; both: large cases with and without. If not given, on with the default shapes, "
        "else both",
    )  # fmt: skip
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out, which takes most of the time"
    )
    parser.add_argument(
        "--max-autotune", action="store_true",
        help="also torch.compile with every kernel chosen by timing; on a CPU that changes matrix products alone",
    )  # fmt: skip
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS",
        help=f"start no case that would end after this; if not given {TIME_LIMIT:.0f} on a GPU, and "
        f"{DEFAULT_TIME_LIMIT:.0f} with the default shapes",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="go on where an interrupted run stopped: leave out what the results file holds already, if it was "
        "measured at the same commit, with the same versions, threads and options",
    )  # fmt: skip
    parser.add_argument("--output-dir", type=Path, default=None, help="where the JSON goes; bench/results if not given")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"),
        help="measure nothing: compare two results files, of all ops or of those that are named. "
        "Status 1 if fastdl has become slower, 2 if the files are of no use",
    )  # fmt: skip
    return parser


def completed(options: argparse.Namespace, device: torch.device) -> argparse.Namespace:
    """The options with what depends on the device and on each other filled in."""
    if options.shapes is None:
        options.shapes = "full" if device.type == "cuda" else "default"
    if options.pool is None:
        options.pool = usual_pool(options)
    return options


def usual_pool(options: argparse.Namespace) -> str:
    return "on" if options.shapes == "default" else "both"


def selection(options: argparse.Namespace) -> dict[str, str]:
    """What of the options says which rows a run has."""
    chosen = {name: str(getattr(options, name)) for name in ("shapes", "layout", "dtype", "pool")}
    return {**chosen, "max_autotune": "yes"} if options.max_autotune else chosen


def suffix(options: argparse.Namespace, device: torch.device) -> str:
    """What tells this run's file from that of a full run: a narrower one must not take a full one's place."""
    parts = []
    if options.shapes != "full":
        parts.append(options.shapes)
    if options.layout != "both":
        parts.append(options.layout.replace("_", "-"))
    if options.dtype != "all":
        parts.append(options.dtype)
    if options.pool != usual_pool(options) and device.type == "cpu":
        parts.append(f"pool-{options.pool}")
    if options.no_compile:
        parts.append("no-compile")
    if options.max_autotune:
        parts.append("max-autotune")
    if options.threads is not None:
        parts.append(f"{options.threads}-thread{'' if options.threads == 1 else 's'}")
    if dispatch.requested() != "auto":
        parts.append(dispatch.requested())
    return "".join(f"-{part}" for part in parts)


def time_limit_of(options: argparse.Namespace, device: torch.device) -> float | None:
    """Seconds for the whole command, or None where there is no limit."""
    if options.time_limit is not None:
        return float(options.time_limit)
    if device.type == "cuda":
        return TIME_LIMIT
    return DEFAULT_TIME_LIMIT if options.shapes == "default" else None


def share_of_time(remaining: float, estimates: list[float]) -> float:
    """What the first of so many ops may take, by how long each is expected to; what it leaves over is the others'.

    Where there is time for all, everything that the others are not expected to need; else its part of what there is.
    """
    total = sum(estimates)
    share = estimates[0] / total if total else 1 / len(estimates)
    return max(0.0, remaining * share, remaining - sum(estimates[1:]))


def pool_states(option: str, device: torch.device) -> tuple[str | None, ...]:
    """The states of the CPU output pool to measure; (None,) on a GPU and without the native library: no pool there."""
    if device.type != "cpu" or dispatch.choose("group_norm", dispatch.requested(), "cpu", torch.float32) != "cpu":
        return (None,)
    return POOLS[option]


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


def default_output_dir() -> Path:
    """``bench/results`` of the checkout, or of the current folder where the package is installed."""
    in_checkout = (machine.CHECKOUT / "pyproject.toml").is_file()
    return (machine.BENCH if in_checkout else Path("bench")) / "results"
