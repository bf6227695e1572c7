"""``fastdl profile op|model|script``, and ``python -m fastdl.profile script.py``."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch

import fastdl
from fastdl.ops import dispatch
from fastdl.profile.script import run_script
from fastdl.profile.session import Profile, profile
from fastdl.profile.subjects import (
    ATTENTION_LAYOUTS,
    DTYPES,
    IMAGE_LAYOUTS,
    INFERENCE,
    OPS,
    TRAIN,
    ModelSettings,
    OpSettings,
    Subject,
    model_subject,
    op_subject,
)

LEAST_WARMUP = 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdl profile",
        description="Tells what fastdl's ops take: time, bytes, operations, and how far that is from what the machine "
        "can do; and where the rest of the time goes.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="op|model|script")
    _add_op(kinds.add_parser("op", help="an op on tensors of a shape"))
    _add_model(kinds.add_parser("model", help="a few steps of a model"))
    _add_script(kinds.add_parser("script", help="a script of yours, with its arguments"))
    return parser


def _add_op(parser: argparse.ArgumentParser) -> None:
    usual = OpSettings()
    parser.add_argument("name", metavar="OP", help=", ".join(OPS))
    parser.add_argument("--shape", type=_shape, help="of the input, such as 8,64,32,32 or 8x64x32x32")
    parser.add_argument("--dtype", default=usual.dtype, help=f"{', '.join(DTYPES)} (default: {usual.dtype})")
    parser.add_argument("--layout", help=f"{', '.join(IMAGE_LAYOUTS)}; attention: {', '.join(ATTENTION_LAYOUTS)}")
    parser.add_argument("--activation", help="such as silu, relu or identity")
    parser.add_argument("--num-groups", type=int, default=usual.num_groups, help="of group_norm (default: %(default)s)")
    parser.add_argument("--kernel", type=int, default=usual.kernel, help="of a convolution (default: %(default)s)")
    parser.add_argument("--residual", action="store_true", help="add one")
    parser.add_argument("--causal", action="store_true", help="attention to what came before alone")
    parser.add_argument("--forward-only", action="store_true", help="no backward, as in inference")
    _add_steps(parser, 20)
    _add_common(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    usual = ModelSettings()
    parser.add_argument("name", metavar="MODEL", help="by its name in fastdl.models, such as resnet18 or vit_b_16")
    parser.add_argument("--batch", type=int, default=usual.batch, help="images a step (default: %(default)s)")
    parser.add_argument("--image-size", type=int, help="height and width; what the model is made for if not given")
    parser.add_argument("--dtype", default=usual.dtype, help="half precision is autocast's (default: %(default)s)")
    parser.add_argument("--step", default=TRAIN, help=f"{TRAIN} (default) or {INFERENCE}")
    _add_steps(parser, 5)
    _add_common(parser)


def _add_script(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("path", type=Path, metavar="SCRIPT", help="run as __main__; options of ours come before it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own")


def _add_steps(parser: argparse.ArgumentParser, steps: int) -> None:
    parser.add_argument("--steps", type=int, default=steps, help="that are measured (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (default: %(default)s)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="a GPU where there is one, if not given")
    parser.add_argument("--backend", help=f"{', '.join(dispatch.NAMES)}; what is asked for elsewhere if not given")
    parser.add_argument("--memory", action="store_true", help="watch what is allocated, which takes time itself")
    parser.add_argument("--by-shape", action="store_true", help="a row for each combination of shapes")
    parser.add_argument("--others", type=int, default=10, help="of torch's operators named (default: %(default)s)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace for Chrome or Perfetto (.json[.gz])")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--nvtx", action="store_true", help="name the ranges for Nsight Systems; needs a GPU")


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes of at least 1, such as 8,64,32,32; got {text!r}")
    return sizes


def main(words: list[str]) -> int:
    """Runs ``fastdl profile``; returns 0, or a script's own exit status. Raises ValueError for a wrong option."""
    options = make_parser().parse_args(words)
    _check(options)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    taken = profile(device=device, memory=options.memory, nvtx=options.nvtx)
    start_value = dispatch.requested()
    if options.backend is not None:
        fastdl.set_backend(options.backend)  # for every thread of a script
    try:
        if options.kind == "script":
            return _profile_script(options, taken)
        return _profile_subject(options, device, taken)
    finally:
        if options.backend is not None:
            fastdl.set_backend(start_value)


def _check(options: argparse.Namespace) -> None:
    for name, least in (("steps", 1), ("warmup", LEAST_WARMUP), ("others", 0)):
        value = getattr(options, name, least)
        if value < least:
            raise ValueError(f"--{name} must be at least {least}; got {value}")
    for name in ("trace", "json"):
        path = getattr(options, name)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"--{name} must be a file in a folder that is there; got {path}")
        if path is not None:
            setattr(options, name, path.resolve())  # a script may go elsewhere


def _profile_script(options: argparse.Namespace, taken: Profile) -> int:
    """The script's output stays what it is: the report goes to the standard error."""
    status = run_script(options.path, options.arguments, taken)
    sys.stdout.flush()
    _tell(options, taken, sys.stderr)
    return status


def _profile_subject(options: argparse.Namespace, device: str, taken: Profile) -> int:
    subject = _subject(options, device)
    for _ in range(options.warmup):
        subject.step()
    bare = time_steps(subject.step, options.steps, device)
    with torch.profiler.profile(record_shapes=True):  # the first one of a process sets the profiler up
        subject.step()
    with taken:
        for _ in range(options.steps):
            subject.step()
            taken.step()
    count = torch.get_num_threads()
    threads = f", {count} thread{'' if count == 1 else 's'}" if device == "cpu" else ""
    print(f"{subject.title}, on {device}{threads}")
    print(f"{bare * 1e3:.3f} ms a step without the profiler, the median of {options.steps}")
    _tell(options, taken, sys.stdout)
    return 0


def _subject(options: argparse.Namespace, device: str) -> Subject:
    if options.kind == "model":
        return model_subject(
            options.name, ModelSettings(options.batch, options.image_size, options.dtype, device, options.step)
        )
    return op_subject(
        options.name,
        OpSettings(
            options.shape, options.dtype, options.layout, device, options.activation, options.num_groups,
            options.kernel, options.residual, options.causal, not options.forward_only,
        ),
    )  # fmt: skip


def time_steps(step: Callable[[], object], steps: int, device: str) -> float:
    """The median of the steps' seconds, each waited for."""
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _tell(options: argparse.Namespace, taken: Profile, file: TextIO) -> None:
    print(taken.table(by_shape=options.by_shape, most_others=options.others), file=file)
    if options.trace is not None:
        taken.export_chrome_trace(options.trace)
        print(f"Trace: {options.trace}, for https://ui.perfetto.dev or chrome://tracing", file=file)
    if options.json is not None:
        taken.export_json(options.json)
        print(f"JSON: {options.json}", file=file)
