"""Neighbours of the ops in a network, as torch composes them, beside what fusing them could bring at most.

For bias and GELU behind a linear layer the fused pass is `batch_norm` in evaluation with mean 0 and variance 1, which
is gelu(x + bias). For dropout between a branch and its residual it is our own, and the same without any dropout.
Torch's own `linear_cross_entropy` stands beside the two calls that it replaces.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.ops import batch_norm, dropout, layer_norm

from . import machine, results
from .table import print_table
from .timing import FULL, Effort, Spread, interleave, timer_for

Calls = dict[str, Callable[[], object]]
LINEAR = ((1576, 768, 3072), (1024, 768, 3072), (4160, 192, 768))
STREAMS = ((8, 197, 768), (16, 128, 768), (4, 1024, 768))
WORDS = (1024, 768, 30522)


def leaf(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape)).to(dtype).requires_grad_()


def with_backward(function: Callable[[], Any], leaves: list[Tensor], grads: Any) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(), leaves, grads)


def both_passes(
    functions: dict[str, Callable[[], Any]], leaves: dict[str, list[Tensor]], grads: Any
) -> dict[str, Calls]:
    backward = {name: with_backward(function, leaves[name], grads) for name, function in functions.items()}
    return {"forward": dict(functions), "forward+backward": backward}


def bias_gelu(rows: int, width: int, hidden: int, dtype: torch.dtype) -> dict[str, Calls]:
    x, weight = leaf(rows, width, dtype=dtype), leaf(hidden, width, dtype=dtype, scale=width**-0.5)
    bias = leaf(hidden, dtype=dtype)
    wide_bias = bias.detach().float().clone().requires_grad_()
    mean, variance = torch.zeros(hidden), torch.ones(hidden)

    def fused() -> Tensor:
        product = F.linear(x, weight)
        return batch_norm(product, mean, variance, None, wide_bias, training=False, eps=0.0, activation="gelu")

    functions = {"torch": lambda: F.gelu(F.linear(x, weight, bias)), "fused": fused}
    leaves = {"torch": [x, weight, bias], "fused": [x, weight, wide_bias]}
    return both_passes(functions, leaves, torch.randn(rows, hidden).to(dtype))


def dropout_residual(*shape: int, dtype: torch.dtype) -> dict[str, Calls]:
    x, residual = leaf(*shape, dtype=dtype), leaf(*shape, dtype=dtype)
    weight, bias = leaf(shape[-1], dtype=dtype), leaf(shape[-1], dtype=dtype)

    def norm(branch: Tensor) -> Any:
        return layer_norm(branch, (shape[-1],), weight, bias, residual=residual)

    functions = {
        "torch's dropout": lambda: norm(F.dropout(x, 0.1)),
        "ours": lambda: norm(dropout(x, 0.1)),
        "without": lambda: norm(x),
    }
    grad = torch.randn(shape).to(dtype)
    return both_passes(functions, {key: [x, residual, weight, bias] for key in functions}, [grad, grad])


def linear_cross_entropy(tokens: int, width: int, words: int) -> dict[str, Calls]:
    x, weight = leaf(tokens, width), leaf(words, width, scale=width**-0.5)
    target = torch.randint(words, (tokens,))
    functions: dict[str, Callable[[], Any]] = {"two calls": lambda: F.cross_entropy(F.linear(x, weight), target)}
    if hasattr(F, "linear_cross_entropy"):  # from torch 2.13 on
        functions["torch's own"] = lambda: F.linear_cross_entropy(x, weight, target)
    backward = {name: with_backward(function, [x, weight], None) for name, function in functions.items()}
    return {"forward+backward": backward}


def problems() -> dict[str, dict[str, Calls]]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for size in LINEAR:
            found[f"bias+gelu {'x'.join(map(str, size))} {name}"] = bias_gelu(*size, dtype=dtype)
        for shape in STREAMS:
            found[f"dropout+residual+norm {'x'.join(map(str, shape))} {name}"] = dropout_residual(*shape, dtype=dtype)
    found[f"linear+cross-entropy {'x'.join(map(str, WORDS))} float32"] = linear_cross_entropy(*WORDS)
    return found


def time(name: str, calls: Calls, effort: Effort) -> dict[str, Spread]:
    ready = {contender: (lambda index, call=call: call()) for contender, call in calls.items()}
    with torch.set_grad_enabled(name != "forward"):
        return interleave(ready, timer_for(torch.device("cpu")), effort)


def main(argv: list[str] | None = None, effort: Effort = FULL) -> int:
    """Runs the command and returns its exit status: 0, or 1 where a results file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m bench neighbours", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, help="where the JSON goes; bench/results if not given")
    options = parser.parse_args(argv)
    path = (options.output_dir or machine.BENCH / "results") / f"{machine.slug(torch.device('cpu'))}.json"
    try:
        content = results.read(path)
    except results.ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    times = {
        problem: {name: time(name, calls, effort) for name, calls in passes.items()}
        for problem, passes in problems().items()
    }
    lines = []
    for problem, passes in times.items():
        for name, spreads in passes.items():
            told = [f"{contender} {spread.median * 1e3:.3g} ms" for contender, spread in spreads.items()]
            lines.append([problem, name, *told, *[""] * (3 - len(told))])
    print_table(["neighbours", "pass", "as torch has it", "beside it", "at most"], lines, sys.stdout)
    content["neighbours"] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "times": {
            problem: {name: {c: asdict(s) for c, s in spreads.items()} for name, spreads in passes.items()}
            for problem, passes in times.items()
        },
    }
    content["machine"] = content["machine"] or machine.describe(torch.device("cpu"))
    results.write(path, content)
    print(f"Results: {path}")
    return 0
